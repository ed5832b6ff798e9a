"""Where the time of a run goes, from samples taken while it runs; `clients.results.verdict` says what it means."""

import dataclasses
from collections import defaultdict

#: Share of a processor core from which on the client itself is the brake.
_BUSY = 0.85


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

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each state."""
        return {state: round(spent, 2) for state, spent in self._seconds.items()}


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
