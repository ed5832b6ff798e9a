"""When the model was busy, from any number of requests in any order, in flat memory."""

import bisect
import itertools
import math
from collections.abc import Iterable
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

#: With no request in flight for longer than this, nobody was asking: an interrupted run, or rows kept from an earlier
#: one. Shorter silences (backoff, a replica coming back) are part of the run's time.
PAUSE_S = 60
_PAUSE_US = PAUSE_S * 1_000_000
_MAX_STRETCHES = 1000
_MAX_SLOTS = 2048
_MAX_BUCKETS = 120
#: The first slots are 2**14 us wide (16 ms), enough to draw a run of one second.
_FIRST_SHIFT = 14


class Pause(TypedDict):
    """A gap left out of the time axis: where (seconds of active time before it) and how long it was."""

    at_s: float
    seconds: float


class Throughput(TypedDict):
    """What finished when: consecutive buckets of active time, at most 120, and the longest pauses between them."""

    seconds: list[float]
    rows: list[int]
    output_tokens: list[int]
    pauses: list[Pause]


class Timeline:
    """The union of the requests' intervals, and what finished in each slot of time.

    Slots start narrow and double in width whenever there are too many, so neither start nor end need be known.
    """

    def __init__(self) -> None:
        self._stretches: list[tuple[int, int]] = []
        self._shift = _FIRST_SHIFT
        self._slots: dict[int, tuple[int, int]] = {}

    def add(self, started_us: pa.Array, finished_us: pa.Array, tokens: pa.Array) -> None:
        """Count in requests: int64 microseconds since 1970, and output tokens where known. The times have no nulls.

        Args:
            started_us: When each was sent: int64, microseconds since 1970, no nulls.
            finished_us: When each was answered, alike.
            tokens: Output tokens; null where not known.
        """
        if not len(started_us):
            return
        self._add_stretches(started_us, finished_us)
        slots = pc.shift_right(finished_us, self._shift)
        self._put((slot, 1, count) for slot, count in zip(slots.to_pylist(), tokens.to_pylist(), strict=True))
        while len(self._slots) > _MAX_SLOTS:
            finer, self._slots = self._slots, {}
            self._shift += 1
            self._put((slot >> 1, rows, count) for slot, (rows, count) in finer.items())

    def _put(self, found: Iterable[tuple[int, int, int | None]]) -> None:
        for slot, rows, tokens in found:
            had, tokens_before = self._slots.get(slot, (0, 0))
            self._slots[slot] = (had + rows, tokens_before + (tokens or 0))

    def _add_stretches(self, started_us: pa.Array, finished_us: pa.Array) -> None:
        order = pc.sort_indices(started_us)
        starts = started_us.take(order)
        reach = pc.cumulative_max(finished_us.take(order))
        gaps = pc.subtract(starts.slice(1), reach.slice(0, len(reach) - 1))
        breaks = pc.indices_nonzero(pc.greater(gaps, _PAUSE_US))
        firsts = [starts[0].as_py(), *starts.take(pc.add(breaks, 1)).to_pylist()]
        lasts = [*reach.take(breaks).to_pylist(), reach[-1].as_py()]
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self._stretches, *zip(firsts, lasts, strict=True)]):
            if merged and first - merged[-1][1] <= _PAUSE_US:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        self._stretches = _at_most(_MAX_STRETCHES, merged)

    @property
    def bounds_us(self) -> tuple[int, int] | None:
        """First start and last finish in microseconds since 1970, pauses included; None before any request."""
        return (self._stretches[0][0], self._stretches[-1][1]) if self._stretches else None

    @property
    def active_s(self) -> float:
        """Seconds from first start to last finish, without the pauses."""
        return sum(last - first for first, last in self._stretches) / 1e6

    def throughput(self) -> Throughput:
        """Buckets of equal active time (to within one slot); their rows and tokens add up to the totals."""
        firsts, bases, total = self._active_slots()
        rows_total = sum(rows for rows, _ in self._slots.values())
        number = min(_MAX_BUCKETS, total, max(8, 2 * math.isqrt(rows_total)))
        rows, tokens = [0] * number, [0] * number
        for slot, (some_rows, some_tokens) in self._slots.items():
            stretch = bisect.bisect_right(firsts, slot) - 1
            bucket = (bases[stretch] + slot - firsts[stretch]) * number // total
            rows[bucket] += some_rows
            tokens[bucket] += some_tokens
        marks = [-(-index * total // number) for index in range(number + 1)] if number else []
        seconds = [self.active_s * (after - before) / total for before, after in itertools.pairwise(marks)]
        return Throughput(seconds=seconds, rows=rows, output_tokens=tokens, pauses=self._pauses())

    def _active_slots(self) -> tuple[list[int], list[int], int]:
        """Each stretch's first slot, its position among the active slots, and how many active slots there are."""
        firsts: list[int] = []
        bases: list[int] = []
        total, next_free = 0, None
        for start, end in self._stretches:
            first, last = start >> self._shift, end >> self._shift
            first = first if next_free is None else max(first, next_free)
            if first <= last:
                firsts.append(first)
                bases.append(total)
                total += last - first + 1
                next_free = last + 1
        return firsts, bases, total

    def _pauses(self) -> list[Pause]:
        active, found = 0, []
        for (start, end), (after, _) in itertools.pairwise(self._stretches):
            active += end - start
            found.append(Pause(at_s=active / 1e6, seconds=(after - end) / 1e6))
        longest = sorted(found, key=lambda pause: -pause["seconds"])[:5]
        return sorted(longest, key=lambda pause: pause["at_s"])


def _at_most(limit: int, stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Bridge the shortest pauses until few enough stretches remain."""
    surplus = len(stretches) - limit
    if surplus <= 0:
        return stretches
    by_gap = sorted(range(1, len(stretches)), key=lambda index: stretches[index][0] - stretches[index - 1][1])
    bridged = set(by_gap[:surplus])
    kept: list[tuple[int, int]] = []
    for index, (first, last) in enumerate(stretches):
        if index in bridged:
            kept[-1] = (kept[-1][0], last)
        else:
            kept.append((first, last))
    return kept
