"""Join the shards' parts, in order and in flat memory, into results, rejects and the summary."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clients.errors import StorageError
from clients.records import Outcome
from clients.results.assemble import WINDOW_ROWS
from clients.results.schema import RUN_KEY, SETTINGS_KEY
from clients.results.summary import Summary, SummaryCollector
from clients.storage import refusals

#: Number of a part's first row (0 when it has none), its path, the open file.
_Part = tuple[int, Path, pq.ParquetFile]


def merge_parts(parts: list[Path], results: Path, rejects: Path) -> Summary:
    """Write all rows to `results`, those that did not end `ok` to `rejects` too, and count them.

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
        return _merge(sorted(ordered, key=lambda part: part[0]), results, rejects)


def _merge(parts: list[_Part], results: Path, rejects: Path) -> Summary:
    metadata = parts[0][2].schema_arrow.metadata
    schema = parts[0][2].schema_arrow.with_metadata({key: metadata[key] for key in metadata if key != RUN_KEY})
    collector = SummaryCollector()
    with (
        refusals("write", results),
        pq.ParquetWriter(results, schema, compression="zstd") as all_rows,
        pq.ParquetWriter(rejects, schema, compression="zstd") as not_ok,
    ):
        for batch in _batches(parts):
            collector.add(batch)
            all_rows.write_batch(batch, row_group_size=WINDOW_ROWS)
            rejected = batch.filter(pc.not_equal(batch["outcome"], Outcome.OK.value))
            if rejected.num_rows:
                not_ok.write_batch(rejected, row_group_size=WINDOW_ROWS)
    runs = [orjson.loads(file.metadata.metadata.get(RUN_KEY, b"{}")) for _, _, file in parts]
    return collector.summary(settings=orjson.loads(schema.metadata[SETTINGS_KEY]), runs=runs)


def _batches(parts: list[_Part]) -> Iterator[pa.RecordBatch]:
    for _, path, file in parts:
        with refusals("read", path):
            yield from file.iter_batches(batch_size=WINDOW_ROWS)


def _open(path: Path) -> _Part:
    try:
        with refusals("read", path):
            file = pq.ParquetFile(path)
            first = next(file.iter_batches(batch_size=1, columns=["row"]), None)
    except pa.ArrowInvalid as error:
        raise StorageError(f"cannot read {path}: {error}. Run the same command again to write it anew.") from error
    return (first["row"][0].as_py() if first else 0), path, file
