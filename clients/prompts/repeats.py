"""How many of very many keys have been seen before, in flat memory: what does not fit goes to a temporary file."""

import array
import bisect
import contextlib
import tempfile
from typing import Any, Self

from clients.storage import refusals

#: Keys held in memory; then they are sorted and written as one block.
_BLOCK = 1 << 16

#: The keys are counted in so many portions, by their highest bits: at 50 million keys 200,000 (1.6 MB) at a time.
_PORTIONS = 256
_SHIFT = 64 - 8

_BYTES = 8


class Repeats:
    """Counts keys that are equal to an earlier one. Two keys of 64 bits that differ are never taken for equal.

    A context manager: its temporary file, 8 bytes a key and none below 65,536 keys, is gone at the end.
    """

    def __init__(self) -> None:
        self._keys: array.array[int] = array.array("Q")
        self._blocks: list[array.array[int]] = []  # of each block, where its portions begin, and its end
        self._file: Any = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, key: int) -> None:
        """Take one key, 0 to 2**64 - 1, evenly distributed as a hash is.

        Raises:
            StorageError: there is no room for the temporary file.
        """
        self._keys.append(key)
        if len(self._keys) == _BLOCK:
            self._spill()

    def count(self) -> int:
        """How many of the keys so far are equal to an earlier one."""
        if not self._blocks:
            return _repeated(self._keys)
        self._spill()
        with refusals("read", tempfile.gettempdir()):
            return sum(self._count_portion(portion) for portion in range(_PORTIONS))

    def _spill(self) -> None:
        self._keys = array.array("Q", sorted(self._keys))
        first = self._blocks[-1][-1] if self._blocks else 0
        starts = (bisect.bisect_left(self._keys, portion << _SHIFT) for portion in range(_PORTIONS))
        self._blocks.append(array.array("Q", [first + start for start in (*starts, len(self._keys))]))
        with refusals("write", tempfile.gettempdir()):
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="kllm-keys-")  # noqa: SIM115  (closed by __exit__)
                self._open.callback(self._file.close)
            self._file.write(self._keys)
            self._file.flush()
        self._keys = array.array("Q")

    def _count_portion(self, portion: int) -> int:
        pieces = []
        for block in self._blocks:
            self._file.seek(block[portion] * _BYTES)
            pieces.append(self._file.read((block[portion + 1] - block[portion]) * _BYTES))
        return _repeated(array.array("Q", b"".join(pieces)))


def _repeated(keys: "array.array[int]") -> int:
    return len(keys) - len(set(keys))
