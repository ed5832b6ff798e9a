"""The limit by latency alone, for a server that shows no telemetry. Pure.

vLLM queues without bound and never refuses by default, so a limit that learns from errors alone would climb for ever.
A queue shows as waiting time that does not depend on an answer's length; a server that only gets slower shows as
throughput that no longer grows with the limit. Each takes an answer's time to see, so a limit is found much later than
with telemetry.
"""

import math

from clients.batch.latency import fit

#: Share of their time that answers should wait: the reserve for the time between an answer and the next request; below
#: the second share there is none, above the third it is time to send less.
_WAIT_SHARE, _TOO_SHORT, _TOO_LONG = 0.1, 0.03, 0.25

#: Share of a limit's growth that throughput must grow by; with less the server is taken to be full.
_LEAST_GAIN = 0.15

#: Growth that brings nothing is tried again after so many judgements, doubled each time.
_PAUSE, _MAX_PAUSE = 2, 32


class BlindPolicy:
    """Judges a limit by the answers to requests that were sent under it.

    Args:
        reserve: Share by which a limit may exceed what the server seems to run.

    Attributes:
        is_full: Whether the server was found to have all it can work on.
    """

    def __init__(self, *, reserve: float) -> None:
        self._reserve = reserve
        self.is_full = False
        self._samples: list[tuple[float, float]] = []
        self._quickest_wait_s = math.inf
        self._proven = 0  # the largest limit at which answers did not wait
        self._before: tuple[int, float] | None = None  # the limit judged last, and its throughput
        self._pause, self._paused = _PAUSE, 0

    def forget(self) -> None:
        """The limit has changed: what came until now tells nothing of the new one."""
        self._samples = []

    def judge(self, latency_s: float, tokens: int | None, limit: int) -> tuple[int, str] | None:
        """Take in an answer; once there are enough of them, say what the limit should be, and why."""
        self._samples.append((float(tokens or 1), latency_s))
        if len(self._samples) < max(8, min(64, limit // 3)):
            return None
        found, self._samples = fit(self._samples), []
        self._quickest_wait_s = min(self._quickest_wait_s, found.wait_s)
        waited_s = max(0.0, found.wait_s - self._quickest_wait_s)
        share = waited_s / found.mean_s if found.per_token_s and found.mean_s else 0.0
        reason = f"answers wait {share:.0%} of their time"
        if share > _TOO_LONG:
            self.is_full = True
            runs = limit * (1 - share)
            if self._proven >= limit:
                self._proven = 0  # it holds less than it did
            return max(int(runs / (1 - _WAIT_SHARE)) + 1, self._proven), reason
        if share <= _WAIT_SHARE:
            self._proven = max(self._proven, limit)
        pace_s = max(1e-9, found.per_token_s or found.mean_s)
        throughput = limit * (1 - share) / pace_s
        before, self._before = self._before, (limit, throughput)
        if before is not None and before[0] < limit and share < _WAIT_SHARE:
            needed = 1 + _LEAST_GAIN * (limit / before[0] - 1)
            if throughput < needed * before[1]:
                self.is_full = True
                self._pause, self._paused = min(_MAX_PAUSE, 2 * self._pause), self._pause
                return before[0], f"{limit} at once bring no more than {before[0]}"
        if not self.is_full:
            return 2 * limit, reason
        if self._paused:
            self._paused -= 1
            return None
        return (limit + max(1, limit // 8), reason) if share < _TOO_SHORT else None
