"""Join the shards' parts, in order and in flat memory, into results, rejects and the summary."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clients.errors import StorageError
from clients.records import Outcome
from clients.results.assemble import RowGroups, open_writer
from clients.results.schema import COLUMNS, RUN_KEY, SETTINGS_KEY, TRACE_URL_KEY
from clients.results.summary import Summary, SummaryCollector
from clients.storage import Folder, refusals

#: A part: a file of this machine, or one in a folder, which may be in an object store.
Source = Path | tuple[Folder, str]

#: Number of a part's first row (0 when it has none), its name for messages, the open file.
_Part = tuple[int, str, pq.ParquetFile]

#: Columns that may be long; the summary looks at none of them.
_LONG = ("content", "reasoning", "tool_calls", "raw_response")
_COUNTED = [name for name in COLUMNS.names if name not in _LONG]

#: Rows that are read at once.
_BATCH_ROWS = 2048


def merge_parts(parts: Sequence[Source], results: Path | None, rejects: Path) -> Summary:
    """Write all rows to `results`, those that did not end `ok` to `rejects` too, and count them.

    A single part is itself the results: it is not written anew, but given the other name too.

    Args:
        parts: The shards' files in any order; each holds consecutive rows, and all have the same columns.
        results: Parquet file to write; None leaves the rows where they are.
        rejects: Parquet file to write.

    Raises:
        StorageError: a part cannot be read, or a file not be written.
    """
    with contextlib.ExitStack() as opened:
        ordered = sorted((_open(source, opened) for source in parts), key=lambda part: part[0])
        summary = _count(ordered, rejects)
        if results is not None and len(parts) == 1:
            _link(parts[0], results)
        elif results is not None:
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


def schema_of(part: Source) -> pa.Schema:
    """The columns of a part."""
    with contextlib.ExitStack() as opened:
        return _open(part, opened)[2].schema_arrow


def _link(part: Source, results: Path) -> None:
    if not isinstance(part, Path):
        folder, name = part
        folder.fetch(name, results)
        return
    with refusals("write", results):
        results.unlink(missing_ok=True)
        try:
            os.link(part, results)
        except OSError:  # another disk, or one without links
            shutil.copyfile(part, results)


def _schema(parts: list[_Part]) -> pa.Schema:
    """The columns and settings of all parts, and where a trace is; of a single part also how its run went."""
    schema = parts[0][2].schema_arrow
    urls = [found for _, _, file in parts if (found := file.schema_arrow.metadata.get(TRACE_URL_KEY))]
    metadata = {**schema.metadata, **({TRACE_URL_KEY: urls[0]} if urls else {})}
    dropped = RUN_KEY if len(parts) > 1 else b""
    return schema.with_metadata({key: metadata[key] for key in metadata if key != dropped})


def _batches(path: str, file: pq.ParquetFile, group: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    with refusals("read", path):
        yield from file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)


def _open(source: Source, opened: contextlib.ExitStack) -> _Part:
    folder, name = (Folder(str(source.parent)), source.name) if isinstance(source, Path) else source
    where = f"{folder.location}/{name}"
    try:
        with refusals("read", where):
            stream = opened.enter_context(folder.open(name))
            file = opened.enter_context(pq.ParquetFile(stream, pre_buffer=folder.local_path is None))
            first = next(file.iter_batches(batch_size=1, columns=["row"]), None)
    except pa.ArrowInvalid as error:
        raise StorageError(f"cannot read {where}: {error}. Run the same command again to write it anew.") from error
    return (first["row"][0].as_py() if first else 0), where, file
