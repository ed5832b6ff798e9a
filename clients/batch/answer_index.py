"""Earlier answers by request hash, for a million of them in some 33 MB."""

import array
import bisect
from typing import Any, cast

import pyarrow as pa

from clients.records import Outcome


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
        self._entries: Any = array.array("q")
        self._rows: Any = array.array("q")
        self._outcomes: dict[int, Outcome] = {}
        self._taken = bytearray()
        self._next: dict[int, int] = {}  # of a run of equal hashes: its start, and the first that may not be taken

    def add(self, entry: int, request_hash: str, row: int, outcome: Outcome) -> None:
        """Take in an answer.

        Args:
            entry: What the ledger calls it.
            request_hash: 32 hex digits.
            row: The row it was given to.
            outcome: How that row ended.
        """
        self._keys.append(int(request_hash[:16], 16))
        self._rest.append(int(request_hash[16:], 16))
        self._entries.append(entry)
        self._rows.append(row)
        if outcome is not Outcome.OK:
            self._outcomes[entry] = outcome

    def freeze(self) -> None:
        """Sort, so that `take` can search."""
        types = {"_keys": pa.uint64(), "_rest": pa.uint64(), "_entries": pa.int64(), "_rows": pa.int64()}
        table = pa.table({name: pa.array(getattr(self, name), type=kind) for name, kind in types.items()})
        table = table.sort_by(
            [(name, "ascending") for name in ("_keys", "_rest", "_rows", "_entries")]
        ).combine_chunks()
        for name, kind in types.items():
            column = table[name].combine_chunks()
            size = 8 * len(column)
            code: Any = "Q" if kind == pa.uint64() else "q"
            data = memoryview(column.buffers()[1])[column.offset * 8 : column.offset * 8 + size] if size else b""
            setattr(self, name, memoryview(data).cast("B").cast(code))
        self._taken = bytearray(len(self._keys))

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
        key, rest = int(request_hash[:16], 16), int(request_hash[16:], 16)
        start = bisect.bisect_left(self._keys, key)
        end = bisect.bisect_right(self._keys, key, start)
        return bisect.bisect_left(self._rest, rest, start, end), bisect.bisect_right(self._rest, rest, start, end)

    def outcome(self, entry: int) -> Outcome:
        """How the row ended that an entry was given to."""
        return self._outcomes.get(entry, Outcome.OK)
