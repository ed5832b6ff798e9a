"""Join the shards' parts, in order and in flat memory, into results, rejects and the summary."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clients.errors import StorageError
from clients.records import Outcome
from clients.results.assemble import RowGroups, open_writer
from clients.results.schema import COLUMNS, RUN_KEY, SETTINGS_KEY
from clients.results.summary import Summary, SummaryCollector
from clients.storage import refusals

#: Number of a part's first row (0 when it has none), its path, the open file.
_Part = tuple[int, Path, pq.ParquetFile]

#: Columns that may be long; the summary looks at none of them.
_LONG = ("content", "reasoning", "tool_calls", "raw_response")
_COUNTED = [name for name in COLUMNS.names if name not in _LONG]

#: Rows that are read at once.
_BATCH_ROWS = 2048


def merge_parts(parts: list[Path], results: Path, rejects: Path) -> Summary:
    """Write all rows to `results`, those that did not end `ok` to `rejects` too, and count them.

    A single part is itself the results: it is not written anew, but given the other name too.

    Args:
        parts: The shards' files in any order; each holds consecutive rows, and all have the same columns.
        results: Parquet file to write.
        rejects: Parquet file to write.

    Raises:
        StorageError: a part cannot be read, or a file not be written.
    """
    with contextlib.ExitStack() as opened:
        ordered = []
        for path in parts:
            ordered.append(part := _open(path))
            opened.callback(part[2].close)
        ordered.sort(key=lambda part: part[0])
        summary = _count(ordered, rejects)
        if len(parts) == 1:
            _link(parts[0], results)
        else:
            _join(ordered, results)
    return summary


def _count(parts: list[_Part], rejects: Path) -> Summary:
    """Count every row, and write those that did not end `ok`; what is long is read of no others."""
    collector = SummaryCollector()
    with refusals("write", rejects), open_writer(rejects, _schema(parts)) as writer:
        groups = RowGroups(writer)
        for _, path, file in parts:
            for group in range(file.num_row_groups):
                all_ok = True
                for batch in _batches(path, file, group, _COUNTED):
                    collector.add(batch)
                    all_ok = all_ok and pc.all(pc.equal(batch["outcome"], Outcome.OK.value)).as_py()
                for batch in () if all_ok else _batches(path, file, group, None):
                    rejected = batch.filter(pc.not_equal(batch["outcome"], Outcome.OK.value))
                    if rejected.num_rows:
                        groups.add(pa.Table.from_batches([rejected]))
        groups.end()
    runs = [orjson.loads(file.metadata.metadata.get(RUN_KEY, b"{}")) for _, _, file in parts]
    return collector.summary(settings=orjson.loads(_schema(parts).metadata[SETTINGS_KEY]), runs=runs)


def _join(parts: list[_Part], results: Path) -> None:
    with refusals("write", results), open_writer(results, _schema(parts)) as writer:
        for _, path, file in parts:
            for group in range(file.num_row_groups):
                groups = RowGroups(writer)
                for batch in _batches(path, file, group, None):
                    groups.add(pa.Table.from_batches([batch]))
                groups.end()


def _link(part: Path, results: Path) -> None:
    with refusals("write", results):
        results.unlink(missing_ok=True)
        try:
            os.link(part, results)
        except OSError:  # another disk, or one without links
            shutil.copyfile(part, results)


def _schema(parts: list[_Part]) -> pa.Schema:
    """The columns and settings of all parts; of a single one also how its run went."""
    schema = parts[0][2].schema_arrow
    metadata = schema.metadata
    dropped = RUN_KEY if len(parts) > 1 else b""
    return schema.with_metadata({key: metadata[key] for key in metadata if key != dropped})


def _batches(path: Path, file: pq.ParquetFile, group: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    with refusals("read", path):
        yield from file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)


def _open(path: Path) -> _Part:
    try:
        with refusals("read", path):
            file = pq.ParquetFile(path, pre_buffer=False)
            first = next(file.iter_batches(batch_size=1, columns=["row"]), None)
    except pa.ArrowInvalid as error:
        raise StorageError(f"cannot read {path}: {error}. Run the same command again to write it anew.") from error
    return (first["row"][0].as_py() if first else 0), path, file
