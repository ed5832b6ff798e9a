"""The ledger of one shard: committed answers in immutable Parquet segments, found again by their request's hash.

A segment counts once its write is complete; killing the process at any byte loses at most what was not yet committed.
A new answer costs no memory, one of an earlier run some 33 bytes, whatever its length.
"""

import array
import concurrent.futures
import contextlib
import dataclasses
import secrets
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import orjson

from clients.batch.answer_index import AnswerIndex, entries_of, outcome_of, positions_of, segment_of
from clients.batch.compaction import compact, groups_of, segments_of
from clients.batch.journal import Journal
from clients.batch.lock import release_lock, take_lock
from clients.batch.pairs import Pairs
from clients.batch.recovery import recover, recover_earlier
from clients.errors import PromptsError
from clients.records import ChatRequest, ChatResult, Outcome
from clients.storage import Folder
from clients.storage.generations import FINISHED

if TYPE_CHECKING:
    import pyarrow as pa

#: Seconds that a second process waits for the lock of a shard that is still running; a pod that is being killed is
#: gone by then.
LOCK_PATIENCE_S = 15.0

#: Segments that are read at once from an object store, and so many before the first of them is looked at.
_READERS, _READ_AHEAD = 16, 256

#: The lowest row that uses an answer of a segment which no row uses.
_NO_ROW = (1 << 63) - 1


class Ledger:
    """Answers of one shard, new ones and those of earlier runs. A context manager that holds the shard's lock.

    Args:
        home: Folder of this shard's own segments.
        earlier: Folders of other plans' segments, whose answers are reused where the request is the same.
        parts: Finished parts of an earlier run, each in its folder, whose answers are reused likewise.
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
        parts: tuple[tuple[Folder, str], ...] = (),
        first_row: int,
        rows: int,
        retry: frozenset[Outcome] = frozenset(),
        share: bool = False,
        lock_patience_s: float = LOCK_PATIENCE_S,
    ) -> None:
        self._retry = retry
        self.home = home
        self._first_row, self._rows = first_row, rows
        self._segments: list[tuple[Folder, str]] = []
        self._lowest = array.array("q")  # of each segment, the lowest row that uses one of its answers
        self._claims, self._joined = Pairs(), Pairs()  # entry: row that took it over; row: next row that asks the same
        self._again: dict[int, int] = {}  # row that was to be sent again and has no new answer: its earlier one
        self._claimed = self._committed = self._written = 0
        self._nonce = secrets.token_hex(4)
        self._known = AnswerIndex(share=share)
        self._lock = take_lock(home, lock_patience_s)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._unlock)  # nobody else would let go of it
            self._read_folders((*earlier, home), parts)
            on_failure.pop_all()
        self._earlier = len(self._segments)

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
        row = request.row
        if not 0 <= row - self._first_row < self._rows:
            raise PromptsError(
                f"row {row} is not among the {self._rows} rows of its shard: the input has "
                "changed since it was checked. Run the same command again."
            )
        entry = self._known.take(request.request_hash, row)
        if entry is None:
            return None
        self._claimed += 1
        outcome = outcome_of(entry)
        if outcome in self._retry:
            self._again[row] = entry
            return None
        self._use(entry, row)
        return outcome

    def journal(self) -> Journal | None:
        """A journal for the answers that are not committed yet; None in an object store, which cannot append."""
        return None if self.home.local_path is None else Journal(self.home.local_path)

    def join(self, row: int, earlier: int) -> None:
        """Give a row whatever answer an earlier row has or will have.

        Args:
            row: Of the shard.
            earlier: The last row before it that asks the same.
        """
        self._joined.add(earlier, row)

    def commit(self, results: list[ChatResult]) -> None:
        """Write some answers as one segment, sorted by row; they are kept when this returns.

        A row that was sent again and has come to nothing keeps its earlier answer.

        Raises:
            StorageError: nothing of this segment was kept, everything committed before it was.
        """
        results = sorted(filter(self._is_news, results), key=lambda result: result.row)
        if not results:
            return
        name = f"{self._written:06d}-{self._nonce}.parquet"
        from clients.batch.segments import encode, table_of  # late, with Arrow: the first answers come sooner without

        self.home.write(name, encode(table_of(results)))
        self._written += 1
        for result in results:
            self._committed += self._again.pop(result.row, None) is None
        self._segments.append((self.home, name))
        self._lowest.append(results[0].row)

    def unanswered(self) -> int:
        """Rows of the shard for which no answer of their own is committed."""
        return self._rows - self._claimed - self._committed

    def rows_by_segment(self) -> "Iterator[tuple[pa.Table, pa.Array]]":
        """Every committed answer that a row uses: a segment's answers, and the row numbers they are for.

        Called once nothing will be committed any more. A segment no row uses is not read.

        Yields:
            A table of `COLUMNS` and an int64 array of the same length, ascending; the first row of each is not below
            that of the one before. Of the rows that share an answer the first has its attempts, the others none. Rows
            that were joined are not among them, see `joined`.
        """
        from clients.batch.segments import read_segment
        from clients.results.schema import COLUMNS

        while self._again:
            row, entry = self._again.popitem()
            self._use(entry, row)
        for segment in sorted(range(len(self._segments)), key=self._lowest.__getitem__):
            if self._lowest[segment] == _NO_ROW:
                return
            table = read_segment(*self._segments[segment], COLUMNS)
            if segment < self._earlier:
                yield _taken_over(table, *self._claims.between(*entries_of(segment)))
            else:
                yield table, table["row"].combine_chunks()

    def joined(self, low: int, high: int) -> "tuple[pa.Array, pa.Array]":
        """Of the rows from `low` to below `high`, those that ask the same as a later row, and the next such row."""
        return self._joined.between(low, high)

    def _use(self, entry: int, row: int) -> None:
        self._claims.add(entry, row)
        segment = segment_of(entry)
        self._lowest[segment] = min(self._lowest[segment], row)

    def _is_news(self, result: ChatResult) -> bool:
        return result.outcome not in (Outcome.FAILED, Outcome.REJECTED) or result.row not in self._again

    def _unlock(self) -> None:
        release_lock(self._lock)
        self._lock = None

    def _read_folders(self, folders: tuple[Folder, ...], parts: tuple[tuple[Folder, str], ...]) -> None:
        recover_earlier(folders[:-1])
        recover(self.home)
        compact(self.home)
        found = [group for folder, name in parts for group in groups_of(folder, name)]
        found += [(folder, name) for folder in folders for name in segments_of(folder)]
        if found:
            self._read_indexes(found)
        self._known.freeze()

    def _read_indexes(self, segments: list[tuple[Folder, str]]) -> None:
        from clients.batch.segments import INDEX_COLUMNS, read_segment, unreadable

        with concurrent.futures.ThreadPoolExecutor(1 if self.home.local_path else _READERS, "index") as pool:
            for at in range(0, len(segments), _READ_AHEAD):
                few = segments[at : at + _READ_AHEAD]
                tables = pool.map(lambda one: read_segment(one[0], one[1], INDEX_COLUMNS), few)
                for (folder, name), table in zip(few, tables, strict=True):
                    if folder is self.home:
                        self._written = max(self._written, int(name[:6]) + 1 if name[:6].isdigit() else 0)
                    try:
                        self._known.add(len(self._segments), table)
                    except ValueError as error:
                        raise unreadable(folder, name, error) from error
                    self._segments.append((folder, name))
                    self._lowest.append(_NO_ROW)


@dataclasses.dataclass(frozen=True)
class State:
    """Where a run keeps its committed rows: one folder for each plan, one in it for each shard."""

    root: Folder

    def home(self, plan: str, shard: int) -> Folder:
        """The folder of one shard of one plan."""
        return self.root / f"ledger/{plan}/{shard:05d}"

    def earlier(self, plan: str) -> tuple[Folder, ...]:
        """Folders of the other plans under this root: the input was edited, or cut another way, since."""
        plans = set((self.root / "ledger").folders())
        return tuple(self.root / f"ledger/{other}" for other in sorted(plans - {plan}))


def finished_parts(generation: str) -> tuple[tuple[Folder, str], ...]:
    """The parts of a finished generation, see `clients.storage.generations`; none when it is gone.

    Raises:
        StorageError: it cannot be read.
    """
    folder = Folder(generation)
    facts: dict[str, Any] = orjson.loads(folder.read(FINISHED) or b"{}")
    return tuple((folder, name) for name in facts.get("parts", ()))


def _taken_over(table: "pa.Table", entries: "pa.Array", rows: "pa.Array") -> "tuple[pa.Table, pa.Array]":
    """Answers of an earlier segment for the rows that took them over."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from clients.results.schema import COLUMNS

    taken = pa.RecordBatch.from_arrays([entries, rows], names=["entry", "row"])
    taken = taken.take(pc.sort_indices(taken, sort_keys=[("entry", "ascending"), ("row", "ascending")]))
    entries = taken["entry"]
    shared = pa.concat_arrays([pa.array([False]), pc.equal(entries[1:], entries[:-1])])
    order = pc.sort_indices(taken["row"])
    table = table.take(positions_of(entries.take(order)))
    at = COLUMNS.get_field_index("attempts")
    attempts = pc.if_else(shared.take(order), pa.scalar(0, pa.int32()), table["attempts"])
    return table.set_column(at, COLUMNS.field(at), attempts), taken["row"].take(order)
