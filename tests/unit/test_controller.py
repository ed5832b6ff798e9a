"""The limit in simulated time, against a batch that runs so many requests and queues, refuses or slows down beyond."""

import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.batch.controller import MOST, START, Change, ConcurrencyController
from clients.batch.telemetry import Load
from clients.fake_vllm.batching import Batch, Job, JobState, StepModel, ideal_makespan

STEPS = StepModel(base_s=0.01, per_running_s=5e-6)

#: Seconds from the client to the server, and between two readings of the telemetry as `clients.batch.probe` has them.
LAG_S, EAGER_S, CALM_S = 0.002, 0.05, 0.5


def lengths(count: int, seed: int = 1, sigma: float = 0.8) -> list[int]:
    dice = random.Random(seed)
    return [max(1, min(4000, int(math.exp(math.log(200) + sigma * dice.gauss(0, 1))))) for _ in range(count)]


class Simulation:
    """A client that always has as much in flight as its controller allows, and a server; both in simulated time.

    Attributes:
        makespan: Seconds until the last answer.
        peak: Most requests in flight.
        refused: Refusals that the server gave.
        changes: What the controller did, each with its time.
    """

    def __init__(
        self,
        work: list[int],
        slots: int,
        *,
        telemetry: bool = True,
        max_queued: float = math.inf,
        retry_after_s: float = 0.3,
        steps: StepModel = STEPS,
        accident: Callable[[], bool] = lambda: False,
        cap: int | None = None,
        streams: bool = False,
    ) -> None:
        self.controller = ConcurrencyController(cap=cap)
        self.peak = self.refused = 0
        self.changes: list[tuple[float, Change]] = []
        self._telemetry, self._max_queued, self._retry_after_s = telemetry, max_queued, retry_after_s
        self._accident = accident
        self._batch = Batch(slots=slots, steps=steps)
        self._pending = list(enumerate(work))[::-1]
        self._flying: dict[int, float] = {}
        self._rows: dict[int, tuple[Job, int]] = {}
        self._streams = streams
        self._sounding: tuple[int, Job | None, float | None] | None = None  # row, its job, seconds to its first byte
        self._events: list[tuple[float, int, Callable[..., None], Any]] = []
        self._numbers = itertools.count()
        self._now = 0.0
        self._at(0.0, self._look, None)
        self._send()
        done = 0
        while done < len(work):
            end = self._batch.next_end()
            if end is not None and (not self._events or end <= self._events[0][0]):
                self._now = max(self._now, end)
                for job in self._batch.advance(self._now):
                    done += 1
                    self._answer(job)
            else:
                self._now, _, act, what = heapq.heappop(self._events)
                act(what)
            self._hear_first_byte()
            self._send()
        self.makespan = self._now

    def _at(self, when: float, act: Callable[..., None], what: Any) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), act, what))

    def _note(self, change: Change | None) -> None:
        if change is not None:
            self.changes.append((self._now, change))

    def _send(self) -> None:
        while self._pending and len(self._flying) < self.controller.limit:
            row = self._pending.pop()
            self._flying[row[0]] = self._now
            if self._streams and self.controller.wants_sounding(len(self._flying), self._now):
                self.controller.sounding_sent()
                self._sounding = (row[0], None, None)
            self._at(self._now + LAG_S, self._arrive, row)
        self.peak = max(self.peak, len(self._flying))

    def _arrive(self, row: tuple[int, int]) -> None:
        if self._batch.waiting >= self._max_queued or self._accident():
            self.refused += 1
            del self._flying[row[0]]
            if self._sounding is not None and self._sounding[0] == row[0]:
                self._sounding = None
                self.controller.sounding_failed()
            self._note(self.controller.refused(len(self._flying), self._now))
            self._at(self._now + self._retry_after_s, self._pending.append, row)
            return
        job = Job(row[1])
        self._rows[id(job)] = (job, row[0])
        if self._sounding is not None and self._sounding[0] == row[0]:
            self._sounding = (row[0], job, None)
        self._batch.submit(job, self._now)

    def _hear_first_byte(self) -> None:
        if self._sounding is None:
            return
        row, job, first_s = self._sounding
        if first_s is None and job is not None and job.state is JobState.RUNNING:
            sent = self._flying[row]
            self._sounding = (row, job, self._now - sent + LAG_S)
            self._note(self.controller.first_byte(sent, self._now + LAG_S))

    def _answer(self, job: Job) -> None:
        row = self._rows.pop(id(job))[1]
        sent = self._flying.pop(row)
        if self._sounding is not None and self._sounding[0] == row:
            latency_s = self._now - sent + LAG_S
            first_s = latency_s if self._sounding[2] is None else self._sounding[2]
            self._sounding = None
            self._note(self.controller.sounding_ended(first_s, latency_s, job.tokens, self._now))
        self._note(self.controller.answered(self._now - sent + LAG_S, job.tokens, sent, self._now))

    def _look(self, _: None) -> None:
        pause = CALM_S
        if self._telemetry:
            load = Load(running=self._batch.running, waiting=self._batch.waiting)
            change = self.controller.loaded(load, len(self._flying), self._now)
            self._note(change)
            used_up = not self.controller.is_full and len(self._flying) >= self.controller.limit
            pause = EAGER_S if used_up or change is not None else CALM_S
        self._at(self._now + pause, self._look, None)


def work_for(slots: int) -> list[int]:
    return lengths(max(400, 12 * slots))


SLOTS = [8, 40, 64, 100, 256, 700, 1024]


@pytest.mark.parametrize("slots", SLOTS)
def test_with_telemetry_the_batch_is_full_and_the_queue_short(slots: int) -> None:
    work = work_for(slots)
    found = Simulation(work, slots)
    assert found.makespan <= 1.01 * ideal_makespan(work, slots, STEPS)
    assert found.peak <= max(START, 2.3 * slots)
    assert found.controller.limit <= 1.45 * slots + 2


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("telemetry", [True, False])
def test_a_server_that_refuses_beyond_a_queue_of_32_is_sent_what_it_holds(slots: int, telemetry: bool) -> None:
    work = work_for(slots)
    found = Simulation(work, slots, telemetry=telemetry, max_queued=32, retry_after_s=1.0)
    ideal = ideal_makespan(work, slots, STEPS)
    assert found.makespan <= (1.03 if telemetry else 1.2) * ideal
    assert found.refused <= 2 * slots + 32 + 0.02 * len(work)
    assert len(found.changes) < 40


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("sigma", [0.4, 0.8])
def test_without_telemetry_latency_tells_the_same_only_later(slots: int, sigma: float) -> None:
    work = lengths(max(400, 12 * slots), sigma=sigma)
    found = Simulation(work, slots, telemetry=False)
    assert found.makespan <= 1.25 * ideal_makespan(work, slots, STEPS)
    assert found.peak <= max(32, 2.3 * slots)


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("max_queued", [math.inf, 32])
def test_without_telemetry_a_stream_now_and_then_tells_it_soon(slots: int, max_queued: float) -> None:
    work = work_for(slots)
    found = Simulation(work, slots, telemetry=False, streams=True, max_queued=max_queued, retry_after_s=1.0)
    assert found.makespan <= 1.03 * ideal_makespan(work, slots, STEPS)
    assert found.peak <= 2.3 * slots


def test_answers_of_one_length_tell_it_too() -> None:
    found = Simulation([200] * 2000, 100, telemetry=False)
    assert found.makespan <= 1.35 * ideal_makespan([200] * 2000, 100, STEPS)
    assert found.controller.limit <= 400


@pytest.mark.parametrize("telemetry", [True, False])
def test_a_server_that_only_slows_down_is_not_sent_ever_more(telemetry: bool) -> None:
    slow = StepModel(base_s=0.01, per_running_s=5e-6, knee=64)
    work = lengths(3000)
    found = Simulation(work, 4096, telemetry=telemetry, steps=slow)
    assert found.makespan <= 1.35 * ideal_makespan(work, 64, STEPS)
    if not telemetry:
        assert found.peak <= 4 * 64


@given(st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_a_few_refusals_by_accident_cost_nothing(seed: int) -> None:
    dice = random.Random(seed)
    work = work_for(256)
    found = Simulation(work, 256, accident=lambda: dice.random() < 0.02)
    assert found.makespan <= 1.03 * ideal_makespan(work, 256, STEPS)


def test_a_storm_of_refusals_is_one_change() -> None:
    controller = ConcurrencyController(start=512)
    reported = [controller.refused(others, 1.0 + 0.0001 * (511 - others)) for others in range(511, 99, -1)]
    assert set(reported) == {None}
    assert controller.limit == 100
    assert controller.answered(1.0, 10, 0.5, 5.0) == Change(512, 100, "refused: it holds 100")


def test_what_was_refused_once_is_tried_again_only_later_and_little_by_little() -> None:
    controller = ConcurrencyController(start=512)
    for others in range(511, 99, -1):
        controller.refused(others, 0.0)
    limits = []
    for tick in range(1, 40):
        controller.loaded(Load(running=controller.limit, waiting=0), controller.limit, float(tick))
        limits.append(controller.limit)
    assert set(limits[:9]) == {100}
    steps = [after / before for before, after in itertools.pairwise(limits) if after != before]
    assert steps[0] <= 1.06
    assert max(steps) <= 2


def test_a_server_shared_with_others_is_not_taken_over() -> None:
    controller = ConcurrencyController(start=100)
    for tick in range(10):  # 200 run, half of them ours, and more wait than need be
        controller.loaded(Load(running=200, waiting=100), 150, float(tick))
    assert controller.limit == 113  # our half and its reserve


def test_many_preemptions_lower_the_limit_to_what_the_cache_holds() -> None:
    controller = ConcurrencyController(start=256)
    controller.loaded(Load(running=216, waiting=40, preemptions=10), 256, 1.0)
    change = controller.loaded(Load(running=200, waiting=56, preemptions=60), 256, 1.5)
    assert change == Change(256, 200, "KV cache is short: 60 preemptions")
    assert controller.loaded(Load(running=200, waiting=0, preemptions=60), 200, 2.0) is None


@pytest.mark.parametrize("cap", [1, 5, 64])
def test_a_cap_set_by_hand_is_kept(cap: int) -> None:
    assert Simulation(lengths(300), 256, cap=cap).peak <= cap


observation = st.one_of(
    st.tuples(st.just("loaded"), st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 1000)),
    st.tuples(st.just("refused"), st.integers(0, 10_000)),
    st.tuples(st.just("answered"), st.floats(0, 1e6), st.none() | st.integers(0, 1 << 40), st.floats(0, 100)),
)


@given(st.lists(st.tuples(st.floats(0, 3), observation), max_size=200), st.integers(1, 300))
def test_whatever_it_observes_the_limit_stays_in_its_bounds(seen: list[Any], cap: int) -> None:
    controller, now = ConcurrencyController(cap=cap), 0.0
    for passed, (kind, *what) in seen:
        now += passed
        if kind == "loaded":
            running, waiting, preemptions = what
            in_flight = random.Random(running).randint(0, cap)
            change = controller.loaded(Load(running=running, waiting=waiting, preemptions=preemptions), in_flight, now)
        elif kind == "refused":
            change = controller.refused(what[0], now)
        else:
            change = controller.answered(what[0], what[1], now - what[2], now)
        assert 1 <= controller.limit <= min(cap, MOST)
        if change is not None:
            assert change.old != change.new == controller.limit
            assert change.reason
