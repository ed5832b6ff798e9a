"""How many tokens requests took in an earlier run, by request hash, in 16 bytes a row."""

import array
import bisect
import struct
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clients.errors import SettingsError, StorageError
from clients.storage import Folder, refusals

#: What a run leaves in its output folder; a folder without it is one of a ledger, whose segments say the same.
_RESULTS = "results.parquet"

_COLUMNS = ["request_hash", "completion_tokens"]

#: Rows that are read at once.
_ROWS = 8192


class KnownLengths:
    """Looks up lengths.

    Args:
        location: Path or URI of a results.parquet, of the folder it lies in, or of a ledger.

    Raises:
        SettingsError: there is nothing to read.
        StorageError: it cannot be read.
    """

    def __init__(self, location: str) -> None:
        keys, tokens = array.array("Q"), array.array("q")
        for folder, name in _files(location):
            for hashes, counts in _batches(folder, name):
                keys.extend(array.array("Q", hashes)[0::2])
                tokens.extend(counts)
        order = pc.sort_indices(_column(keys, pa.uint64()))
        self._keys = memoryview(_column(keys, pa.uint64()).take(order).buffers()[1])[: 8 * len(keys)].cast("Q")
        self._tokens = memoryview(_column(tokens, pa.int64()).take(order).buffers()[1])[: 8 * len(keys)].cast("q")

    def __len__(self) -> int:
        return len(self._keys)

    def tokens(self, request_hash: str) -> int | None:
        """Completion tokens that the request took; None when no answer to it is known."""
        (key,) = struct.unpack("=Q", bytes.fromhex(request_hash[:16]))
        at = bisect.bisect_left(self._keys, key)
        return self._tokens[at] if at < len(self._keys) and self._keys[at] == key else None


def _files(location: str) -> list[tuple[Folder, str]]:
    if location.endswith(".parquet"):
        parent, _, name = location.rpartition("/")
        return [(Folder(parent or "."), name)]
    folder = Folder(location)
    names = [name for name in folder.names() if name.endswith(".parquet")]
    if not names:
        raise SettingsError(f"lengths_from: {location} holds no results. Give the results.parquet of an earlier run.")
    return [(folder, name) for name in ([_RESULTS] if _RESULTS in names else names)]


def _batches(folder: Folder, name: str) -> Iterator[tuple[bytes, list[int]]]:
    """The hashes, 16 bytes each, and the lengths of some rows at a time, of those that have both."""
    where = f"{folder.location}/{name}"
    with folder.open(name) as stream, refusals("read", where):
        try:
            with pq.ParquetFile(stream, pre_buffer=False) as file:
                for batch in file.iter_batches(_ROWS, columns=_COLUMNS, use_threads=False):
                    hashed = pc.equal(pc.binary_length(batch[_COLUMNS[0]]), 32)
                    rows = batch.filter(pc.and_(hashed, pc.greater(batch[_COLUMNS[1]], 0)))
                    yield bytes.fromhex("".join(rows[_COLUMNS[0]].to_pylist())), rows[_COLUMNS[1]].to_pylist()
        except (KeyError, ValueError, pa.ArrowException) as error:
            found = " ".join(str(error).split())
            raise StorageError(f"cannot read {where}: {found}. Give the results.parquet of an earlier run.") from error


def _column(numbers: "array.array[int]", kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])
