"""Reading from a store in trouble, where Arrow gives up at once."""

import time
from typing import Any

from clients.storage.seekable import SeekableFile

#: Seconds before each further try.
_PATIENCE_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)

#: What Arrow says when a 503 or a cut connection meets a read of a few bytes: it reads into a buffer of the wanted
#: size, and the store's own words, which are longer, do not fit. So it does not know that it might try again.
_SPOILT = "Failed to flush response stream"


def patient(store: Any, path: str) -> Any:
    """Open a file of a store for random reading; what passes is waited for.

    Args:
        store: A file system of pyarrow.
        path: In it.

    Raises:
        OSError: it cannot be read; FileNotFoundError when it is not there.
    """
    file = store.open_input_file(path)
    return _PatientFile(file) if store.type_name == "s3" else file


class _PatientFile(SeekableFile):
    def __init__(self, file: Any) -> None:
        super().__init__(file.size())
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Read on, up to the end without a size."""
        left = max(0, self._size - self._at)
        data = self._read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _read(self, size: int) -> bytes:
        for delay_s in _PATIENCE_S if size else ():
            try:
                return bytes(self._file.read_at(size, self._at))
            except OSError as error:
                if _SPOILT not in str(error):
                    raise
                time.sleep(delay_s)
        return bytes(self._file.read_at(size, self._at)) if size else b""
