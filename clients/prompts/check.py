"""Check every row before a GPU starts, and find where the input can be cut into parts of equal size."""

import contextlib
import dataclasses
import hashlib
from typing import Any, Self

import orjson

from clients.errors import PromptsError, SettingsError
from clients.prompts.columns import CarriedColumns
from clients.prompts.lines import Line, Range, read_lines
from clients.prompts.preflight import TokenCounter, Tokens
from clients.prompts.repeats import Repeats
from clients.prompts.rows import JobDefaults, parse_row
from clients.records import InvalidRow

#: Places where the input may be cut, kept while reading it once. Even shards need only a few per shard.
_MAX_MARKS = 16_384

_EXAMPLES = 5

#: In a row, the name of a field; in the text of a message every quote has a backslash before it.
_MODEL = b'"model"'

#: A place to cut: `start`, `first_row` and `first_line` of a Range. Most are never used, and a tuple takes a tenth of
#: the time.
Mark = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """What one pass over the input found.

    Attributes:
        rows: Rows in the input, bad ones included.
        invalid: Bad rows; `examples` are the first of them.
        repeated_ids: Rows that share their id with an earlier row.
        duplicates: Rows that ask the same as an earlier row.
        some_name_models: Whether some rows that can be sent seem to name a model, and others do not.
        tokens: What the rows ask of the model, as far as it can be told before.
        carried: The kinds of the input's own columns.
        fingerprint: 16 hex digits over the content of all rows.
        marks: Places where the input may be cut: byte, row and line, as in Range.
    """

    rows: int
    invalid: int
    examples: tuple[InvalidRow, ...]
    repeated_ids: int
    duplicates: int
    some_name_models: bool
    tokens: Tokens
    carried: dict[str, str]
    fingerprint: str
    marks: tuple[Mark, ...]

    @property
    def may_repeat(self) -> bool:
        """Whether rows may ask the same once those that name no model have got theirs."""
        return self.duplicates > 0 or self.some_name_models

    def to_json(self) -> bytes:
        """The whole finding as JSON, some 20 bytes a mark."""
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, text: bytes) -> "Checked":
        """Read back what `to_json` wrote."""
        fields: dict[str, Any] = orjson.loads(text)
        examples = tuple(InvalidRow(**example) for example in fields["examples"])
        marks = tuple(map(tuple, fields["marks"]))
        return cls(**{**fields, "examples": examples, "marks": marks, "tokens": Tokens.from_json(fields["tokens"])})

    def cut(self, shards: int) -> list[tuple[Range, int]]:
        """Cut into at most `shards` parts of as equal a number of rows as possible, none of them empty.

        Returns:
            Each part with its number of rows, in input order.

        Raises:
            SettingsError: `shards` is less than 1.
        """
        if shards < 1:
            raise SettingsError(f"shards must be at least 1, found {shards}")
        starts = _even_starts(self.marks, self.rows, min(shards, self.rows))
        ends = [*starts[1:], None]
        return [
            (
                dataclasses.replace(start, end=None if end is None else end.start),
                (self.rows if end is None else end.first_row) - start.first_row,
            )
            for start, end in zip(starts, ends, strict=True)
        ]


def check_prompts(location: str, defaults: JobDefaults) -> Checked:
    """Read and check every row of the input once, in flat memory.

    Raises:
        PromptsError: the input cannot be read, is not JSONL, or holds no row that can be sent.
    """
    with _Scan() as scan:
        for line in read_lines(location):
            scan.take(line, defaults)
        _refuse_useless(location, scan)
        return scan.result()


def _refuse_useless(location: str, scan: "_Scan") -> None:
    if scan.rows == 0:
        raise PromptsError(
            f'{location} holds only blank lines. Write one request a line, such as {{"prompt": "Hello"}}.'
        )
    if scan.invalid == scan.rows:
        first = scan.examples[0]
        raise PromptsError(
            f"no row of {location} can be sent, {scan.rows} of {scan.rows} are malformed; {first.error_message}"
        )


class _Scan:
    """The state of one pass, some MB for any number of rows."""

    def __init__(self) -> None:
        self.rows = self.invalid = self._name_models = 0
        self.examples: list[InvalidRow] = []
        self._ids, self._requests = Repeats(), Repeats()
        self._tokens = TokenCounter()
        self._marks: list[Mark] = []
        self._stride = 1
        self._columns = CarriedColumns()
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        self._open = contextlib.ExitStack()
        self._open.enter_context(self._ids)
        self._open.enter_context(self._requests)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def take(self, line: Line, defaults: JobDefaults) -> None:
        if line.row % self._stride == 0:
            self._mark(line)
        row = parse_row(line, defaults)
        request = row.request
        self.rows += 1
        if isinstance(request, InvalidRow):
            self.invalid += 1
            self.examples = [*self.examples, request][:_EXAMPLES]
        else:
            self._requests.add(int(request.request_hash[:16], 16))
            self._name_models += _MODEL in (line.data or b"")
            self._tokens.take(request.payload, line)
        if row.named:
            short = hashlib.blake2b(request.id.encode(), digest_size=8).digest()
            self._ids.add(int.from_bytes(short, "little"))
        self._columns.observe(row.carried)
        self._digest.update(line.data or b"")
        self._digest.update(b"\n")

    def _mark(self, line: Line) -> None:
        self._marks.append((line.start, line.row, line.number))
        if len(self._marks) > _MAX_MARKS:
            self._marks = self._marks[::2]
            self._stride *= 2

    def result(self) -> Checked:
        return Checked(
            rows=self.rows,
            invalid=self.invalid,
            examples=tuple(self.examples),
            repeated_ids=self._ids.count(),
            duplicates=self._requests.count(),
            some_name_models=0 < self._name_models < self.rows - self.invalid,
            tokens=self._tokens.tokens(),
            carried=self._columns.kinds,
            fingerprint=self._digest.hexdigest()[:16],
            marks=tuple(self._marks),
        )


def _even_starts(marks: tuple[Mark, ...], rows: int, shards: int) -> list[Range]:
    """The marks nearest below each even cut; fewer than `shards` when several cuts fall on one mark."""
    stride = marks[1][1] if len(marks) > 1 else 1
    chosen = {rows * shard // shards // stride for shard in range(shards)}
    starts = [marks[at] for at in sorted(chosen)]
    return [Range(start=start, first_row=row, first_line=number) for start, row, number in starts]
