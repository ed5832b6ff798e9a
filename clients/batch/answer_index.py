"""Earlier answers by request hash, for a million of them in some 33 MB."""

import array
import bisect
import struct
from typing import TYPE_CHECKING, Any, cast

from clients.records import Outcome

if TYPE_CHECKING:
    import pyarrow as pa

#: An entry says where an answer is and how it ended: segment, position in it (28 bits), outcome (4 bits).
_OUTCOMES = tuple(Outcome)
_SEGMENT_BITS, _OUTCOME_BITS = 32, 4

#: Rows that ended so are looked at again by the same command: nothing is known about them yet.
_NOT_DONE = (_OUTCOMES.index(Outcome.FAILED), _OUTCOMES.index(Outcome.INVALID))


class AnswerIndex:
    """Finds an answer of an earlier run by its request's hash, and gives each answer away only once.

    First every `add`, then `freeze`, then `take`. 33 bytes an answer; nothing at all in a first run.

    Args:
        share: Give an answer to every row that asks for the same, instead.
    """

    def __init__(self, *, share: bool = False) -> None:
        self._share = share
        self._keys: Any = array.array("Q")  # first half of each hash, sorted by `freeze`
        self._rest: Any = array.array("Q")  # second half
        self._rows: Any = array.array("q")
        self._entries: Any = array.array("q")
        self._taken = bytearray()
        self._next: dict[int, int] = {}  # of a run of equal hashes: its start, and the first that may not be taken

    def add(self, segment: int, answers: "pa.Table") -> None:
        """Take in the answers of a segment: its columns row, request_hash and outcome.

        Raises:
            ValueError: one of them is none that a ledger wrote.
        """
        import pyarrow as pa  # late, as below: a first run sends its first request without Arrow
        import pyarrow.compute as pc

        codes = pc.index_in(answers["outcome"], value_set=pa.array(_OUTCOMES, pa.string()))
        if codes.null_count:
            raise ValueError("it holds outcomes that are none")
        kept = pc.indices_nonzero(pc.invert(pc.is_in(codes, value_set=pa.array(_NOT_DONE, codes.type))))
        hashes = bytes.fromhex("".join(answers["request_hash"].take(kept).to_pylist()))
        if len(hashes) != 16 * len(kept):
            raise ValueError("it holds hashes that are none")
        halves = array.array("Q", hashes)
        places = pc.shift_left(kept.cast(pa.int64()), pa.scalar(_OUTCOME_BITS, pa.int64()))
        entries = pc.add(pc.add(places, codes.take(kept).cast(pa.int64())), segment << _SEGMENT_BITS)
        self._keys.extend(halves[0::2])
        self._rest.extend(halves[1::2])
        self._rows.extend(answers["row"].take(kept).to_pylist())
        self._entries.extend(entries.to_pylist())

    def freeze(self) -> None:
        """Sort, so that `take` can search."""
        if not self._keys:
            return
        import pyarrow as pa
        import pyarrow.compute as pc

        names = ("_keys", "_rest", "_rows", "_entries")
        order = pc.sort_indices(
            pa.RecordBatch.from_arrays([self._column(name) for name in names], names=list(names)),
            sort_keys=[(name, "ascending") for name in names],
        )
        for name in names:  # one after the other: the memory of one is free before the next is sorted
            found = self._column(name).take(order)
            setattr(self, name, memoryview(found.buffers()[1])[: 8 * len(found)].cast(getattr(self, name).typecode))
        self._taken = bytearray(len(self._keys))

    def _column(self, name: str) -> "pa.Array":
        import pyarrow as pa

        numbers = getattr(self, name)
        kind = pa.uint64() if numbers.typecode == "Q" else pa.int64()
        return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])

    def take(self, request_hash: str, row: int) -> int | None:
        """The entry of an answer that nobody has taken: the newest of the same row, else one of the first row."""
        start, end = self._run(request_hash)
        at = bisect.bisect_right(self._rows, row, start, end) - 1
        if at < start or self._rows[at] != row or (self._taken[at] and not self._share):
            if self._share:
                return cast(int, self._entries[start]) if start < end else None
            at = self._next.get(start, start) if start < end else end
            while at < end and self._taken[at]:
                at += 1
            if end - start > 1:
                self._next[start] = at
            if at == end:
                return None
        self._taken[at] = 1
        return cast(int, self._entries[at])

    def _run(self, request_hash: str) -> tuple[int, int]:
        """Where the answers to one request lie, sorted by row."""
        if not self._keys:
            return 0, 0
        key, rest = struct.unpack("=QQ", bytes.fromhex(request_hash))
        start = bisect.bisect_left(self._keys, key)
        end = bisect.bisect_right(self._keys, key, start)
        return bisect.bisect_left(self._rest, rest, start, end), bisect.bisect_right(self._rest, rest, start, end)


def outcome_of(entry: int) -> Outcome:
    """How the row ended that an answer was given to."""
    return _OUTCOMES[entry & ((1 << _OUTCOME_BITS) - 1)]


def segment_of(entry: int) -> int:
    """The number of the segment that holds an answer."""
    return entry >> _SEGMENT_BITS


def entries_of(segment: int) -> tuple[int, int]:
    """The first number that an entry of a segment can have, and the first of the next segment."""
    return segment << _SEGMENT_BITS, (segment + 1) << _SEGMENT_BITS


def positions_of(entries: "pa.Array") -> "pa.Array":
    """Where in their segment answers are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    low = pc.bit_wise_and(entries, pa.scalar((1 << _SEGMENT_BITS) - 1, pa.int64()))
    return pc.shift_right(low, pa.scalar(_OUTCOME_BITS, pa.int64()))
