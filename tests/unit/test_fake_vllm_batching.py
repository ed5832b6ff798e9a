"""The simulated engine, the lengths and the faults of the fake vLLM: all that needs no socket and no clock."""

import statistics
from collections import Counter, deque

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.errors import SettingsError
from clients.fake_vllm.answers import AnswerModel, completion, events, usage_of
from clients.fake_vllm.batching import Batch, Job, JobState, StepModel, ideal_makespan
from clients.fake_vllm.chat import Asked, Refusal, mark_of, read_request
from clients.fake_vllm.faults import KINDS, FaultPlan, parse_faults

STEPS = StepModel(base_s=0.01, per_running_s=0.001)


def token_by_token(lengths: list[int], slots: int, steps: StepModel) -> float:
    """The same makespan, one step at a time."""
    queue, running, now = deque(lengths), [], 0.0
    while queue or running:
        while queue and len(running) < slots:
            running.append(queue.popleft())
        now += steps.step_s(len(running))
        running = [left - 1 for left in running if left > 1]
    return now


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 8), st.integers(0, 6))
def test_the_virtual_clock_agrees_with_a_simulation_token_by_token(lengths: list[int], slots: int, knee: int) -> None:
    steps = StepModel(base_s=0.01, per_running_s=0.001, knee=knee)
    assert ideal_makespan(lengths, slots, steps) == pytest.approx(token_by_token(lengths, slots, steps))


@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 30)), max_size=40), st.integers(1, 4))
def test_no_job_is_lost_and_every_token_is_counted(arrivals: list[tuple[float, int]], slots: int) -> None:
    batch, done = Batch(slots=slots, steps=STEPS), []
    for at, tokens in sorted(arrivals):
        done += batch.advance(at)
        batch.submit(Job(tokens), at)
        assert batch.running <= slots
    while (end := batch.next_end()) is not None:
        done += batch.advance(end)
    assert sorted(job.tokens for job in done) == sorted(tokens for _, tokens in arrivals)
    assert batch.tokens == pytest.approx(sum(tokens for _, tokens in arrivals))
    assert (batch.running, batch.waiting) == (0, 0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["submit", "cancel", "wait"]), st.integers(0, 20), st.floats(0, 0.2)), max_size=60
    ),
    st.integers(1, 3),
)
@settings(deadline=None)
def test_whatever_is_cancelled_the_counts_agree_with_the_jobs(moves: list[tuple[str, int, float]], slots: int) -> None:
    batch, jobs, now = Batch(slots=slots, steps=STEPS), [], 0.0
    for move, number, passed in moves:
        now += passed
        if move == "submit":
            jobs.append(Job(number + 1))
            batch.submit(jobs[-1], now)
        elif move == "cancel" and jobs:
            batch.cancel(jobs[number % len(jobs)], now)
        else:
            batch.advance(now)
        states = Counter(job.state for job in jobs)
        assert batch.running == states[JobState.RUNNING] <= slots
        assert batch.waiting == states[JobState.WAITING]
        assert not batch.waiting or batch.running == slots, "nobody waits beside a free slot"


def test_jobs_start_in_the_order_in_which_they_came() -> None:
    batch = Batch(slots=1, steps=STEPS)
    jobs = [Job(3), Job(1), Job(2)]
    for job in jobs:
        batch.submit(job, 0.0)
    assert batch.advance(10.0) == jobs


def test_a_slot_is_taken_over_at_the_very_moment_it_is_free_even_if_nobody_looks() -> None:
    looked_at_once, looked_late = Batch(slots=1, steps=STEPS), Batch(slots=1, steps=STEPS)
    for batch in (looked_at_once, looked_late):
        batch.submit(Job(10), 0.0)
        batch.submit(Job(10), 0.0)
    looked_at_once.advance(0.11)
    looked_late.advance(0.2)
    assert looked_at_once.next_end() == pytest.approx(looked_late.next_end()) == pytest.approx(0.22)


def test_a_cancelled_job_gives_its_slot_to_the_next() -> None:
    batch, long, short = Batch(slots=1, steps=STEPS), Job(1000), Job(10)
    batch.submit(long, 0.0)
    batch.submit(short, 0.0)
    batch.cancel(long, 1.0)
    assert batch.next_end() == pytest.approx(1.0 + 10 * 0.011)
    batch.cancel(short, 1.0)
    assert (batch.running, batch.waiting, batch.next_end()) == (0, 0, None)


def test_a_job_that_ended_between_two_looks_is_handed_over_at_the_next() -> None:
    batch, job = Batch(slots=2, steps=STEPS), Job(1)
    batch.submit(job, 0.0)
    batch.submit(Job(5), 1.0)
    assert batch.next_end() is not None
    batch.cancel(job, 1.0)
    assert batch.advance(1.0) == [job], "done stays done"


def test_a_prefill_holds_up_everyone() -> None:
    batch = Batch(slots=2, steps=StepModel(base_s=0.01, per_running_s=0.0), prefill_s=0.1)
    batch.submit(Job(10), 0.0)
    assert batch.next_end() == pytest.approx(0.2)
    batch.submit(Job(20), 0.15)
    assert batch.next_end() == pytest.approx(0.3)
    assert ideal_makespan([10, 20], 2, StepModel(base_s=0.01, per_running_s=0.0), prefill_s=0.1) == pytest.approx(0.4)


def test_beyond_the_knee_more_requests_give_no_more_tokens_a_second() -> None:
    steps = StepModel(base_s=0.01, per_running_s=0.0001, knee=100)
    throughput = [running / steps.step_s(running) for running in (50, 100, 200, 400)]
    assert throughput[0] < throughput[1]
    assert throughput[1:] == pytest.approx([throughput[1]] * 3)


def test_more_replicas_and_longest_first_shorten_the_ideal() -> None:
    lengths = [AnswerModel().wanted_tokens(mark_of(f"row {number}")) for number in range(2000)]
    alone = ideal_makespan(lengths, 64, STEPS)
    assert ideal_makespan(lengths, 64, STEPS, longest_first=True) < alone
    assert ideal_makespan(lengths, 64, STEPS, replicas=4) < alone / 3
    assert ideal_makespan([], 64, STEPS) == 0.0
    assert ideal_makespan([7], 64, STEPS, replicas=4) == pytest.approx(7 * 0.011)


# ------------------------------------------------------------------------- answers


def asked(text: str = "hello", **fields: object) -> Asked:
    body = {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}
    found = read_request(orjson.dumps(body), "fake", 10_000)
    assert isinstance(found, Asked)
    return found


def test_lengths_are_lognormal_and_depend_on_the_seed_and_the_text_alone() -> None:
    model = AnswerModel(seed=3, median=200, sigma=0.8, longest=4000)
    lengths = [model.wanted_tokens(mark_of(f"row {number}")) for number in range(4000)]
    assert statistics.median(lengths) == pytest.approx(200, rel=0.06)
    assert statistics.quantiles(lengths, n=100)[98] == pytest.approx(200 * 2.718 ** (0.8 * 2.326), rel=0.15)
    assert max(lengths) <= 4000
    assert lengths[7] == model.wanted_tokens(mark_of("row 7"))
    assert lengths != [AnswerModel(seed=4).wanted_tokens(mark_of(f"row {number}")) for number in range(4000)]
    assert {AnswerModel(sigma=0).wanted_tokens(mark_of(str(number))) for number in range(50)} == {200}


def test_an_answer_names_its_text_and_counts_its_tokens() -> None:
    model, request = AnswerModel(text_bytes=2048), asked("what is it?")
    answer = orjson.loads(completion(model, request, model.lengths(request), "chatcmpl-1"))
    (choice,) = answer["choices"]
    assert choice["message"]["content"].startswith(f"answer-{mark_of('what is it?').hex()[:12]} ")
    assert len(choice["message"]["content"]) == 2048
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == model.wanted_tokens(mark_of("what is it?"))
    assert answer["usage"]["prompt_tokens"] == request.prompt_tokens == 7


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_cuts_the_answer(name: str) -> None:
    model, request = AnswerModel(sigma=0), asked(**{name: 5})
    answer = orjson.loads(completion(model, request, model.lengths(request), "chatcmpl-1"))
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["content"] == f"answer-{mark_of('hello').hex()[:12]}"
    assert answer["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("limit", "content", "thoughts", "tokens"), [(None, True, 140, 200), (150, True, 140, 150), (100, False, 100, 100)]
)
def test_thoughts_come_first_and_a_cut_among_them_leaves_no_content(
    limit: int | None, content: bool, thoughts: int, tokens: int
) -> None:
    model, request = AnswerModel(sigma=0, thinking=True), asked(max_tokens=limit)
    lengths = model.lengths(request)
    message = model.message(request, lengths[0])
    assert (message["content"] is not None) is content
    assert message["reasoning"].startswith("thoughts-")
    assert usage_of(request, lengths)["completion_tokens"] == tokens
    assert usage_of(request, lengths)["completion_tokens_details"] == {"reasoning_tokens": thoughts}


def test_thinking_can_be_forbidden_and_hidden() -> None:
    model = AnswerModel(sigma=0, thinking=True)
    quick = asked(chat_template_kwargs={"enable_thinking": False})
    assert "completion_tokens_details" not in usage_of(quick, model.lengths(quick))
    hidden = asked(include_reasoning=False)
    assert "reasoning" not in model.message(hidden, model.lengths(hidden)[0])


def test_a_stream_has_every_choice_usage_if_wanted_and_an_end() -> None:
    model, request = AnswerModel(), asked(stream=True, n=2, stream_options={"include_usage": True})
    sent = events(model, request, model.lengths(request), "chatcmpl-1")
    assert sent[-1] == b"data: [DONE]\n\n"
    chunks = [orjson.loads(event[6:]) for event in sent[:-1]]
    finishes = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert finishes == [None, None, "stop"] * 2
    assert chunks[-1]["usage"]["completion_tokens"] == sum(length.tokens for length in model.lengths(request))
    assert len(events(model, asked(stream=True), model.lengths(asked()), "x", empty=True)) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"messages": []}', 400),
        (b'{"messages": ["hello"]}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": true}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 129}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 99}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "other"}', 404),
    ],
)
def test_what_vllm_refuses_is_refused(body: bytes, status: int) -> None:
    found = read_request(body, "fake", 100)
    assert isinstance(found, Refusal)
    assert found.status == status


def test_the_text_is_that_of_the_last_user_message_in_parts_or_whole() -> None:
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "tool", "content": "later"},
    ]
    assert asked(messages=messages).mark == mark_of("a\nb")


# -------------------------------------------------------------------------- faults


def test_faults_come_as_often_as_told_and_are_the_same_again() -> None:
    plan = FaultPlan(1, {"reset": 0.1, "hang": 0.05})
    drawn = [plan.fault_of(mark_of(str(number)), 0) for number in range(5000)]
    counts = Counter(drawn)
    assert counts["reset"] == pytest.approx(500, rel=0.15)
    assert counts["hang"] == pytest.approx(250, rel=0.2)
    assert drawn == [plan.fault_of(mark_of(str(number)), 0) for number in range(5000)]
    assert drawn != [FaultPlan(2, plan.shares).fault_of(mark_of(str(number)), 0) for number in range(5000)]
    again = [plan.fault_of(mark_of(str(number)), 1) for number in range(5000)]
    assert drawn != again


def test_only_the_first_attempts_can_meet_a_fault() -> None:
    plan = FaultPlan(0, {"http_500": 1.0}, attempts=2)
    assert [plan.fault_of(b"x", earlier) for earlier in range(4)] == ["http_500", "http_500", None, None]


def test_a_rejected_text_is_rejected_for_ever() -> None:
    plan = FaultPlan(0, {"reject": 0.5}, attempts=0)
    rejected = [mark for mark in map(mark_of, "abcdefghij") if plan.fault_of(mark, 0)]
    assert 0 < len(rejected) < 10
    assert {plan.fault_of(mark, earlier) for mark in rejected for earlier in range(9)} == {"reject"}


def test_faults_are_read_from_one_line() -> None:
    assert parse_faults("") == {}
    assert parse_faults("reset:0.5, hang:0.25") == {"reset": 0.5, "hang": 0.25}
    assert parse_faults("all:0.02,hang:0") == dict.fromkeys(KINDS, 0.02) | {"hang": 0}


@pytest.mark.parametrize("text", ["flood:0.1", "reset", "reset:often", "reset:2", "reset:0.6,hang:0.6"])
def test_a_misspelt_fault_is_told(text: str) -> None:
    with pytest.raises(SettingsError, match="--faults"):
        parse_faults(text)
