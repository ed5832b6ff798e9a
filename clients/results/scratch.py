"""A file for what need not be in memory. It has no name, so nothing of it outlives the process."""

import os
import tempfile
import weakref
from pathlib import Path

from clients.storage import refusals


class Scratch:
    """Bytes by their position.

    Args:
        folder: On whose disk it lies; None is the system's folder for temporary files.

    Raises:
        StorageError: the folder takes no file.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or tempfile.gettempdir()
        with refusals("write", self._folder), tempfile.TemporaryFile(dir=folder) as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self.size = 0

    def append(self, data: bytes | memoryview) -> int:
        """Write at the end; returns where that was."""
        start = self.size
        self.write(data, start)
        self.size += len(data)
        return start

    def write(self, data: bytes | memoryview, start: int) -> None:
        """Write at a position, over what was there.

        Raises:
            StorageError: the disk is full.
        """
        try:
            while (done := os.pwrite(self._descriptor, data, start)) < len(data):
                data, start = data[done:], start + done
        except OSError:
            with refusals("write", self._folder):
                raise

    def read(self, start: int, size: int) -> bytes:
        """Bytes from a position; fewer where the file ends."""
        return os.pread(self._descriptor, size, start)
