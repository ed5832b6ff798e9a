"""Traces on a disk or in an object store: those that Langfuse did not take, and the note of which rows are settled.

A file `*.otlp.gz` is a request as it is posted; the digits before the suffix count its rows. `settled-*` files hold
eight bytes for each row that was accepted, or whose trace stands in such a file: what a later run need not send again.
"""

import dataclasses
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from clients.errors import StorageError
from clients.records import ChatResult, Outcome
from clients.storage import Folder
from clients.tracing.spans import microseconds

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".otlp.gz"
_SETTLED = "settled-"

#: Seconds between two notes in an object store, which cannot append.
_NOTE_S = 30.0

#: Odd numbers that spread a row and a time over 64 bits.
_BY_TIME, _BY_ROW, _ALL = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, (1 << 64) - 1

#: Most rows of an earlier run that are taken up again: as many as wait to be sent, and some seconds' worth.
_MAX_UNSETTLED = 50_000


_FIELDS = [field.name for field in dataclasses.fields(ChatResult)]


def row_key(result: ChatResult) -> bytes:
    """What stands for one execution of a row."""
    started_us = 0 if result.started_at is None else microseconds(result.started_at)
    return (started_us * _BY_TIME + result.row * _BY_ROW & _ALL).to_bytes(8, "little")


def rows_in(name: str) -> int:
    """How many rows a file holds, by its name."""
    digits = name.removesuffix(SUFFIX).rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0


class Spool:
    """The files of one shard. Any thread may write.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._nonce = f"{int(time.time()):010d}-{secrets.token_hex(3)}"
        self._count = 0
        self._lock = threading.Lock()
        self._notes: list[bytes] = []
        self._noted_at = time.monotonic()

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
            name = f"{self._nonce}-{self._count:06d}-{rows}{SUFFIX}"
        self.folder.write(name, body)
        return name

    def settle(self, keys: bytes, *, now: bool = False) -> None:
        """Take note of rows that are settled; a note that cannot be written costs no more than sending them again."""
        with self._lock:
            if keys:
                self._notes.append(keys)
            place = self.folder.local_path
            late = time.monotonic() - self._noted_at >= _NOTE_S
            if not self._notes or (place is None and not (now or late)):
                return
            notes, self._notes, self._noted_at = b"".join(self._notes), [], time.monotonic()
            self._count += place is None
            name = f"{_SETTLED}{self._nonce}-{self._count:06d}"
        try:
            if place is None:
                self.folder.write(name, notes)
            else:
                _append(place / f"{_SETTLED}{self._nonce}", notes)
        except (OSError, StorageError):
            return

    def settled(self) -> bytes:
        """The keys of all rows that are settled.

        Raises:
            StorageError: a note cannot be read.
        """
        names = [name for name in self.folder.names() if name.startswith(_SETTLED)]
        return b"".join(found[: len(found) & ~7] for found in map(self.read, names))


def _append(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


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
        pa.uint64(), (size := len(keys := spool.settled())) // 8, [None, pa.py_buffer(keys)]
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
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise StorageError(f"cannot read {home.location}/{name}: {' '.join(str(error).split())}") from error
    for fields in table.to_pylist():
        yield ChatResult(**{**fields, "outcome": Outcome(fields["outcome"])})
