"""Percentiles and histograms of any number of values in flat memory."""

import math
from collections.abc import Iterable
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

#: Up to this many values are kept as they are, so that small runs are exact.
EXACT_VALUES = 4096
#: Then values within a quarter of a per cent of each other share a bucket: 231 x 4 of them a decade.
_LOG_WIDTH = math.log(1.0025)
#: Smaller values share the lowest bucket; a microsecond is below what a clock around a request can tell.
_LOWEST = 1e-6
_BINS = 32


class Spread(TypedDict):
    """What a distribution looks like; percentiles are nearest-rank, exact up to `EXACT_VALUES`, then within 0.25 %."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Histogram(TypedDict):
    """Bars: `counts[i]` values from `edges[i]` up to `edges[i + 1]`, the outer two with what lies beyond them.

    `scale`, linear or log, is how to draw the axis.
    """

    scale: str
    edges: list[float]
    counts: list[int]


class Distribution:
    """Collects non-negative numbers.

    Each bucket keeps the sum of its values too, so a bucket with a single distinct value gives it back exactly.
    """

    def __init__(self) -> None:
        self._exact: list[float] = []
        self._buckets: dict[int, tuple[int, float]] = {}
        self._count = 0
        self._total: float = 0
        self._max: float = 0

    def add(self, values: pa.Array) -> None:
        """Count in finite values >= 0, without nulls."""
        if not len(values):
            return
        self._count += len(values)
        self._total += pc.sum(values).as_py()
        self._max = max(self._max, pc.max(values).as_py())
        if not self._buckets and self._count <= EXACT_VALUES:
            self._exact += values.to_pylist()
            return
        if self._exact:
            kept, self._exact = self._exact, []
            self._fold(pa.array(kept, pa.float64()))
        self._fold(values.cast(pa.float64()))

    def _fold(self, values: pa.Array) -> None:
        keys = pc.floor(pc.divide(pc.ln(pc.max_element_wise(values, _LOWEST)), _LOG_WIDTH)).cast(pa.int32())
        for key, value in zip(keys.to_pylist(), values.to_pylist(), strict=True):
            number, total = self._buckets.get(key, (0, 0.0))
            self._buckets[key] = (number + 1, total + value)

    def _points(self) -> list[tuple[float, int]]:
        if self._buckets:
            return [(total / number, number) for _, (number, total) in sorted(self._buckets.items())]
        return [(value, 1) for value in sorted(self._exact)]

    def spread(self) -> Spread | None:
        """Mean, percentiles and maximum, or None when nothing was counted."""
        if not self._count:
            return None
        ranks = [-(-self._count * percent // 100) for percent in (50, 90, 95, 99)]
        found: list[float] = []
        seen = 0
        for value, number in self._points():
            seen += number
            while len(found) < len(ranks) and seen >= ranks[len(found)]:
                found.append(value)
        p50, p90, p95, p99 = found
        mean = self._total / self._count
        return Spread(count=self._count, mean=mean, p50=p50, p90=p90, p95=p95, p99=p99, max=self._max)

    def histogram(self, *, whole: bool = False) -> Histogram | None:
        """About 30 bars, on a log axis when the values span more than a factor of ten; None when nothing was counted.

        Args:
            whole: The values are whole numbers, so no edge falls between two of them.
        """
        points = self._points()
        if not points:
            return None
        lowest = next((value for value, _ in points if value > 0), 0.0)
        spread_out = 0 < lowest * 10 < self._max and not (whole and self._max <= _BINS)
        edges = _log_edges(points, whole=whole) if spread_out else _linear_edges(points[0][0], self._max, whole=whole)
        return Histogram(scale="log" if spread_out else "linear", edges=edges, counts=_fill(points, edges))


def nice_step(span: float, parts: int, *, whole: bool = False) -> float:
    """The smallest of 1, 2, 5, 10, 20 ... (and 0.5, 0.2 ... unless whole) of which `parts` cover the span.

    Args:
        span: What is to be covered.
        parts: At most so many steps.
        whole: Whether half a unit makes no sense.
    """
    raw = max(span / parts, 1e-9, whole * 1.0)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= raw * 0.999999)


def _linear_edges(low: float, high: float, *, whole: bool) -> list[float]:
    step = nice_step(max(high - low, high / 1000) or 1, _BINS, whole=whole)
    first = math.floor(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 2)]


def _log_edges(points: list[tuple[float, int]], *, whole: bool) -> list[float]:
    """Equal ratios from the smallest value above (nearly) zero to just above the largest."""
    top = points[-1][0] * 1.003
    low = max(next((value for value, _ in points if value > 0), 1.0), top / 1e6, 1.0 if whole else 0.001)
    ratio = max(top / low, 1.1) ** (1 / _BINS)
    edges = [low * ratio**index for index in range(_BINS + 1)]
    return sorted({float(math.ceil(edge)) for edge in edges}) if whole else edges


def _fill(points: Iterable[tuple[float, int]], edges: list[float]) -> list[int]:
    counts = [0] * (len(edges) - 1)
    index = 0
    for value, number in points:
        while index < len(counts) - 1 and value >= edges[index + 1]:
            index += 1
        counts[index] += number
    return counts
