"""What the engine reads off its servers and answers: telemetry, latencies, patience, the verdict."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.batch.latency import Latencies, fit
from clients.batch.stragglers import patience_s
from clients.batch.telemetry import Load, read_load, scaled
from clients.batch.verdict import Sample, Verdict
from clients.results.verdict import judge

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
process_start_time_seconds 1.76e+09
"""


class TestTelemetry:
    def test_vllm_with_two_engines(self) -> None:
        assert read_load(VLLM) == Load(running=7, waiting=1, kv_usage=0.5, preemptions=2, identity="1.76e+09")

    def test_llama_cpp_and_sglang(self) -> None:
        assert read_load(b"llamacpp:requests_processing 2\nllamacpp:requests_deferred 5\n") == Load(
            running=2, waiting=5
        )
        found = read_load(b'sglang:num_running_reqs{a="b"} 2.0\nsglang:num_queue_reqs{a="b"} 0.0\n')
        assert found == Load(running=2, waiting=0)

    @pytest.mark.parametrize("text", [b"", b"<html>404</html>", b"vllm:num_requests_running 3\n", b"\xff\xfe\x00"])
    def test_a_page_that_says_nothing_of_it_is_none(self, text: bytes) -> None:
        assert read_load(text) is None

    @given(st.binary(max_size=300))
    def test_no_page_breaks_it(self, noise: bytes) -> None:
        read_load(noise)
        read_load(VLLM + noise)

    @pytest.mark.parametrize("value", ["NaN", "-1", "1e300", "x"])
    def test_a_number_that_cannot_be_counts_as_none_running(self, value: str) -> None:
        found = read_load(f"vllm:num_requests_running {value}\nvllm:num_requests_waiting 1\n".encode())
        assert found == Load(running=0, waiting=1)

    def test_samples_of_several_processes_stand_for_all_behind_the_address(self) -> None:
        found = scaled([Load(running=8, waiting=0), Load(running=8, waiting=8)], in_flight=48)
        assert found == Load(running=32, waiting=0)
        assert scaled([Load(running=0, waiting=0)], in_flight=5) == Load(running=0, waiting=0)


class TestLatency:
    @given(st.floats(0, 5), st.floats(0.001, 0.1))
    def test_a_queue_and_a_pace_are_told_apart(self, wait_s: float, per_token_s: float) -> None:
        found = fit((tokens, wait_s + per_token_s * tokens) for tokens in range(10, 500, 7))
        assert found.wait_s == pytest.approx(wait_s, abs=1e-6)
        assert found.per_token_s == pytest.approx(per_token_s)

    def test_answers_of_one_length_tell_no_pace(self) -> None:
        assert fit([(100, 2.0), (100, 3.0)]).per_token_s == 0

    @given(st.lists(st.floats(0, 100), min_size=1, max_size=100), st.floats(0, 0.999))
    def test_quantiles_are_of_the_latest(self, values: list[float], share: float) -> None:
        latencies = Latencies(size=20)
        for value in values:
            latencies.add(value)
        assert latencies.quantile(share) == sorted(values[-20:])[int(share * len(values[-20:]))]
        assert latencies.count == len(values)


def patience(
    *values: float, faulty: bool = False, tail: bool = False, lost_share: float | None = None, doubled: int = 0
) -> float | None:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    return patience_s(latencies, faulty=faulty, tail=tail, lost_share=lost_share, doubled=doubled)


class TestPatience:
    def test_nothing_is_stuck_before_anything_is_known(self) -> None:
        assert patience(1.0, 1.0) is None

    def test_but_a_server_that_knows_of_nothing_does_not_work_on_anything(self) -> None:
        assert patience(lost_share=1.0) == 5.0

    def test_it_shrinks_with_every_sign_that_requests_get_lost(self) -> None:
        dice = random.Random(0)
        values = [dice.uniform(1, 10) for _ in range(200)]
        steps = [
            patience(*values),
            patience(*values, faulty=True),
            patience(*values, faulty=True, tail=True),
            patience(*values, faulty=True, tail=True, lost_share=0.5),
        ]
        assert steps == sorted(steps, key=lambda step: -(step or 0))
        assert steps[0] is not None
        assert steps[0] >= 2 * max(values)

    def test_each_further_request_for_a_row_waits_twice_as_long(self) -> None:
        values = [1.0, *[0.5] * 100]
        waits = [patience(*values, faulty=True, tail=True, doubled=doubled) or 0 for doubled in range(3)]
        assert waits == [waits[0], 2 * waits[0], 4 * waits[0]]

    def test_a_server_that_knows_of_all_requests_is_given_more_time(self) -> None:
        dice = random.Random(0)
        values = [dice.uniform(1, 10) for _ in range(200)]
        silent, knows = (patience(*values, faulty=True, tail=True, lost_share=share) for share in (None, 0.0))
        assert silent is not None
        assert knows is not None
        assert knows > silent

    def test_it_is_never_shorter_than_a_network_hiccup(self) -> None:
        assert patience(*[0.001] * 100, faulty=True, tail=True, lost_share=1.0) == 2.0


def sample(**changes: object) -> Sample:
    usual = {
        "seconds": 1.0, "in_flight": 64, "limit": 64, "peak": 64,
        "is_full": True, "at_cap": False, "rows_left": True, "cpu": 0.1,
    }  # fmt: skip
    return Sample(**{**usual, **changes})  # type: ignore[arg-type]


class TestVerdict:
    @pytest.mark.parametrize(
        ("moment", "kind"),
        [
            (sample(), "server-bound"),
            (sample(cpu=0.95), "client-bound"),
            (sample(is_full=False, at_cap=True), "cap-bound"),
            (sample(is_full=False), "ramp-bound"),
            (sample(rows_left=False, in_flight=8), "tail-bound"),
            (sample(limit=0), "waiting"),
        ],
    )
    def test_each_moment_has_one_brake(self, moment: Sample, kind: str) -> None:
        verdict = Verdict()
        verdict.add(moment)
        found = judge([verdict.seconds])
        assert found is not None
        assert (found["kind"], found["seconds"]) == (kind, {kind: 1.0})

    def test_the_shards_are_added_up(self) -> None:
        found = judge([{"server-bound": 3.0}, {"client-bound": 2.0, "server-bound": 1.0}, {}])
        assert found is not None
        assert (found["kind"], found["seconds"]) == ("server-bound", {"server-bound": 4.0, "client-bound": 2.0})

    def test_a_long_tail_is_named_although_the_servers_were_full_for_longer(self) -> None:
        found = judge([{"server-bound": 6.0, "tail-bound": 4.0}])
        assert found is not None
        assert found["kind"] == "tail-bound"

    def test_a_run_that_sent_nothing_has_none(self) -> None:
        assert judge([]) is None
        assert judge([{}]) is None
