"""The ledger of one shard: committed answers in immutable Parquet segments, found again by their request's hash.

A segment counts once its write is complete; killing the process at any byte loses at most what was not yet committed.
In memory an answer costs 16 bytes (whose and where it is), one of an earlier run some 40, whatever its length.
"""

import array
import dataclasses
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clients.batch.answer_index import AnswerIndex
from clients.errors import LedgerInUseError, PromptsError, StorageError
from clients.records import ChatRequest, ChatResult, Outcome
from clients.results.schema import COLUMNS
from clients.storage import Folder

#: Seconds that a second process waits for the lock of a shard that is still running; a pod that is being killed is
#: gone by then.
LOCK_PATIENCE_S = 15.0

#: Rows that ended so are sent again by the same command: nothing is known about them yet.
_NOT_DONE = (Outcome.FAILED.value,)

_UNANSWERED = -1

_INDEX_COLUMNS = pa.schema([COLUMNS.field(name) for name in ("row", "request_hash", "outcome")])

#: What a mounted volume says that has no locks; it is then used without, as an object store is.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class Ledger:
    """Answers of one shard, new ones and those of earlier runs. A context manager that holds the shard's lock.

    Args:
        home: Folder of this shard's own segments.
        earlier: Folders of other plans' segments, whose answers are reused where the request is the same.
        first_row: Number of the shard's first row.
        rows: Rows in the shard.
        retry: Outcomes of earlier runs whose rows are to be sent again; the earlier answer stands until a new one does.
        share: Whether rows that ask the same share one answer.
        lock_patience_s: Seconds to wait for another process to end.

    Raises:
        LedgerInUseError: another process works on the same shard.
        StorageError: the folder cannot be read or written.
    """

    def __init__(
        self,
        home: Folder,
        *,
        earlier: tuple[Folder, ...] = (),
        first_row: int,
        rows: int,
        retry: frozenset[Outcome] = frozenset(),
        share: bool = False,
        lock_patience_s: float = LOCK_PATIENCE_S,
    ) -> None:
        self._retry = retry
        self._leader_of: array.array[int] | None = None  # position of a joined row: that of the row it shares with
        self.home = home
        self._first_row = first_row
        self._segments: list[tuple[Folder, str]] = []
        self._where = array.array("q")  # an entry: segment << 32 | position in the segment
        self._entry_of_row = array.array("q", [_UNANSWERED]) * rows
        self._written = 0
        self._nonce = secrets.token_hex(4)
        self._known = AnswerIndex(share=share)
        self._lock = _take_lock(home, lock_patience_s)
        try:
            self._read_folders((*earlier, home))
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._unlock()

    def claim(self, request: ChatRequest) -> Outcome | None:
        """Take an earlier answer to the same request for this row, if there is one that no other row has taken.

        Returns:
            How it ended; None when the row is to be sent.

        Raises:
            PromptsError: the shard has no such row.
        """
        at = request.row - self._first_row
        if not 0 <= at < len(self._entry_of_row):
            raise PromptsError(
                f"row {request.row} is not among the {len(self._entry_of_row)} rows of its shard: the input has "
                "changed since it was checked. Run the same command again."
            )
        entry = self._known.take(request.request_hash, request.row)
        if entry is None:
            return None
        self._entry_of_row[at] = entry
        outcome = self._known.outcome(entry)
        return None if outcome in self._retry else outcome

    def join(self, row: int, leader: int) -> None:
        """Give a row whatever answer another row of the shard has or will have."""
        if self._leader_of is None:
            self._leader_of = array.array("q", [_UNANSWERED]) * len(self._entry_of_row)
        self._leader_of[row - self._first_row] = leader - self._first_row

    def commit(self, results: list[ChatResult]) -> None:
        """Write some answers as one segment, sorted by row; they are kept when this returns.

        A row that was sent again and has come to nothing keeps its earlier answer.

        Raises:
            StorageError: nothing of this segment was kept, everything committed before it was.
        """
        results = sorted(filter(self._is_news, results), key=lambda result: result.row)
        if not results:
            return
        columns = {name: [getattr(result, name) for result in results] for name in COLUMNS.names}
        name = f"{self._written:06d}-{self._nonce}.parquet"
        self.home.write(name, _encode(pa.Table.from_pydict(columns, schema=COLUMNS)))
        self._written += 1
        for position, result in enumerate(results):
            self._entry_of_row[result.row - self._first_row] = self._add_entry(len(self._segments), position)
        self._segments.append((self.home, name))

    def unanswered(self) -> int:
        """Rows of the shard for which no answer is committed."""
        return int(pc.sum(pc.equal(self._entries(), _UNANSWERED)).as_py() or 0)

    def rows_by_segment(self) -> Iterator[tuple[pa.Table, pa.Array]]:
        """Every committed answer that a row uses: a segment's answers, and the row numbers they are for.

        Yields:
            A table of `COLUMNS` and an int64 array of the same length. Of the rows that share an answer the first has
            its attempts, the others none. A segment no row uses is not read.
        """
        rows = _int64(array.array("q", range(self._first_row, self._first_row + len(self._entry_of_row))))
        entries = self._entries()
        used = pa.table({"row": rows, "entry": entries}).filter(pc.greater_equal(entries, 0))
        where = _int64(self._where).take(used["entry"])
        used = used.append_column("where", where).sort_by([("where", "ascending"), ("row", "ascending")])
        used = used.append_column("shared", _same_as_before(used["where"].combine_chunks())).combine_chunks()
        segments = pc.shift_right(used["where"], pa.scalar(32, pa.int64()))
        start = 0
        for count in pc.value_counts(segments):
            part = used.slice(start, count["counts"].as_py())
            start += len(part)
            folder, name = self._segments[count["values"].as_py()]
            positions = pc.bit_wise_and(part["where"], pa.scalar(0xFFFFFFFF, pa.int64()))
            table = _read_segment(folder, name, COLUMNS).take(positions)
            attempts = pc.if_else(part["shared"], pa.scalar(0, pa.int32()), table["attempts"])
            at = COLUMNS.get_field_index("attempts")
            yield table.set_column(at, COLUMNS.field(at), attempts), part["row"].combine_chunks()

    def _entries(self) -> pa.Array:
        """The entry of each row."""
        entries = _int64(self._entry_of_row)
        if self._leader_of is None:
            return entries
        leaders = _int64(self._leader_of)
        shared = entries.take(pc.if_else(pc.equal(leaders, _UNANSWERED), None, leaders))
        return pc.if_else(pc.fill_null(pc.greater_equal(shared, 0), False), shared, entries)

    def _is_news(self, result: ChatResult) -> bool:
        nothing = result.outcome in (Outcome.FAILED, Outcome.REJECTED)
        return not nothing or self._entry_of_row[result.row - self._first_row] == _UNANSWERED

    def _add_entry(self, segment: int, position: int) -> int:
        self._where.append(segment << 32 | position)
        return len(self._where) - 1

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _read_folders(self, folders: tuple[Folder, ...]) -> None:
        for folder in folders:
            for name in folder.names():
                if name.endswith(".parquet"):
                    self._read_index(folder, name)
        self._known.freeze()

    def _read_index(self, folder: Folder, name: str) -> None:
        table = _read_segment(folder, name, _INDEX_COLUMNS)
        if folder is self.home:
            self._written = max(self._written, int(name[:6]) + 1 if name[:6].isdigit() else 0)
        segment = len(self._segments)
        self._segments.append((folder, name))
        columns = (table[name].to_pylist() for name in _INDEX_COLUMNS.names)
        try:
            for position, (row, request_hash, outcome) in enumerate(zip(*columns, strict=True)):
                entry = self._add_entry(segment, position)
                if outcome not in _NOT_DONE:
                    self._known.add(entry, request_hash, row, Outcome(outcome))
        except ValueError as error:
            raise _unreadable(folder, name, error) from error


@dataclasses.dataclass(frozen=True)
class State:
    """Where a run keeps its committed rows: one folder for each plan, one in it for each shard."""

    root: Folder

    def home(self, plan: str, shard: int) -> Folder:
        """The folder of one shard of one plan."""
        return self.root / f"ledger/{plan}/{shard:05d}"

    def earlier(self, plan: str) -> tuple[Folder, ...]:
        """Folders of the other plans under this root: the input was edited, or cut another way, since."""
        plans = {name.split("/", 1)[0] for name in (self.root / "ledger").names()}
        return tuple(self.root / f"ledger/{other}" for other in sorted(plans - {plan}))


def _encode(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _int64(numbers: "array.array[int]") -> pa.Array:
    """The numbers as an Arrow array; a copy, since an array that is looked into cannot grow."""
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers.tobytes())])


def _same_as_before(sorted_numbers: pa.Array) -> pa.Array:
    if not len(sorted_numbers):
        return pa.array([], pa.bool_())
    return pa.concat_arrays([pa.array([False]), pc.equal(sorted_numbers[1:], sorted_numbers[:-1])])


def _read_segment(folder: Folder, name: str, columns: pa.Schema) -> pa.Table:
    with folder.open(name) as file:
        try:
            table = pq.ParquetFile(file, page_checksum_verification=True).read(columns=columns.names)
            for at, field in enumerate(columns):  # a column that was added since
                if field.nullable and field.name not in table.column_names:
                    table = table.add_column(at, field, pa.nulls(len(table), field.type))
            return table.cast(columns)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _unreadable(folder, name, error) from error


def _unreadable(folder: Folder, name: str, error: Exception) -> StorageError:
    found = " ".join(str(error).split())
    return StorageError(
        f"cannot read {folder.location}/{name}: {found}. Move the file away; its rows are then sent again."
    )


def _take_lock(home: Folder, patience_s: float) -> int | None:
    """Hold the shard's lock for as long as the descriptor is open. Object stores have none."""
    if home.local_path is None:
        return None
    path = Path(home.local_path) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(
            f"cannot write {home.location}: {error.strerror}. "
            "Choose another folder with --output, or mend its permissions."
        ) from error
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor
            if time.monotonic() < deadline:
                time.sleep(min(0.2, patience_s))
                continue
            os.close(descriptor)
            raise LedgerInUseError(
                f"another process is working on {home.location}. "
                "Wait until it ends, stop it, or choose another --output."
            ) from None
        return descriptor
