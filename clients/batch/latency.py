"""How long answers take, learnt from those that came: for the limit, for stuck requests, for the deadline."""

import collections
import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """Latency as a straight line over the answer's length: `wait_s + per_token_s * tokens`.

    Attributes:
        wait_s: What an answer without a token would take: the queue and the prompt; at least 0.
        per_token_s: Seconds a token; 0.0 when the lengths do not differ enough to tell.
        mean_s: Mean latency.
    """

    wait_s: float
    per_token_s: float
    mean_s: float


def fit(samples: "collections.abc.Iterable[tuple[float, float]]") -> Fit:
    """The line of least squares through (tokens, seconds) pairs, of which there is at least one."""
    pairs = list(samples)
    count = len(pairs)
    mean_x = sum(x for x, _ in pairs) / count
    mean_y = sum(y for _, y in pairs) / count
    spread = sum((x - mean_x) ** 2 for x, _ in pairs)
    if spread <= 0.0025 * count * mean_x**2:  # lengths within some 5 % of each other tell nothing
        return Fit(0.0, 0.0, mean_y)
    slope = max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in pairs) / spread)
    return Fit(max(0.0, mean_y - slope * mean_x), slope, mean_y)


class Latencies:
    """Quantiles of the latest latencies.

    Args:
        size: How many are remembered.
    """

    def __init__(self, size: int = 2048) -> None:
        self._recent: collections.deque[float] = collections.deque(maxlen=size)
        self._sorted: list[float] = []
        self._sorted_at = 0
        self.count = 0

    def add(self, seconds: float) -> None:
        """Take in one latency."""
        self._recent.append(seconds)
        self.count += 1

    def quantile(self, share: float) -> float:
        """The latency that `share` (0 to 1) of the remembered ones do not exceed; 0.0 without any."""
        if self._sorted_at != self.count:  # asked for some ten times a second: sorted then, not at each of the answers
            self._sorted, self._sorted_at = sorted(self._recent), self.count
        if not self._sorted:
            return 0.0
        return self._sorted[min(len(self._sorted) - 1, int(share * len(self._sorted)))]
