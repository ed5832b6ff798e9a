"""Join the shards' parts, in order and in flat memory, into results, rejects and the summary."""

from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clients.records import Outcome
from clients.results.assemble import WINDOW_ROWS
from clients.results.schema import SETTINGS_KEY
from clients.results.summary import Summary, SummaryCollector


def merge_parts(parts: list[Path], results: Path, rejects: Path) -> Summary:
    """Write all rows to `results`, those that did not end `ok` to `rejects` too, and count them.

    Args:
        parts: The shards' files in any order; each holds consecutive rows, and all have the same columns.
        results: Parquet file to write.
        rejects: Parquet file to write.
    """
    files = sorted((pq.ParquetFile(part) for part in parts), key=_first_row)
    schema = files[0].schema_arrow
    collector = SummaryCollector()
    with (
        pq.ParquetWriter(results, schema, compression="zstd") as all_rows,
        pq.ParquetWriter(rejects, schema, compression="zstd") as not_ok,
    ):
        for batch in _batches(files):
            collector.add(batch)
            all_rows.write_batch(batch, row_group_size=WINDOW_ROWS)
            rejected = batch.filter(pc.not_equal(batch["outcome"], Outcome.OK.value))
            if rejected.num_rows:
                not_ok.write_batch(rejected, row_group_size=WINDOW_ROWS)
    for file in files:
        file.close()
    return collector.summary(settings=orjson.loads(schema.metadata[SETTINGS_KEY]))


def _batches(files: list[pq.ParquetFile]) -> Iterator[pa.RecordBatch]:
    for file in files:
        yield from file.iter_batches(batch_size=WINDOW_ROWS)


def _first_row(file: pq.ParquetFile) -> int:
    return next(file.iter_batches(batch_size=1, columns=["row"]))["row"][0].as_py()  # type: ignore[no-any-return]
