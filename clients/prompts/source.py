"""A row as it stands in its file, and a part of a file: what every format has in common.

Rows are not frozen, though nobody changes one: see `clients.records`.
"""

import dataclasses
from typing import ClassVar

#: A longer row is a bad row instead of a memory problem. A prompt with images inline is a few MiB.
MAX_LINE_BYTES = 32 << 20


@dataclasses.dataclass(slots=True)
class Line:
    """One row of the input.

    Attributes:
        row: 0-based position among the input's rows; blank lines are not rows.
        number: 1-based line number in the file, for messages.
        start: Where the row begins, see `Range.start`.
        data: The row as JSON, or None when it is longer than MAX_LINE_BYTES.
        unit: What `number` counts.
    """

    unit: ClassVar[str] = "line"

    row: int
    number: int
    start: int
    data: bytes | None


class Record(Line):
    """A row of a file without lines, such as Parquet."""

    __slots__ = ()
    unit = "record"


@dataclasses.dataclass(slots=True)
class BadLine(Line):
    """A row that its format already finds broken; `data` is None.

    Attributes:
        code: As `InvalidRow.error_code`.
        problem: What was found and how to mend it.
    """

    code: str
    problem: str


class BadRecord(BadLine):
    """The same in a file without lines."""

    __slots__ = ()
    unit = "record"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A part of an input file that begins and ends between two rows.

    Attributes:
        start: Its first byte; in a gzip or zstd file the first byte of what was packed; in Parquet the first row.
        end: The first one after it, or None for the rest of the file.
        first_row: 0-based number of its first row.
        first_line: 1-based number of its first line.
    """

    start: int = 0
    end: int | None = None
    first_row: int = 0
    first_line: int = 1
