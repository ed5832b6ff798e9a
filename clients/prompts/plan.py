"""Check every row before a GPU starts, and cut the input into shards that each read only their own bytes."""

import array
import dataclasses
import hashlib
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from clients.errors import PromptsError, SettingsError
from clients.prompts.columns import CarriedColumns
from clients.prompts.lines import Line, Range, read_lines
from clients.prompts.rows import JobDefaults, parse_row
from clients.records import InvalidRow

#: Places where the input may be cut, kept while reading it once. Even shards need only a few per shard.
_MAX_MARKS = 16_384

_EXAMPLES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """What one pass over the input found.

    Attributes:
        rows: Rows in the input, bad ones included.
        invalid: Bad rows; `examples` are the first of them.
        repeated_ids: Rows that share their id with an earlier row.
        carried: The kinds of the input's own columns.
        fingerprint: 16 hex digits over the content of all rows.
    """

    rows: int
    invalid: int
    examples: tuple[InvalidRow, ...]
    repeated_ids: int
    carried: dict[str, str]
    fingerprint: str
    marks: tuple[Range, ...]

    def to_json(self) -> bytes:
        """The whole finding as JSON, some 60 bytes a mark."""
        return orjson.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> "Checked":
        """Read back what `to_json` wrote."""
        fields: dict[str, Any] = orjson.loads(text)
        examples = tuple(InvalidRow(**example) for example in fields["examples"])
        return cls(**{**fields, "examples": examples, "marks": tuple(Range(**mark) for mark in fields["marks"])})

    def cut(self, shards: int) -> list[tuple[Range, int]]:
        """Cut into at most `shards` parts of as equal a number of rows as possible, none of them empty.

        Returns:
            Each part with its number of rows, in input order.
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
    scan = _Scan()
    for line in read_lines(location):
        scan.take(line, defaults)
    if scan.rows == 0:
        raise PromptsError(
            f'{location} holds only blank lines. Write one request a line, such as {{"prompt": "Hello"}}.'
        )
    if scan.invalid == scan.rows:
        first = scan.examples[0]
        raise PromptsError(
            f"no row of {location} can be sent, {scan.rows} of {scan.rows} are malformed; {first.error_message}"
        )
    return scan.result()


class _Scan:
    """The state of one pass. Eight bytes a row that has an id of its own, otherwise constant."""

    def __init__(self) -> None:
        self.rows = self.invalid = 0
        self.examples: list[InvalidRow] = []
        self._ids = array.array("Q")
        self._marks: list[Range] = []
        self._stride = 1
        self._columns = CarriedColumns()
        self._digest = hashlib.sha256()

    def take(self, line: Line, defaults: JobDefaults) -> None:
        if line.row % self._stride == 0:
            self._mark(line)
        row = parse_row(line, defaults)
        self.rows += 1
        if isinstance(row.request, InvalidRow):
            self.invalid += 1
            self.examples = [*self.examples, row.request][:_EXAMPLES]
        if row.named:
            short = hashlib.blake2b(row.request.id.encode(), digest_size=8).digest()
            self._ids.append(int.from_bytes(short, "little"))
        self._columns.observe(row.carried)
        self._digest.update(line.data or b"")
        self._digest.update(b"\n")

    def _mark(self, line: Line) -> None:
        self._marks.append(Range(start=line.start, first_row=line.row, first_line=line.number))
        if len(self._marks) > _MAX_MARKS:
            self._marks = self._marks[::2]
            self._stride *= 2

    def result(self) -> Checked:
        ids = pa.array(self._ids, type=pa.uint64())
        return Checked(
            rows=self.rows,
            invalid=self.invalid,
            examples=tuple(self.examples),
            repeated_ids=len(ids) - len(pc.unique(ids)),
            carried=self._columns.kinds,
            fingerprint=self._digest.hexdigest()[:16],
            marks=tuple(self._marks),
        )


def _even_starts(marks: tuple[Range, ...], rows: int, shards: int) -> list[Range]:
    """The marks nearest below each even cut; fewer than `shards` when several cuts fall on one mark."""
    stride = marks[1].first_row if len(marks) > 1 else 1
    chosen = {rows * shard // shards // stride for shard in range(shards)}
    return [marks[at] for at in sorted(chosen)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """Everything a shard's pod needs to know, as one self-contained JSON string.

    KFP loops over such strings: a value of another task inside the loop body is silently replaced by the loop item in
    local runs, and numbers inside lists and dicts arrive as floats there.

    Attributes:
        shard: 0-based number of the shard.
        of: How many shards there are.
        rows: Rows in `part`.
        state: Folder or URI under which committed rows are kept; "" keeps them only as long as the pod lives.
        plan: Name of the plan the shard belongs to: the same input cut the same way has the same name.
        base_url: Of the endpoint; several are divided by blanks.
        concurrency: Most requests in flight; 0 leaves it to the engine.
        server_wait_s: Seconds to wait for an endpoint that cannot be reached.
        options: What `clients.batch.options.RunOptions` reads.
    """

    shard: int
    of: int
    prompts: str
    part: Range
    rows: int
    base_url: str
    defaults: JobDefaults
    carried: dict[str, str]
    state: str
    plan: str
    concurrency: int
    server_wait_s: float = 600.0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON."""
        return orjson.dumps(dataclasses.asdict(self)).decode()

    def settings(self) -> dict[str, Any]:
        """What a reader of the results wants to know about how they were made; no secret is among it."""
        return {
            "prompts": self.prompts,
            "base_url": self.base_url,
            "model": self.defaults.model,
            "system_prompt": self.defaults.system_prompt,
            "request_defaults": dict(self.defaults.request_defaults),
            "shards": self.of,
        }

    @classmethod
    def from_json(cls, text: str) -> "Shard":
        """Read back what `to_json` wrote."""
        fields: dict[str, Any] = orjson.loads(text)
        return cls(**{**fields, "part": Range(**fields["part"]), "defaults": JobDefaults(**fields["defaults"])})
