"""Rows that ask the same as an earlier row of the shard: the answer to the first of them is the answer to all."""

import array

from clients.records import ChatRequest

#: Places in the table for each row; the emptier the table, the shorter a search.
_PLACES = 4 / 3


class Duplicates:
    """Finds them, in 16 bytes a row.

    A hash table with open addressing over the first half of each request's hash. Two different requests with equal
    halves, which a million rows hold with a chance of 3 in 10^8, would be taken for one here; the results are joined by
    the whole hash, so the second of them would stand there as missing and be sent by the next run.

    Args:
        first_row: Number of the shard's first row.
        rows: Rows in the shard.
    """

    def __init__(self, *, first_row: int, rows: int) -> None:
        self._first_row = first_row
        self._size = int(rows * _PLACES) + 1
        self._keys = array.array("Q", bytes(8)) * self._size
        self._positions = array.array("I", bytes(4)) * self._size  # 1 + position in the shard; 0 is an empty place

    def leader(self, request: ChatRequest) -> int | None:
        """The first row that asks the same; None when this one is it."""
        key = int(request.request_hash[:16], 16)
        at = key % self._size
        while position := self._positions[at]:
            if self._keys[at] == key:
                return self._first_row + position - 1
            at = at + 1 if at + 1 < self._size else 0
        self._keys[at] = key
        self._positions[at] = request.row - self._first_row + 1
        return None
