"""How many tokens requests took in an earlier run, by request hash, in 16 bytes a row."""

import array
import bisect

import pyarrow as pa
import pyarrow.parquet as pq

from clients.errors import SettingsError, StorageError
from clients.storage import Folder, refusals

#: What a run leaves in its output folder; a folder without it is one of a ledger, whose segments say the same.
_RESULTS = "results.parquet"

_COLUMNS = ["request_hash", "completion_tokens"]


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
            with folder.open(name) as file, refusals("read", f"{folder.location}/{name}"):
                for hashes, counts in _batches(file, f"{folder.location}/{name}"):
                    for text, count in zip(hashes, counts, strict=True):
                        if text and count:
                            keys.append(int(text[:16], 16))
                            tokens.append(count)
        table = pa.table({"key": pa.array(keys, pa.uint64()), "tokens": pa.array(tokens, pa.int64())})
        table = table.sort_by("key")
        self._keys: array.array[int] = array.array("Q", table["key"].to_numpy().tobytes())
        self._tokens: array.array[int] = array.array("q", table["tokens"].to_numpy().tobytes())

    def __len__(self) -> int:
        return len(self._keys)

    def tokens(self, request_hash: str) -> int | None:
        """Completion tokens that the request took; None when no answer to it is known."""
        key = int(request_hash[:16], 16)
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


def _batches(file: pa.NativeFile, where: str) -> list[tuple[list[str | None], list[int | None]]]:
    try:
        batches = pq.ParquetFile(file).iter_batches(columns=_COLUMNS)
        return [tuple(batch[name].to_pylist() for name in _COLUMNS) for batch in batches]
    except (KeyError, pa.ArrowException) as error:
        found = " ".join(str(error).split())
        raise StorageError(f"cannot read {where}: {found}. Give the results.parquet of an earlier run.") from error
