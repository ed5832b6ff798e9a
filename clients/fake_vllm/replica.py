"""One replica: its engine on the real clock, its connections, its life as a process, its metrics."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from clients.fake_vllm.batching import Batch, Job

#: Seconds that a timer waits at least: event loops count in milliseconds, and ends within one are handled together.
_TICK_S = 0.001


class Cut(Protocol):
    """A connection, as far as a replica knows it."""

    def lose(self) -> None:
        """End it with RST; what it waits for is lost."""


class Replica:
    """A vLLM process in simulated time.

    Args:
        index: From 0.
        new_batch: Makes an empty engine, given seconds on the clock.

    Attributes:
        alive: Whether the process runs.
        started_at: Seconds since 1970; distinct for every replica and every life.
        peak: Most requests running and waiting.
        prompt_tokens: Of the requests completed in this life.
        finished: How many of them by finish_reason.
    """

    def __init__(self, index: int, new_batch: Callable[[float], Batch]) -> None:
        self.index = index
        self.connections: set[Cut] = set()
        self.peak = 0
        self._new_batch = new_batch
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._slot_seconds = 0.0
        self.start()

    def start(self) -> None:
        """Begin a life as a new process."""
        self.alive = True
        self.started_at = round(time.time() + self.index * 0.01, 2)
        self.prompt_tokens = 0
        self.finished: Counter[str] = Counter()
        self._batch = self._new_batch(time.monotonic())

    def die(self) -> None:
        """Lose everything at once."""
        self.alive = False
        for connection in list(self.connections):
            connection.lose()
        self.connections.clear()
        self._slot_seconds += self._batch.slot_seconds
        self._batch = self._new_batch(time.monotonic())
        self._arm()

    def submit(self, job: Job) -> None:
        """Generate; `job.done` is called when it is complete."""
        self._batch.submit(job, time.monotonic())
        self.peak = max(self.peak, self._batch.running + self._batch.waiting)
        self._arm()
        self._tell_started()

    def cancel(self, job: Job) -> None:
        """Stop generating, and free the slot."""
        self._batch.cancel(job, time.monotonic())
        self._arm()
        self._tell_started()

    def load(self) -> tuple[int, int]:
        """How many requests run, and how many wait, now."""
        self.advance()
        return self._batch.running, self._batch.waiting

    def advance(self) -> None:
        """Hand over what is complete by now."""
        for job in self._batch.advance(time.monotonic()):
            job.done()
        self._arm()
        self._tell_started()

    def slot_seconds(self) -> float:
        """Sum over time of the slots in use, since the last `reset`."""
        self.advance()
        return self._slot_seconds + self._batch.slot_seconds

    def reset(self) -> None:
        """Count the peak and the slots anew."""
        self.advance()
        self.peak = self._batch.running + self._batch.waiting
        self._slot_seconds = -self._batch.slot_seconds

    def metrics(self, model: str, slots: int, *, anonymous: bool = False) -> str:
        """What Prometheus would read; `anonymous` leaves out when the process began.

        Args:
            model: Label of the numbers.
            slots: Requests that run at once, for the share of the KV cache.
            anonymous: Leave out when the process began.
        """
        running, waiting = self.load()
        label = f'engine="0",model_name="{model}"'
        counts: list[tuple[str, str, float]] = [
            ("num_requests_running", "gauge", running),
            ("num_requests_waiting", "gauge", waiting),
            ("kv_cache_usage_perc", "gauge", running / slots),
            ("num_preemptions_total", "counter", 0),
            ("prompt_tokens_total", "counter", self.prompt_tokens),
            ("generation_tokens_total", "counter", round(self._batch.tokens)),
        ]
        lines = []
        for name, kind, value in counts:
            family = name.removesuffix("_total") if kind == "counter" else name
            lines += [f"# TYPE vllm:{family} {kind}", f"vllm:{name}{{{label}}} {_number(value)}"]
        lines.append("# TYPE vllm:request_success counter")
        for reason in ("stop", "length"):
            count = _number(self.finished[reason])
            lines.append(
                f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="{model}"}} {count}'
            )
        if not anonymous:
            began = _number(self.started_at)
            lines += ["# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {began}"]
        return "\n".join(lines) + "\n"

    # ------------------------------------------------------------------------ inside

    def _arm(self) -> None:
        """See to it that someone looks when the next job is complete; too early does no harm."""
        end = self._batch.next_end()
        if end is None or end >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = end
        self._timer = self._loop.call_later(max(end - time.monotonic(), _TICK_S), self._wake)

    def _tell_started(self) -> None:
        for job in self._batch.take_started():
            if job.started is not None:
                job.started()

    def _wake(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.advance()


def _number(value: float) -> str:
    """A number as the Prometheus client for Python writes it: 3.0, 1.764054e+09."""
    text = repr(float(value))
    point = text.find(".")
    if "e" in text or point <= 6:
        return text
    mantissa = f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0").rstrip(".")
    return f"{mantissa}e+{point - 1:02d}"
