"""Join a shard's input with its ledger: one result row per input row, in input order, in flat memory."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clients.prompts.columns import CarriedColumns
from clients.prompts.rows import Row
from clients.records import InvalidRow, Outcome
from clients.results.schema import COLUMNS, SETTINGS_KEY

#: Rows that are in memory at once; also the row group of the Parquet files (at 2 KB an answer, some 30 MB).
WINDOW_ROWS = 8192

_ANSWER_COLUMNS = [name for name in COLUMNS.names if name not in ("row", "id")]


def write_results(
    path: Path,
    rows: Iterable[Row],
    answers: Iterable[tuple[pa.Table, pa.Array]],
    carried: CarriedColumns,
    *,
    first_row: int,
    settings: Mapping[str, Any],
) -> int:
    """Write one result row for every input row.

    Args:
        path: The Parquet file to write.
        rows: The shard's input, in order.
        answers: Tables of `COLUMNS` in any order, each with the row numbers it answers; see `Ledger.rows_by_segment`.
        carried: The columns the whole input carries.
        first_row: Number of the first row.
        settings: Kept as JSON in the file's metadata.

    Returns:
        Rows for which there was no answer; each is written with `outcome = "failed"` and `error_code = "missing"`.
    """
    schema = results_schema(carried, settings)
    missing = 0
    with _Sorter(first_row) as sorter, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table, numbers in answers:
            sorter.add(table, numbers)
        for at, window in enumerate(_windows(rows)):
            table, lost = _join(window, sorter.window(at), carried, schema)
            writer.write_table(table, row_group_size=WINDOW_ROWS)
            missing += lost
    return missing


def results_schema(carried: CarriedColumns, settings: Mapping[str, Any]) -> pa.Schema:
    """The result columns followed by the input's own; the settings as JSON in the metadata."""
    metadata = {**COLUMNS.metadata, SETTINGS_KEY: orjson.dumps(settings)}
    return pa.schema([*COLUMNS, *carried.fields()], metadata=metadata)


def _windows(rows: Iterable[Row]) -> Iterator[list[Row]]:
    window: list[Row] = []
    for row in rows:
        window.append(row)
        if len(window) == WINDOW_ROWS:
            yield window
            window = []
    if window:
        yield window


def _join(window: list[Row], answers: pa.Table, carried: CarriedColumns, schema: pa.Schema) -> tuple[pa.Table, int]:
    numbers = pa.array([row.request.row for row in window], pa.int64())
    at = pc.index_in(numbers, value_set=answers["row"].combine_chunks())
    found = answers.select(_ANSWER_COLUMNS).take(at)
    columns: dict[str, Any] = {"row": numbers, "id": pa.array([row.request.id for row in window], pa.string())}
    defaults = [_unanswered(row, answered) for row, answered in zip(window, at.is_valid().to_pylist(), strict=True)]
    for name in _ANSWER_COLUMNS:
        field = COLUMNS.field(name)
        columns[name] = pc.coalesce(
            found[name].combine_chunks(), pa.array([default.get(name) for default in defaults], field.type)
        )
    own = carried.arrays(row.carried for row in window)
    table = pa.Table.from_arrays([*(columns[name] for name in COLUMNS.names), *own], schema=schema)
    return table, sum(default.get("error_code") == "missing" for default in defaults)


def _unanswered(row: Row, answered: bool) -> dict[str, Any]:
    """The columns of a row without an answer in the ledger."""
    if answered:
        return {}
    request = row.request
    if isinstance(request, InvalidRow):
        found = {"outcome": Outcome.INVALID, "error_code": request.error_code, "error_message": request.error_message}
        return {**found, "request_hash": "", "attempts": 0}
    reason = "the shard ended before this row was answered; run the same command again"
    found = {"outcome": Outcome.FAILED, "error_code": "missing", "error_message": reason}
    return {**found, "request_hash": request.request_hash, "attempts": 0}


class _Sorter:
    """Brings answers that arrive in any order into windows of consecutive rows, by way of files when they are many."""

    def __init__(self, first_row: int) -> None:
        self._first_row = first_row
        self._schema = COLUMNS
        self._open = contextlib.ExitStack()
        self._sinks: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="kllm-sort-")))
        return self

    def __exit__(self, *error: object) -> None:
        for sink in self._sinks.values():
            sink.close()
        self._open.close()

    def add(self, table: pa.Table, numbers: pa.Array) -> None:
        """Take some answers and the rows they are for."""
        table = table.set_column(0, COLUMNS.field("row"), numbers)
        windows = pc.divide(pc.subtract(numbers, self._first_row), WINDOW_ROWS)
        for window in pc.unique(windows).to_pylist():
            sink = self._sinks.get(window)
            if sink is None:
                sink = self._sinks[window] = pa.ipc.new_file(self._folder / f"{window}.arrow", self._schema)
            sink.write_table(table.filter(pc.equal(windows, window)))

    def window(self, window: int) -> pa.Table:
        """The answers of one window of rows."""
        sink = self._sinks.pop(window, None)
        if sink is None:
            return self._schema.empty_table()
        sink.close()
        path = self._folder / f"{window}.arrow"
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        path.unlink()
        return table
