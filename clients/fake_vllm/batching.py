"""Continuous batching in simulated time: who runs, who waits, and when each answer is complete.

A decode step gives every running request one token. Tokens are not counted one by one: a virtual clock runs at one unit
a step, a request that starts at V with L tokens ends at V + L, and only starts and ends are events. The cost is
O(log n) a request, whatever its length. Nothing here reads a clock; seconds come in as arguments.
"""

import dataclasses
import enum
import heapq
from collections import deque
from collections.abc import Callable, Iterable


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepModel:
    """How long one decode step takes.

    Attributes:
        base_s: Seconds of a step, whatever runs.
        per_running_s: Seconds more for each running request.
        knee: Beyond so many running requests a step grows in proportion to them, so that throughput no longer does;
            0 for no such point.
    """

    base_s: float
    per_running_s: float
    knee: int = 0

    def step_s(self, running: int) -> float:
        """Seconds of a step while `running` requests run."""
        if self.knee and running > self.knee:
            return (self.base_s + self.per_running_s * self.knee) * running / self.knee
        return self.base_s + self.per_running_s * running


class JobState(enum.Enum):
    """Where a job is."""

    NEW = enum.auto()
    WAITING = enum.auto()
    RUNNING = enum.auto()
    DONE = enum.auto()
    GONE = enum.auto()


def _nobody() -> None:
    """Nobody waits for this job."""


@dataclasses.dataclass(slots=True, eq=False)
class Job:
    """One generation.

    Attributes:
        tokens: How many it gives.
        done: For the owner, to be called when it is complete; the batch itself never calls it.
        started: The same, to be called when it has a slot.
        state: Kept by the batch.
    """

    tokens: int
    done: Callable[[], None] = _nobody
    started: Callable[[], None] | None = None
    state: JobState = JobState.NEW


class Batch:
    """The engine of one replica. Time never runs backwards between calls.

    Args:
        slots: Most requests that run at once; the others wait in the order in which they came.
        steps: The time of a step.
        prefill_s: Seconds for which each start holds up everyone.
        now: Seconds on the caller's clock.

    Attributes:
        running: Requests that have a slot.
        waiting: Requests in the queue.
        tokens: Tokens generated so far, by requests that were aborted too.
        slot_seconds: Sum over time of the slots in use.
    """

    def __init__(self, *, slots: int, steps: StepModel, prefill_s: float = 0.0, now: float = 0.0) -> None:
        self.running = 0
        self.waiting = 0
        self.tokens = 0.0
        self.slot_seconds = 0.0
        self._slots = slots
        self._step_s = [steps.step_s(running) for running in range(slots + 1)]
        self._prefill_s = prefill_s
        self._settled_at = now
        self._clock = 0.0  # virtual: tokens that a request running since the start would have
        self._ends: list[tuple[float, int, Job]] = []
        self._starts = 0
        self._queue: deque[Job] = deque()
        self._done: list[Job] = []
        self._started: list[Job] = []

    def submit(self, job: Job, now: float) -> None:
        """Give `job` a slot, or a place at the end of the queue."""
        self._run_to(now)
        if self.running < self._slots:
            self._settle(now)
            self._start(job)
        else:
            job.state = JobState.WAITING
            self._queue.append(job)
            self.waiting += 1

    def cancel(self, job: Job, now: float) -> None:
        """Abort `job`, wherever it is; its slot goes to the next in the queue. One that is done stays done."""
        self._run_to(now)
        if job.state is JobState.RUNNING:
            self._settle(now)
            self.running -= 1
            job.state = JobState.GONE
            self._admit()
        elif job.state is JobState.WAITING:
            self.waiting -= 1
            job.state = JobState.GONE

    def advance(self, now: float) -> list[Job]:
        """Run until `now`.

        Returns:
            The jobs that became complete since the last call, in the order in which they did.
        """
        self._run_to(now)
        self._settle(now)
        done, self._done = self._done, []
        return done

    def take_started(self) -> list[Job]:
        """The jobs with a `started` that were given a slot since the last call."""
        started, self._started = self._started, []
        return started

    def next_end(self) -> float | None:
        """When the next job will be complete, in seconds on the caller's clock, if nothing else happens before."""
        if self._done:
            return self._settled_at
        ends = self._ends
        while ends and ends[0][2].state is JobState.GONE:
            heapq.heappop(ends)
        return self._time_of(ends[0][0]) if ends else None

    # ------------------------------------------------------------------------ inside

    def _time_of(self, end: float) -> float:
        return self._settled_at + (end - self._clock) * self._step_s[self.running]

    def _run_to(self, now: float) -> None:
        """Every end until `now` at its own time, and what starts in its place at that very time."""
        ends = self._ends
        while ends:
            end, _, job = ends[0]
            if job.state is JobState.GONE:
                heapq.heappop(ends)
                continue
            when = self._time_of(end)
            if when > now:
                return
            heapq.heappop(ends)
            self._settle(when)
            self._clock = end
            self.running -= 1
            job.state = JobState.DONE
            self._done.append(job)
            self._admit()

    def _settle(self, now: float) -> None:
        """Move the virtual clock to `now`, at the pace of those who run."""
        passed = now - self._settled_at
        if passed <= 0.0:  # within a prefill
            return
        steps = passed / self._step_s[self.running]
        self._clock += steps
        self.tokens += steps * self.running
        self.slot_seconds += passed * self.running
        self._settled_at = now

    def _admit(self) -> None:
        while self._queue and self.running < self._slots:
            job = self._queue.popleft()
            if job.state is JobState.WAITING:
                self.waiting -= 1
                self._start(job)

    def _start(self, job: Job) -> None:
        self.running += 1
        self._starts += 1
        job.state = JobState.RUNNING
        if job.started is not None:
            self._started.append(job)
        if self._prefill_s:
            self._settled_at += self._prefill_s
            self.slot_seconds += self._prefill_s * self.running
        heapq.heappush(self._ends, (self._clock + job.tokens, self._starts, job))


def ideal_makespan(
    lengths: Iterable[int],
    slots: int,
    steps: StepModel,
    *,
    replicas: int = 1,
    longest_first: bool = False,
    prefill_s: float = 0.0,
) -> float:
    """Seconds that the work takes when every row is on offer at once.

    Args:
        lengths: Tokens of each row, in the order in which they are served.
        slots: Slots of one replica.
        steps: The time of a step.
        replicas: Equal replicas that share one queue; what no balancing in front of them can beat.
        longest_first: Serve by length, as one would who knew it.
        prefill_s: Seconds for which each start holds up its replica.
    """
    pending = iter(sorted(lengths, reverse=True) if longest_first else lengths)
    batches = [Batch(slots=slots, steps=steps, prefill_s=prefill_s) for _ in range(replicas)]
    for _ in range(slots):
        for batch in batches:
            if (tokens := next(pending, None)) is not None:
                batch.submit(Job(tokens), 0.0)
    calendar = [(end, number) for number, batch in enumerate(batches) if (end := batch.next_end()) is not None]
    heapq.heapify(calendar)
    now = 0.0
    while calendar:
        now, number = heapq.heappop(calendar)
        batch = batches[number]
        for _ in batch.advance(now):
            if (tokens := next(pending, None)) is not None:
                batch.submit(Job(tokens), now)
        if (end := batch.next_end()) is not None:
            heapq.heappush(calendar, (end, number))
    return now
