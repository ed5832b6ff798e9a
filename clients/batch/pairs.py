"""Pairs of numbers, many of them, in a file: a process that keeps one for each row stays as small as it was."""

import array
import bisect
from typing import TYPE_CHECKING

from clients.results.scratch import Scratch

if TYPE_CHECKING:
    import pyarrow as pa

#: Pairs that are held in memory, and then sorted and written as one run.
_RUN = 1 << 15


class Pairs:
    """Collects pairs and finds them by their first number."""

    def __init__(self) -> None:
        self._keys, self._values = array.array("q"), array.array("q")
        self._runs: list[_Run] = []
        self._file: Scratch | None = None

    def add(self, key: int, value: int) -> None:
        """Take in one pair."""
        self._keys.append(key)
        self._values.append(value)
        if len(self._keys) == _RUN:
            self._write()

    def between(self, low: int, high: int) -> "tuple[pa.Array, pa.Array]":
        """The pairs with `low <= key < high`, keys and values, in no particular order.

        Raises:
            StorageError: the temporary folder is full.
        """
        import pyarrow as pa  # late, as below: collecting a few needs no Arrow

        self._write()
        keys, values = [_int64(b"")], [_int64(b"")]
        for run in self._runs:
            if run.lowest < high and low <= run.highest:
                start, end = bisect.bisect_left(run, low), bisect.bisect_left(run, high)
                keys.append(_int64(run.read(start, end)))
                values.append(_int64(run.read(len(run) + start, len(run) + end)))
        return pa.concat_arrays(keys), pa.concat_arrays(values)

    def _write(self) -> None:
        if not self._keys:
            return
        import pyarrow.compute as pc

        keys, values = _int64(self._keys), _int64(self._values)
        self._keys, self._values = array.array("q"), array.array("q")
        order = pc.sort_indices(keys)
        self._file = self._file or Scratch()
        start = self._file.size
        for column in (keys, values):
            self._file.append(memoryview(column.take(order).buffers()[1])[: 8 * len(keys)])
        self._runs.append(_Run(self._file, start, len(keys)))


class _Run:
    """Sorted keys in a file, and behind them their values."""

    def __init__(self, file: Scratch, start: int, count: int) -> None:
        self._file, self._start, self._count = file, start, count
        self.lowest, self.highest = self[0], self[count - 1]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: int) -> int:
        return int.from_bytes(self.read(at, at + 1), "little", signed=True)

    def read(self, start: int, end: int) -> bytes:
        """Some numbers as they lie in the file."""
        return self._file.read(self._start + 8 * start, 8 * (end - start))


def _int64(numbers: "array.array[int] | bytes") -> "pa.Array":
    import pyarrow as pa

    data = pa.py_buffer(numbers)
    return pa.Array.from_buffers(pa.int64(), data.size // 8, [None, data])
