"""A slow run writes a small segment every second; the next one makes few of the many before it reads them.

What was made says in its metadata which segments it stands for. As soon as it is there, these are not read any more,
whether they have been removed yet or not: the process may be killed between any two steps.
"""

import itertools
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import orjson

from clients.storage import Folder

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

#: Segments with fewer rows are small; so many of them in a row are worth it.
_SMALL_ROWS, _WORTH = 256, 32

#: What is made of them ends at one of these.
_MADE_ROWS, _MADE_BYTES = 4096, 4 << 20

_SUFFIX = ".parquet"
_MADE_SUFFIX = ".made.parquet"
_REPLACES_KEY = b"kubeflow_llm_inference.replaces"


def segments_of(folder: Folder) -> list[str]:
    """The names of a folder's segments, oldest first, without those that another stands for.

    Raises:
        StorageError: the folder cannot be listed, or a segment not be read.
    """
    names = [name for name in folder.names() if name.endswith(_SUFFIX)]
    replaced = _replaced(folder, names)
    return [name for name in names if name not in replaced]


def groups_of(folder: Folder, name: str) -> list[tuple[Folder, str]]:
    """The row groups of a finished part, each as the name of a segment: a part may be too large to be held.

    Raises:
        StorageError: it cannot be read.
    """
    return [(folder, f"{name}#{group}") for group in range(_metadata(folder, name).num_row_groups)]


def compact(home: Folder) -> None:
    """Make few segments of many small ones. Only for the process that holds the lock of the folder.

    An object store has no locks, so there it does nothing: another pod may be reading what it would remove.

    Raises:
        StorageError: a segment cannot be read, written or removed.
    """
    if home.local_path is None:
        return
    names = [name for name in home.names() if name.endswith(_SUFFIX)]
    replaced = _replaced(home, names)
    _remove(home, replaced.intersection(names))
    if len(names) < _WORTH:
        return
    kept = (name for name in names if name not in replaced)
    for small, run in itertools.groupby(kept, lambda name: _is_small(home, name)):
        group = list(run)
        if small and len(group) >= _WORTH:
            for parts, table in _tables(home, group):
                _replace(home, parts, table)


def _replace(home: Folder, parts: list[str], table: "pa.Table") -> None:
    """Keep the answers of some segments in one, which takes the place of the last of them."""
    from clients.batch.segments import encode  # late, as below: in a first run there is nothing to read, nor Arrow
    from clients.results.schema import COLUMNS

    made = f"{parts[-1][:6]}-{secrets.token_hex(4)}{_MADE_SUFFIX}"
    home.write(made, encode(table.replace_schema_metadata({**COLUMNS.metadata, _REPLACES_KEY: orjson.dumps(parts)})))
    _remove(home, set(parts))


def _tables(home: Folder, names: list[str]) -> "Iterator[tuple[list[str], pa.Table]]":
    import pyarrow as pa

    from clients.batch.segments import read_segment
    from clients.results.schema import COLUMNS

    parts: list[str] = []
    tables: list[pa.Table] = []
    for name in names:
        parts.append(name)
        tables.append(read_segment(home, name, COLUMNS))
        if sum(map(len, tables)) >= _MADE_ROWS or sum(table.nbytes for table in tables) >= _MADE_BYTES:
            yield parts, pa.concat_tables(tables)
            parts, tables = [], []
    if len(parts) > 1:
        yield parts, pa.concat_tables(tables)


def _remove(home: Folder, names: set[str]) -> None:
    for name in sorted(names):
        home.remove(name)


def _replaced(folder: Folder, names: list[str]) -> set[str]:
    found: set[str] = set()
    for name in names:
        if name.endswith(_MADE_SUFFIX):
            parts = orjson.loads(_metadata(folder, name).metadata.get(_REPLACES_KEY, b"[]"))
            found.update(name[: name.rfind("/") + 1] + part for part in parts)
    return found


def _is_small(folder: Folder, name: str) -> bool:
    return name[:6].isdigit() and bool(_metadata(folder, name).num_rows < _SMALL_ROWS)


def _metadata(folder: Folder, name: str) -> "pq.FileMetaData":
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clients.batch.segments import unreadable

    with folder.open(name) as stream:
        try:
            return pq.read_metadata(stream)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise unreadable(folder, name, error) from error
