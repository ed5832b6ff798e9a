"""Brings committed answers, which come in any order, into windows of consecutive rows, in bounded memory."""

import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clients.results.schema import COLUMNS
from clients.results.scratch import Scratch

#: Bytes of answers that are sorted at once, and bytes of sorted answers that are held before they go to a file.
_SORT_BYTES, _HELD_BYTES = 2 << 20, 8 << 20

_ROW, _ATTEMPTS = COLUMNS.get_field_index("row"), COLUMNS.get_field_index("attempts")

#: Of the rows from one number to below another: those that ask the same as a later row, and that row of each.
Joined = Callable[[int, int], tuple[pa.Array, pa.Array]]


class Gather:
    """Hands out windows one after the other, and reads only as many answers ahead as that takes.

    Args:
        answers: See `Ledger.rows_by_segment`.
        joined: See `Ledger.joined`.
        first_row: Number of the first row.
        rows: Rows in a window.
        folder: Where a file for answers that come much too early may lie.
    """

    def __init__(
        self,
        answers: Iterable[tuple[pa.Table, pa.Array]],
        joined: Joined,
        *,
        first_row: int,
        rows: int,
        folder: Path,
    ) -> None:
        self._answers, self._joined = iter(answers), joined
        self._first_row, self._rows = first_row, rows
        self._all_from = first_row  # every answer to a lower row has been read
        self._unsorted: list[pa.Table] = []
        self._own, self._shared = _Pieces(folder), _Pieces(folder)

    def window(self, at: int) -> pa.Table:
        """The answers to the rows of a window, those that are shared first; called with 0, 1, 2 ..."""
        low = self._first_row + at * self._rows
        while self._all_from < low + self._rows:
            self._read()
        self._sort()
        shared, own = self._shared.take(at), self._own.take(at)
        copies = self._share(pa.concat_tables([shared, own]), low, low + self._rows)
        return pa.concat_tables([shared, copies, own])

    def _read(self) -> None:
        found = next(self._answers, None)
        if found is None:
            self._all_from = 1 << 63
            return
        table, numbers = found
        self._all_from = numbers[0].as_py()
        self._unsorted.append(table.set_column(_ROW, COLUMNS.field(_ROW), numbers))
        if sum(table.nbytes for table in self._unsorted) >= _SORT_BYTES:
            self._sort()

    def _sort(self) -> None:
        """Cut what was read into windows."""
        if self._unsorted:
            table = pa.concat_tables(self._unsorted)
            self._unsorted.clear()
            self._own.add(table.take(pc.sort_indices(table["row"])), self._window_of)

    def _window_of(self, row: int) -> int:
        return (row - self._first_row) // self._rows

    def _share(self, answers: pa.Table, low: int, high: int) -> pa.Table:
        """The answers of rows that ask the same as an earlier row of the window; those of later windows are kept."""
        source: dict[int, int] = {}
        earlier, rows = (numbers.to_pylist() for numbers in self._joined(low, high))
        for row, before in sorted(zip(rows, earlier, strict=True)):
            source[row] = source.get(before, before)
        if not source:
            return COLUMNS.empty_table()
        numbers = pa.array(source, pa.int64())
        at = pc.index_in(pa.array(source.values(), pa.int64()), value_set=answers["row"])
        copies = answers.take(at.drop_null())
        copies = copies.set_column(_ROW, COLUMNS.field(_ROW), numbers.filter(at.is_valid()))
        copies = copies.set_column(
            _ATTEMPTS, COLUMNS.field(_ATTEMPTS), pa.repeat(pa.scalar(0, pa.int32()), len(copies))
        )
        inside = len(copies.filter(pc.less(copies["row"], high)))
        self._shared.add(copies.slice(inside), self._window_of)
        return copies.slice(0, inside)


class _Pieces:
    """Sorted answers by window, written to a file when they are many."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[int, list[pa.Buffer]] = {}
        self._bytes = 0
        self._file: Scratch | None = None
        self._written: dict[int, array.array[int]] = {}  # of each window: where a piece begins, its size, and so on

    def add(self, table: pa.Table, window_of: Callable[[int], int]) -> None:
        """Take in answers that are sorted by row."""
        if not len(table):
            return
        (batch,) = table.combine_chunks().to_batches()
        windows = array.array("q", map(window_of, batch["row"].to_pylist()))
        start = 0
        for end in range(1, len(windows) + 1):
            if end == len(windows) or windows[end] != windows[start]:
                piece = batch.slice(start, end - start).serialize()
                self._held.setdefault(windows[start], []).append(piece)
                self._bytes += piece.size
                start = end
        if self._bytes > _HELD_BYTES:
            self._write()

    def _write(self) -> None:
        self._file = self._file or Scratch(self._folder)
        for window, pieces in self._held.items():
            places = self._written.setdefault(window, array.array("q"))
            for piece in pieces:
                places.extend((self._file.append(memoryview(piece)), piece.size))
        self._held, self._bytes = {}, 0

    def take(self, window: int) -> pa.Table:
        """The answers of one window, in the order in which they came."""
        places: Any = self._written.pop(window, ())
        pieces: list[Any] = []
        if self._file is not None:
            pieces += map(self._file.read, places[0::2], places[1::2])
        held = self._held.pop(window, [])
        self._bytes -= sum(piece.size for piece in held)
        return pa.Table.from_batches(
            [pa.ipc.read_record_batch(pa.py_buffer(piece), COLUMNS) for piece in [*pieces, *held]], COLUMNS
        )
