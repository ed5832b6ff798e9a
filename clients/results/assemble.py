"""Join a shard's input with its ledger: one result row per input row, in input order, in flat memory."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clients.prompts.columns import CarriedColumns
from clients.prompts.rows import Row
from clients.records import InvalidRow, Outcome
from clients.results.gather import Gather, Joined
from clients.results.schema import COLUMNS, RUN_KEY, SETTINGS_KEY, TRACE_URL_KEY
from clients.storage import refusals

#: Rows that are put together at once.
WINDOW_ROWS = 1024

#: A row group ends at the first window that reaches one of them: large enough to be read fast and to need few entries
#: in the file's footer, small enough to be held.
_GROUP_ROWS, _GROUP_BYTES = 16_384, 8 << 20

#: The error code of rows whose shard ended before they were answered.
MISSING = "missing"

#: Columns with few different values; for the others, a dictionary or the extremes of a group cost more than they help.
_REPEATED = ["outcome", "finish_reason", "model", "endpoint", "error_code"]
_ORDERED = ["row", "outcome", "prompt_tokens", "completion_tokens", "started_at", "latency_s", "error_code"]

_ANSWER_COLUMNS = [name for name in COLUMNS.names if name not in ("row", "id")]


def write_results(
    path: Path,
    rows: Iterable[Row],
    answers: Iterable[tuple[pa.Table, pa.Array]],
    carried: CarriedColumns,
    *,
    joined: Joined,
    first_row: int,
    settings: Mapping[str, Any],
    run: Mapping[str, Any] | None = None,
) -> int:
    """Write one result row for every input row.

    Args:
        path: The Parquet file to write.
        rows: The shard's input, in order.
        answers: See `Ledger.rows_by_segment`.
        carried: The columns the whole input carries.
        joined: See `Ledger.joined`.
        first_row: Number of the first row.
        settings: Kept as JSON in the file's metadata.
        run: How the shard's run went; kept likewise.

    Returns:
        Rows for which there was no answer; each is written with `outcome = "failed"` and `error_code = "missing"`.

    Raises:
        StorageError: the file, or the scratch files beside which it grows, cannot be written.
    """
    schema = results_schema(carried, settings)
    if run and run.get("trace_url"):
        schema = schema.with_metadata({**schema.metadata, TRACE_URL_KEY: run["trace_url"]})
    gather = Gather(answers, joined, first_row=first_row, rows=WINDOW_ROWS, folder=path.parent)
    missing = 0
    with refusals("write", path), open_writer(path, schema) as writer:
        groups = RowGroups(writer)
        for at, window in enumerate(_windows(rows)):
            table, lost = _join(window, gather.window(at), carried, schema)
            groups.add(table)
            missing += lost
        groups.end()
        writer.add_key_value_metadata({RUN_KEY: orjson.dumps(run or {})})
    return missing


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet file to be written, compressed as results are."""
    carried = [field.name for field in schema if field.name not in COLUMNS.names]
    statistics = [*_ORDERED, *(name for name in carried if not pa.types.is_string(schema.field(name).type))]
    return pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=[*_REPEATED, *carried], write_statistics=statistics
    )


class RowGroups:
    """Writes tables as row groups of a good size."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._tables: list[pa.Table] = []
        self._rows = self._bytes = 0

    def add(self, table: pa.Table) -> None:
        """Take some rows; they are written with those that follow, or now."""
        self._tables.append(table)
        pa.default_memory_pool().release_unused()
        self._rows += len(table)
        self._bytes += table.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self.end()

    def end(self) -> None:
        """Write what was taken."""
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables))
        self._tables, self._rows, self._bytes = [], 0, 0
        pa.default_memory_pool().release_unused()


def results_schema(carried: CarriedColumns, settings: Mapping[str, Any]) -> pa.Schema:
    """The result columns followed by the input's own; the settings as JSON in the metadata."""
    metadata = {**COLUMNS.metadata, SETTINGS_KEY: orjson.dumps(settings)}
    return pa.schema([*COLUMNS, *carried.fields()], metadata=metadata)


class _Window:
    """Consecutive rows, without their requests: those may be megabytes each."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.ids: list[str] = []
        self.hashes: list[str] = []
        self.invalid: dict[int, InvalidRow] = {}
        self.carried: list[dict[str, Any]] = []

    def add(self, row: Row) -> None:
        request = row.request
        if isinstance(request, InvalidRow):
            self.invalid[len(self.numbers)] = request
            self.hashes.append("")
        else:
            self.hashes.append(request.request_hash)
        self.numbers.append(request.row)
        self.ids.append(request.id)
        self.carried.append(row.carried)

    def unanswered(self, position: int) -> dict[str, Any]:
        """The columns of a row without an answer in the ledger."""
        found: dict[str, Any] = {"row": self.numbers[position], "id": "", "request_hash": self.hashes[position]}
        if (bad := self.invalid.get(position)) is not None:
            reason = (Outcome.INVALID, bad.error_code, bad.error_message)
        else:
            reason = (
                Outcome.FAILED,
                MISSING,
                "the shard ended before this row was answered; run the same command again",
            )
        return {**found, "attempts": 0, **dict(zip(("outcome", "error_code", "error_message"), reason, strict=True))}


def _windows(rows: Iterable[Row]) -> Iterator[_Window]:
    window = _Window()
    for row in rows:
        window.add(row)
        if len(window.numbers) == WINDOW_ROWS:
            yield window
            window = _Window()
    if window.numbers:
        yield window


def _join(window: _Window, answers: pa.Table, carried: CarriedColumns, schema: pa.Schema) -> tuple[pa.Table, int]:
    """Each row with its answer; an answer to another request than the row now is (an edited input) is not its own."""
    numbers, hashes = pa.array(window.numbers, pa.int64()), pa.array(window.hashes, pa.string())
    at = pc.index_in(numbers, value_set=answers["row"].combine_chunks())
    own = pc.fill_null(pc.equal(answers["request_hash"].combine_chunks().take(at), hashes), False)
    missing = 0
    if not pc.all(own).as_py():
        without = pc.indices_nonzero(pc.invert(own)).to_pylist()
        missing = len(without) - len(window.invalid)
        stand_ins = pa.Table.from_pylist([window.unanswered(position) for position in without], schema=COLUMNS)
        at = pc.replace_with_mask(
            at, pc.invert(own), pa.array(range(len(answers), len(answers) + len(without)), at.type)
        )
        answers = pa.concat_tables([answers, stand_ins])
    found = answers.select(_ANSWER_COLUMNS).combine_chunks().take(at)
    columns = [numbers, pa.array(window.ids, pa.string()), *found.columns, *carried.arrays(window.carried)]
    return pa.Table.from_arrays(columns, schema=schema), missing
