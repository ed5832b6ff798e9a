"""The note of which rows of a shard are settled, and how: what a later run need not send again, and can count.

A note holds eight bytes for each row. Its name tells what became of the rows, and which process wrote it: a run that
was killed or stopped goes on in another process, which says in the end what became of all rows.
"""

import hashlib
import os
import secrets
import threading
import time
from pathlib import Path

from clients.errors import StorageError
from clients.storage import Folder
from clients.tracing.tracer import TraceCounts

#: What becomes of rows: they were accepted, or are in files; they are dropped; they were not to be traced; they were in
#: a file, and are dropped.
SETTLED, DROPPED, SAMPLED_OUT, GONE = "settled", "dropped", "unsampled", "gone"

#: Seconds between two notes in an object store, which cannot append.
_NOTE_S = 30.0


class Notes:
    """The notes of one shard. Any thread may write.

    Args:
        folder: Where they are.

    Attributes:
        process: Names this one; times in it sort.
        place: Stands for the folder in names of files that lie elsewhere.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.process = f"{int(time.time()):010d}_{secrets.token_hex(3)}"
        self.place = hashlib.sha256(folder.location.encode("utf-8", "replace")).hexdigest()[:8]
        self._lock = threading.Lock()
        self._waiting: dict[str, list[bytes]] = {}
        self._count = 0
        self._noted_at = time.monotonic()

    def add(self, kind: str, keys: bytes) -> None:
        """Take note of some rows; a note that cannot be written costs no more than sending them again.

        Args:
            kind: What became of them.
            keys: Eight bytes for each.
        """
        self._add(f"{kind}-{self.process}", keys)

    def flush(self) -> None:
        """Leave nothing for later."""
        self._write(now=True)

    def add_gone(self, process: str, rows: int) -> None:
        """Take note that rows of a file are dropped.

        Args:
            process: That wrote it.
            rows: How many.
        """
        self._add(f"{GONE}-{process}", bytes(8 * rows))

    def _add(self, name: str, keys: bytes) -> None:
        if keys:
            with self._lock:
                self._waiting.setdefault(name, []).append(keys)
            self._write()

    def _write(self, *, now: bool = False) -> None:
        place = self._folder.local_path
        with self._lock:
            late = time.monotonic() - self._noted_at >= _NOTE_S
            if not self._waiting or (place is None and not (now or late)):
                return
            notes, self._waiting, self._noted_at = self._waiting, {}, time.monotonic()
            self._count += 1
            number = self._count
        for name, found in notes.items():
            try:
                if place is None:
                    self._folder.write(f"{name}-{self.process}-{number:06d}", b"".join(found))
                else:
                    _append(place / name, b"".join(found))
            except (OSError, StorageError):
                return

    def keys(self) -> bytes:
        """The keys of all rows that are settled, whatever became of them.

        Raises:
            StorageError: a note cannot be read.
        """
        kinds = (SETTLED, DROPPED, SAMPLED_OUT)
        names = [name for name in self._folder.names() if name.partition("-")[0] in kinds]
        return b"".join(found[: len(found) & ~7] for found in map(self._read, names))

    def earlier(self, spooled: int) -> TraceCounts:
        """What became of the rows of earlier processes.

        Args:
            spooled: Rows of them that are in files now.

        Raises:
            StorageError: a note cannot be read.
        """
        rows = dict.fromkeys((SETTLED, DROPPED, SAMPLED_OUT, GONE), 0)
        for name in self._folder.names():
            kind, _, process = name.partition("-")
            if kind in rows and not process.startswith(self.process):
                rows[kind] += len(self._read(name)) // 8
        return TraceCounts(
            exported=max(0, rows[SETTLED] - spooled - rows[GONE]),
            spooled=spooled,
            dropped=rows[DROPPED] + rows[GONE],
            sampled_out=rows[SAMPLED_OUT],
        )

    def _read(self, name: str) -> bytes:
        return self._folder.read(name) or b""


def _append(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
