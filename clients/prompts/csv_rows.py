"""CSV and TSV (RFC 4180): line breaks within quotes, CRLF, a BOM; each record knows the byte at which it begins."""

import csv
import io
from collections.abc import Iterator

import orjson

from clients.errors import PromptsError
from clients.prompts.cells import known, settle
from clients.prompts.compressed import forward
from clients.prompts.source import MAX_LINE_BYTES, BadLine, Line, Range

_BOM = b"\xef\xbb\xbf"
_TOO_LONG = f"longer than {MAX_LINE_BYTES >> 20} MiB; split the row, or close the quote that is open in it"


class _TooLongError(Exception):
    """Internal: a record that is not worth its memory."""


def csv_rows(location: str, stream: io.BufferedReader, part: Range, *, delimiter: str) -> Iterator[Line]:
    """The records of a part of a CSV file, each as JSON: the header's names, and text.

    An empty cell is null. A record that cannot be read is a bad row; reading goes on with the next line.

    Args:
        location: Of the file, for messages.
        stream: The file, unpacked, at its first byte.
        part: Which records.
        delimiter: Between two cells, one character.

    Raises:
        PromptsError: the header cannot be used, or nothing follows it.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _Lines(stream, offset=_past_mark(stream))
    names = _header(location, lines, delimiter)
    settled = known(names)
    if part.start:
        forward(stream, part.start, at=lines.offset)
        lines = _Lines(stream, offset=part.start, number=part.first_line)
    row = part.first_row
    for start, number, record in _records(lines, delimiter, part.end):
        if isinstance(record, str):
            yield BadLine(row, number, start, None, *record.split(": ", 1))
        elif len(record) != len(names):
            if len(record) == 1 and not record[0].strip():
                continue  # a line of blanks
            problem = f"{len(record)} cells where the header has {len(names)}; quote a cell that holds {delimiter!r}"
            yield BadLine(row, number, start, None, "wrong_cells", problem)
        else:
            fields: dict[str, str | None] = dict(zip(names, record, strict=True))
            if "" in record:
                fields = {name: cell or None for name, cell in fields.items()}
            settle(fields, settled)
            yield _line(row, number, start, fields)
        row += 1
    if row == 0:
        raise PromptsError(f"{location} has a header and no row. Write one row a request below it.")


def _line(row: int, number: int, start: int, fields: dict[str, str | None]) -> Line:
    try:
        data = orjson.dumps(fields)
    except orjson.JSONEncodeError:  # bytes that are no UTF-8 stand in the text as lone surrogates
        hint = "not UTF-8; save the file as UTF-8 (from a Korean Windows: iconv -f CP949 -t UTF-8 FILE)"
        return BadLine(row, number, start, None, "not_utf8", hint)
    return Line(row, number, start, data if len(data) <= MAX_LINE_BYTES else None)


def _records(lines: "_Lines", delimiter: str, end: int | None) -> Iterator[tuple[int, int, list[str] | str]]:
    """Each record's first byte, first line, and cells, or `code: problem`; empty lines are no records."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while end is None or lines.offset < end:
        start, number = lines.begin()
        record: list[str] | str
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            record = f"not_csv: not valid CSV: {error}; a quote within quotes is written twice"
        except _TooLongError:
            record = f"too_long: {_TOO_LONG}"
        if record:
            yield start, number, record


class _Lines:
    """The text lines of a stream, counted as the CSV parser takes them; `begin` marks where a record begins."""

    def __init__(self, stream: io.BufferedReader, *, offset: int, number: int = 1) -> None:
        self.offset, self._number, self._limit = offset, number, 0
        self._stream = stream

    def begin(self) -> tuple[int, int]:
        self._limit = self.offset + MAX_LINE_BYTES
        return self.offset, self._number

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        data = self._stream.readline(MAX_LINE_BYTES + 1)
        if not data:
            raise StopIteration
        whole = data.endswith(b"\n")
        self.offset += len(data)
        self._number += 1
        while not whole and (more := self._stream.readline(1 << 20)):
            self.offset += len(more)
            whole = more.endswith(b"\n")
        if self.offset > self._limit:
            raise _TooLongError
        return data.decode("utf-8", "surrogateescape")


def _past_mark(stream: io.BufferedReader) -> int:
    """Read past a byte order mark; returns the offset behind it."""
    return len(stream.read(len(_BOM))) if stream.peek(len(_BOM)).startswith(_BOM) else 0


def _header(location: str, lines: _Lines, delimiter: str) -> list[str]:
    """The names of the columns; one without a name is called by its place, such as `column_3`."""
    found = next(_records(lines, delimiter, None), None)
    cells = found[2] if found else []
    if isinstance(cells, str):
        raise PromptsError(f"{location} has no header that can be read: {cells.partition(': ')[2]}")
    cells = [cell.strip() for cell in cells]
    if not any(cells):
        raise PromptsError(f"{location} has no header. Write the names of the columns on its first line.")
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in "".join(cells)):
        hint = "Save it as UTF-8 (from a Korean Windows: iconv -f CP949 -t UTF-8 FILE)"
        raise PromptsError(f"{location} is not UTF-8: its header holds other bytes. {hint}")
    names = [cell or f"column_{at}" for at, cell in enumerate(cells, 1)]
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise PromptsError(f"{location} has two columns named {twice!r}. Give each column a name of its own.")
    return names
