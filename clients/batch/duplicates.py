"""Rows that ask the same as an earlier row of the shard: the answer to the first of them is the answer to all."""

from clients.records import ChatRequest
from clients.results.scratch import Scratch

#: Places in the table for each row; the emptier the table, the shorter a search.
_PLACES = 4 / 3

#: A place: the request's hash, then 1 + the position in the shard of the first and of the last row that ask for it.
_HASH, _PLACE = 16, 24


class Duplicates:
    """Finds them, with a table in a file of 32 bytes a row: open addressing by the hash, a bit or two of memory.

    Args:
        first_row: Number of the shard's first row.
        rows: Rows in the shard.
    """

    def __init__(self, *, first_row: int, rows: int) -> None:
        self._first_row = first_row
        self._size = int(rows * _PLACES) + 1
        self._file = Scratch()
        self._filled = bytearray(self._size // 8 + 1)  # a bit for each place, which saves most reads

    def earlier(self, request: ChatRequest) -> tuple[int, int] | None:
        """The first row and the last one before this that ask the same; None when this one is the first.

        Raises:
            StorageError: the temporary folder is full.
        """
        key = bytes.fromhex(request.request_hash)
        own = (request.row - self._first_row + 1).to_bytes(4, "little")
        at = int.from_bytes(key[:8], "little") % self._size
        while self._filled[at >> 3] & 1 << (at & 7):
            found = self._file.read(at * _PLACE, _PLACE)
            if found[:_HASH] == key:
                self._file.write(own, at * _PLACE + _HASH + 4)
                return self._row(found[_HASH : _HASH + 4]), self._row(found[_HASH + 4 :])
            at = at + 1 if at + 1 < self._size else 0
        self._filled[at >> 3] |= 1 << (at & 7)
        self._file.write(key + own + own, at * _PLACE)
        return None

    def _row(self, place: bytes) -> int:
        return self._first_row + int.from_bytes(place, "little") - 1
