"""JSONL as people have it: byte ranges, a BOM, CRLF, blank lines, lines of any length."""

import dataclasses
import shlex
from collections.abc import Iterator
from typing import BinaryIO

from clients.errors import PromptsError
from clients.storage import open_input, reason

#: A longer line is a bad row instead of a memory problem. A prompt with images inline is a few MiB.
MAX_LINE_BYTES = 32 << 20

_BOM = b"\xef\xbb\xbf"

#: What a file begins with that is not JSONL, what it is, and what to do.
_OTHER_FORMATS = (
    (b"\x1f\x8b", "gzip", "Unpack it first: gunzip -k FILE"),
    (b"\x28\xb5\x2f\xfd", "zstd", "Unpack it first: zstd -d FILE"),
    (b"\xfd7zXZ", "xz", "Unpack it first: unxz -k FILE"),
    (b"BZh", "bzip2", "Unpack it first: bunzip2 -k FILE"),
    (b"PAR1", "Parquet", "Write it as JSONL first: pandas.read_parquet(F).to_json(G, orient='records', lines=True)"),
    (b"\xff\xfe", "UTF-16", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"\xfe\xff", "UTF-16", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"{\x00", "UTF-16", "Save it as UTF-8: iconv -f UTF-16LE -t UTF-8 FILE"),
    (b"\x00{", "UTF-16", "Save it as UTF-8: iconv -f UTF-16BE -t UTF-8 FILE"),
    (b"PK\x03\x04", "a zip archive", "Unpack it first: unzip FILE"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One line that holds a row.

    Attributes:
        row: 0-based position among the input's rows; blank lines are not rows.
        number: 1-based line number in the file, for messages.
        start: Byte offset of the line in the file.
        data: The line without its end, or None when it is longer than MAX_LINE_BYTES.
    """

    row: int
    number: int
    start: int
    data: bytes | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A part of an input file that begins and ends between two lines.

    Attributes:
        start: First byte.
        end: First byte after it, or None for the rest of the file.
        first_row: 0-based number of its first row.
        first_line: 1-based number of its first line.
    """

    start: int = 0
    end: int | None = None
    first_row: int = 0
    first_line: int = 1


def read_lines(location: str, part: Range | None = None) -> Iterator[Line]:
    """Read the rows of a JSONL file, or of one part of it, holding one line at a time.

    Raises:
        PromptsError: the file cannot be read or is visibly not JSONL.
    """
    part = part or Range()
    with open_input(location) as stream:
        try:
            if part.start == 0:
                _refuse_other_formats(location, stream)
            stream.seek(part.start)
            yield from _lines(stream, part)
        except OSError as error:
            raise PromptsError(f"cannot read {location}: {reason(error)}. Run the same command again.") from error


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


def _refuse_other_formats(location: str, stream: BinaryIO) -> None:
    head = stream.read(4096)
    if not head:
        raise PromptsError(f'{location} is empty. Write one request a line, such as {{"prompt": "Hello"}}.')
    for magic, name, mend in _OTHER_FORMATS:
        if head.startswith(magic):
            raise PromptsError(f"{location} is {name}, not JSONL. {mend.replace('FILE', shlex.quote(location))}")
    if head.removeprefix(_BOM).lstrip().startswith(b"["):
        raise PromptsError(
            f"{location} is one JSON array, not JSONL. Make it lines: jq -c '.[]' {shlex.quote(location)} > lines.jsonl"
        )
