"""Traces on a disk or in an object store: those that Langfuse did not take.

A file `*.otlp.gz` is a request as it is posted; the digits before the suffix count its rows.
"""

import contextlib
import dataclasses
import datetime as dt
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from clients.errors import StorageError
from clients.records import ChatResult, Outcome
from clients.storage import Folder
from clients.tracing.notes import DROPPED, SETTLED, Notes
from clients.tracing.spans import microseconds
from clients.tracing.tracer import TraceCounts

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".otlp.gz"

#: Odd numbers that spread a row and a time over 64 bits.
_BY_TIME, _BY_ROW, _ALL = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, (1 << 64) - 1

#: Most rows of an earlier run that are taken up again: as many as wait to be sent, and some seconds' worth.
_MAX_UNSETTLED = 50_000


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

_FIELDS = [field.name for field in dataclasses.fields(ChatResult)]


def row_key(result: ChatResult) -> bytes:
    """What stands for one execution of a row."""
    started_us = 0 if result.started_at is None else microseconds(result.started_at)
    return (started_us * _BY_TIME + result.row * _BY_ROW & _ALL).to_bytes(8, "little")


def rows_in(name: str) -> int:
    """How many rows a file holds, by its name."""
    digits = name.removesuffix(SUFFIX).rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0


def _writer_of(name: str) -> tuple[str, str]:
    """Which notes a file belongs to, and which process wrote it; empty where the name is none of ours."""
    words = name.removesuffix(SUFFIX).split("-")
    return (words[2], words[0]) if len(words) == 4 else ("", "")


class Spool:
    """The files of one shard, and the notes of its rows. Any thread may write.

    Args:
        folder: Where the files are.
        notes: Where the notes are; None for the same folder.
    """

    def __init__(self, folder: Folder, *, notes: Folder | None = None) -> None:
        self.folder = folder
        self.notes = Notes(notes or folder)
        self._count = 0
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Files with traces, oldest first.

        Raises:
            StorageError: the folder cannot be listed.
        """
        return [name for name in self.folder.names() if name.endswith(SUFFIX)]

    def read(self, name: str) -> bytes:
        """The body of a request.

        Raises:
            StorageError: it cannot be read.
        """
        with self.folder.open(name) as stream:
            return bytes(stream.read())

    def keep(self, body: bytes, rows: int) -> str:
        """Keep a request; returns its name.

        Raises:
            StorageError: it cannot be written.
        """
        with self._lock:
            self._count += 1
            name = f"{self.notes.process}-{self._count:06d}-{self.notes.place}-{rows}{SUFFIX}"
        self.folder.write(name, body)
        return name

    def settle(self, keys: bytes) -> None:
        """Take note of rows that were accepted, or are in files."""
        self.notes.add(SETTLED, keys)

    def drop(self, name: str, keys: bytes) -> None:
        """Take note of rows that are dropped; a file of them is removed.

        Args:
            name: Of the file; "" for none.
            keys: Of the rows, unless they are in a file.
        """
        if not name:
            self.notes.add(DROPPED, keys)
            return
        place, process = _writer_of(name)
        if place == self.notes.place:
            self.notes.add_gone(process, rows_in(name))
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a file, if the place allows it: what it holds is in Langfuse, or of no use."""
        with contextlib.suppress(StorageError):
            self.folder.remove(name)

    def earlier(self) -> TraceCounts:
        """What became of the rows that earlier processes committed and have in the notes.

        Raises:
            StorageError: the folder cannot be read.
        """
        own = self.notes
        files = [(name, *_writer_of(name)) for name in self.names()]
        return own.earlier(
            sum(rows_in(name) for name, place, process in files if place == own.place and process != own.process)
        )


def unsettled(spool: Spool, home: Folder) -> dict[int, ChatResult]:
    """Rows of the shard that were committed to be traced, and whose trace is neither accepted nor in a file.

    A run that was killed leaves some: those that it had not sent yet.

    Args:
        spool: The shard's traces.
        home: The shard's committed answers.

    Returns:
        Their records by row.

    Raises:
        StorageError: a file cannot be read.
    """
    names = [name for name in home.names() if name.endswith(".parquet")]
    if not names:
        return {}
    import pyarrow as pa  # late: a first run finds nothing to read

    settled = pa.Array.from_buffers(
        pa.uint64(), (size := len(keys := spool.notes.keys())) // 8, [None, pa.py_buffer(keys)]
    )
    found: dict[int, ChatResult] = {}
    for name in names:
        for result in _records(home, name, settled if size else pa.array([], pa.uint64())):
            found[result.row] = result
            if len(found) >= _MAX_UNSETTLED:
                return found
    return found


def _records(home: Folder, name: str, settled: "pa.Array") -> Iterator[ChatResult]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with home.open(name) as stream, pq.ParquetFile(stream) as file:
            known = file.read(columns=["row", "started_at", "trace_id"], use_threads=False)
            by_time = pc.multiply(
                known["started_at"].cast(pa.int64()).cast(pa.uint64()), pa.scalar(_BY_TIME, pa.uint64())
            )
            by_row = pc.multiply(known["row"].cast(pa.uint64()), pa.scalar(_BY_ROW, pa.uint64()))
            keys = pc.add(by_time, by_row)
            open_rows = pc.and_(pc.is_valid(known["trace_id"]), pc.invert(pc.is_in(keys, value_set=settled)))
            open_rows = pc.fill_null(pc.and_(open_rows, pc.is_valid(known["started_at"])), False)
            if not pc.any(open_rows).as_py():
                return
            names = [name for name in _FIELDS if name in file.schema_arrow.names]
            table = file.read(columns=names, use_threads=False).filter(open_rows)
            at = table.column_names.index("started_at")  # as a number: Arrow looks for pandas to make a time of it
            table = table.set_column(at, "started_at", table["started_at"].cast(pa.int64()))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise StorageError(f"cannot read {home.location}/{name}: {' '.join(str(error).split())}") from error
    for fields in table.to_pylist():
        started_at = _EPOCH + dt.timedelta(microseconds=fields["started_at"])
        yield ChatResult(**{**fields, "outcome": Outcome(fields["outcome"]), "started_at": started_at})
