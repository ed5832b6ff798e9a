"""What held a run back, from samples taken while it ran: the client, the server, a limit set by hand, or the tail."""

import dataclasses
from collections import defaultdict
from typing import Any

#: Share of a processor core from which on the client itself is the brake.
_BUSY = 0.85

_ADVICE = {
    "server-bound": "The servers' batches were full: more replicas or GPUs would make it faster.",
    "client-bound": "The client used a whole processor core: more shards would make it faster.",
    "cap-bound": "The limit set by --concurrency held it back: leave it out, or raise it.",
    "tail-bound": "It waited for a few long answers: a lower max_tokens, fewer shards or longest first would help.",
    "ramp-bound": "It ended before it found out what the servers can do: nothing to change for so few rows.",
    "waiting": "It waited for a server that was down or failing: look at the server's log.",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One moment of a run.

    Attributes:
        seconds: How long it stands for.
        in_flight: Requests under way.
        limit: How many there might have been.
        peak: Most requests under way so far.
        is_full: Whether the servers were known to be full.
        at_cap: Whether a limit set by hand was reached.
        rows_left: Whether rows were left to send.
        cpu: Processor seconds of this process by seconds.
    """

    seconds: float
    in_flight: int
    limit: int
    peak: int
    is_full: bool
    at_cap: bool
    rows_left: bool
    cpu: float


class Verdict:
    """Adds samples up."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, sample: Sample) -> None:
        """Take in one moment."""
        self._seconds[_state(sample)] += sample.seconds

    def result(self) -> dict[str, Any]:
        """What took most of the time, what to do about it, and the seconds spent in each state."""
        total = sum(self._seconds.values())
        kind = max(self._seconds, key=lambda state: self._seconds[state]) if total else "ramp-bound"
        if total and kind == "server-bound" and self._seconds["tail-bound"] > 0.25 * total:
            kind = "tail-bound"
        seconds = {state: round(spent, 2) for state, spent in self._seconds.items()}
        return {"kind": kind, "advice": _ADVICE[kind], "seconds": seconds}


def _state(sample: Sample) -> str:
    if sample.limit == 0:
        return "waiting"
    if sample.cpu > _BUSY:
        return "client-bound"
    if not sample.rows_left and sample.in_flight < 0.5 * sample.peak:
        return "tail-bound"
    if sample.is_full:
        return "server-bound"
    return "cap-bound" if sample.at_cap else "ramp-bound"
