"""Parquet: only the row groups that a part's rows lie in, a few MiB of them at a time."""

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from clients.errors import PromptsError
from clients.prompts.cells import known, settle
from clients.prompts.source import MAX_LINE_BYTES, BadRecord, Line, Range, Record

#: Rows are taken from the file in batches of at most so many, and of about so many bytes.
_BATCH_ROWS, _BATCH_BYTES = 256, 4 << 20


def parquet_rows(location: str, stream: io.BufferedReader, part: Range) -> Iterator[Line]:
    """The rows of a part of a Parquet file, each as JSON; what JSON does not know (times, bytes) as text.

    Args:
        location: Of the file, for messages.
        stream: The file; it can seek.
        part: Which rows; its places are row numbers.

    Raises:
        PromptsError: the file is damaged, has no rows, or two columns of one name.
    """
    try:
        file = pq.ParquetFile(stream, buffer_size=1 << 18, pre_buffer=False)
        names = file.schema_arrow.names
        _check(location, file, names)
        settled = known(names)
        at = part.start
        for batch in _batches(file, part):
            for fields in _rows(batch):
                yield _line(at, at, fields, settled)
                at += 1
    except pa.ArrowException as error:
        raise _damaged(location, error) from error
    except OSError as error:
        if error.errno is not None:  # the disk's
            raise
        raise _damaged(location, error) from error


def _damaged(location: str, error: Exception) -> PromptsError:
    found = " ".join(str(error).split())
    return PromptsError(f"cannot read {location} as Parquet: {found}. Copy it once more, or write it anew.")


def _check(location: str, file: pq.ParquetFile, names: list[str]) -> None:
    if not file.metadata.num_rows:
        raise PromptsError(f"{location} has no rows. Write one row a request.")
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise PromptsError(f"{location} has two columns named {twice!r}. Give each column a name of its own.")


def _batches(file: pq.ParquetFile, part: Range) -> Iterator[pa.RecordBatch]:
    """The part's rows; of the first and the last row group only those that belong to it."""
    first, end = 0, file.metadata.num_rows if part.end is None else part.end
    for group in range(file.num_row_groups):
        found = file.metadata.row_group(group)
        beyond = first + found.num_rows
        if part.start < beyond and first < end:
            at = first
            size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * found.num_rows // max(1, found.total_byte_size)))
            for batch in file.iter_batches(batch_size=size, row_groups=[group], use_threads=False):
                skip = max(0, part.start - at)
                kept = batch.slice(skip, max(0, end - at - skip))
                if kept.num_rows:
                    yield kept
                at += batch.num_rows
                if at >= end:
                    break
        first = beyond


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The batch's rows, or why one cannot be read."""
    plain = pa.RecordBatch.from_arrays([_readable(column) for column in batch.columns], batch.schema.names)
    try:
        yield from plain.to_pylist(maps_as_pydicts="lossy")
    except (ValueError, OverflowError):  # a date before the year 1, text that is no UTF-8: found row by row
        for at in range(plain.num_rows):
            try:
                yield from plain.slice(at, 1).to_pylist(maps_as_pydicts="lossy")
            except (ValueError, OverflowError) as error:
                yield " ".join(str(error).split())


def _line(row: int, start: int, fields: dict[str, Any] | str, settled: list[str]) -> Line:
    if isinstance(fields, str):
        return BadRecord(row, row + 1, start, None, "unreadable", f"a value cannot be read: {fields}")
    settle(fields, settled)
    try:
        data = orjson.dumps(fields, default=_text, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:
        return BadRecord(row, row + 1, start, None, "unreadable", f"a value cannot be written as JSON: {error}")
    return Record(row, row + 1, start, data if len(data) <= MAX_LINE_BYTES else None)


def _text(value: Any) -> str:
    """What JSON has no form for: a decimal, a length of time, bytes (base64 when they are no text)."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def _readable(column: pa.Array) -> pa.Array:
    """Times as text, `2024-05-01 12:30:00.000+0000`: Python's have no nanoseconds, and a pod may know no time zones."""
    for change in (_in_utc, _as_text):
        kind = _changed(column.type, change)
        column = column if kind == column.type else column.cast(kind, safe=False)
    return column


def _in_utc(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp(kind.unit, "+00:00") if pa.types.is_timestamp(kind) and kind.tz else kind


def _as_text(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        return pa.string()
    return pa.duration("us") if pa.types.is_duration(kind) else kind


def _changed(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A type with a change made to it and to every type within it."""

    def field(inner: pa.Field) -> pa.Field:
        return inner.with_type(_changed(inner.type, change))

    if pa.types.is_struct(kind):
        return pa.struct([field(inner) for inner in kind])
    if pa.types.is_list(kind):
        return pa.list_(field(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(field(kind.value_field))
    if pa.types.is_map(kind):
        return pa.map_(field(kind.key_field), field(kind.item_field))
    return change(kind)
