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
from clients.results.schema import COLUMNS, RUN_KEY, SETTINGS_KEY
from clients.storage import refusals

#: Rows that are in memory at once; also the row group of the Parquet files (at 2 KB an answer, some 15 MB).
WINDOW_ROWS = 4096

#: The error code of rows whose shard ended before they were answered.
MISSING = "missing"

_ANSWER_COLUMNS = [name for name in COLUMNS.names if name not in ("row", "id")]


def write_results(
    path: Path,
    rows: Iterable[Row],
    answers: Iterable[tuple[pa.Table, pa.Array]],
    carried: CarriedColumns,
    *,
    first_row: int,
    settings: Mapping[str, Any],
    run: Mapping[str, Any] | None = None,
) -> int:
    """Write one result row for every input row.

    Args:
        path: The Parquet file to write.
        rows: The shard's input, in order.
        answers: Tables of `COLUMNS` in any order, each with the row numbers it answers; see `Ledger.rows_by_segment`.
        carried: The columns the whole input carries.
        first_row: Number of the first row.
        settings: Kept as JSON in the file's metadata.
        run: How the shard's run went; kept likewise.

    Returns:
        Rows for which there was no answer; each is written with `outcome = "failed"` and `error_code = "missing"`.

    Raises:
        StorageError: the file, or the scratch files beside which it grows, cannot be written.
    """
    schema = results_schema(carried, settings)
    missing = 0
    with (
        refusals("write", path),
        _Sorter(first_row) as sorter,
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
    ):
        for table, numbers in answers:
            sorter.add(table, numbers)
        for at, window in enumerate(_windows(rows)):
            table, lost = _join(window, sorter.window(at), carried, schema)
            writer.write_table(table, row_group_size=WINDOW_ROWS)
            missing += lost
        writer.add_key_value_metadata({RUN_KEY: orjson.dumps(run or {})})
    return missing


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
