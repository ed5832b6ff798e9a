"""The rows of an input, whatever its format: JSONL, CSV, TSV and Parquet, as they are or packed with gzip or zstd.

The format is told by how the file begins, and CSV and TSV by the file's name.
"""

import io
import re
import shlex
from collections.abc import Iterator
from typing import BinaryIO, cast

from clients.errors import PromptsError
from clients.prompts.compressed import PACKINGS, forward, unpacked
from clients.prompts.source import MAX_LINE_BYTES, BadLine, Line, Range
from clients.storage import is_uri, open_input, reason

__all__ = ["MAX_LINE_BYTES", "BadLine", "Line", "Range", "read_lines"]

_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"
_HEAD_BYTES = 4096

#: What a file begins with that is not read, what it is, and what to do.
_OTHER_FORMATS = (
    (b"\xfd7zXZ", "xz", "Unpack it first: unxz -k FILE"),
    (b"BZh", "bzip2", "Unpack it first: bunzip2 -k FILE"),
    (b"PK\x03\x04", "a zip archive", "Unpack it first: unzip FILE (a spreadsheet: save it as CSV)"),
    (b"\xff\xfe", "UTF-16", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"\xfe\xff", "UTF-16", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"{\x00", "UTF-16", "Save it as UTF-8: iconv -f UTF-16LE -t UTF-8 FILE"),
    (b"\x00{", "UTF-16", "Save it as UTF-8: iconv -f UTF-16BE -t UTF-8 FILE"),
)


def read_lines(location: str, part: Range | None = None) -> Iterator[Line]:
    """Read the rows of an input, or of one part of it, holding a few at a time.

    Raises:
        PromptsError: the file cannot be read, is damaged, or is visibly of another format.
    """
    part = part or Range()
    with open_input(location) as stream:
        try:
            yield from _rows(location, cast(io.BufferedReader, stream), part)
        except OSError as error:
            raise PromptsError(f"cannot read {location}: {reason(error)}. Run the same command again.") from error


def _rows(location: str, stream: io.BufferedReader, part: Range) -> Iterator[Line]:
    head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    if head.startswith(_PARQUET):
        from clients.prompts.parquet_rows import parquet_rows

        return parquet_rows(location, stream, part)
    show = "cat"
    for magic, packing, command in PACKINGS:
        if head.startswith(magic):
            stream, show = unpacked(location, stream, packing), command
            head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
            _refuse_packed_twice(location, head, packing, command)
            break
    delimiter = _delimiter(location)
    _refuse_other_formats(location, head, show, csv=bool(delimiter))
    if delimiter:
        from clients.prompts.csv_rows import csv_rows

        return csv_rows(location, stream, part, delimiter=delimiter)
    forward(stream, part.start)
    return _lines(stream, part)


def _typed(location: str) -> str:
    """How a command names the file; one in a store, which has to be fetched first, has its own name."""
    return shlex.quote(location.partition("?")[0].rpartition("/")[2] if is_uri(location) else location)


def _delimiter(location: str) -> str:
    """Between the cells, for a file that is named like a table of text; "" for any other."""
    name = location.partition("?")[0] if is_uri(location) else location
    match = re.search(r"\.([ct])sv(?:\.(?:gz|zst|zstd))?/?$", name, re.IGNORECASE)
    return "" if match is None else "," if match[1] in "cC" else "\t"


def _lines(stream: BinaryIO, part: Range) -> Iterator[Line]:
    row, number, offset = part.first_row, part.first_line, part.start
    while part.end is None or offset < part.end:
        data, length = _read_line(stream)
        if not length:
            return
        if offset == 0 and data is not None:
            data = data.removeprefix(_BOM)
        if data is None or data.strip():
            yield Line(row, number, offset, None if data is None else data.rstrip(b"\r\n"))
            row += 1
        number += 1
        offset += length


def _read_line(stream: BinaryIO) -> tuple[bytes | None, int]:
    """The next line and its length in bytes; None instead of a line that is too long, which is read past."""
    data = stream.readline(MAX_LINE_BYTES + 1)
    length = len(data)
    if length <= MAX_LINE_BYTES or data.endswith(b"\n"):
        return data, length
    while data and not data.endswith(b"\n"):
        data = stream.readline(1 << 20)
        length += len(data)
    return None, length


def _refuse_packed_twice(location: str, head: bytes, packing: str, command: str) -> None:
    inner = "Parquet" if head.startswith(_PARQUET) else ""
    inner = next((name for magic, name, _ in PACKINGS if head.startswith(magic)), inner)
    if inner:
        raise PromptsError(
            f"{location} is {inner} within {packing}. Unpack it once: {command} {_typed(location)} > unpacked"
        )


def _refuse_other_formats(location: str, head: bytes, show: str, *, csv: bool) -> None:
    if not head:
        raise PromptsError(f'{location} is empty. Write one request a line, such as {{"prompt": "Hello"}}.')
    for magic, name, mend in _OTHER_FORMATS:
        if head.startswith(magic):
            mend = mend.replace("FILE", _typed(location))
            raise PromptsError(f"{location} is {name}. Read are JSONL, CSV and Parquet, also with gzip or zstd. {mend}")
    if not csv and head.removeprefix(_BOM).lstrip().startswith(b"["):
        raise PromptsError(
            f"{location} is one JSON array, not JSONL. "
            f"Make it lines: {show} {_typed(location)} | jq -c '.[]' > lines.jsonl"
        )
