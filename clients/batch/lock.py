"""One process at a time works on a shard."""

import errno
import fcntl
import os
import time
from pathlib import Path

from clients.errors import LedgerInUseError, StorageError
from clients.storage import Folder

#: What a mounted volume says that has no locks; it is then used without, as an object store is.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def take_lock(home: Folder, patience_s: float) -> int | None:
    """Hold the shard's lock for as long as the returned descriptor is open. Object stores have none.

    Args:
        home: The shard's folder.
        patience_s: Seconds to wait for another process to end.

    Raises:
        LedgerInUseError: another process works on the shard.
        StorageError: the folder cannot be written.
    """
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
                "Wait until it ends, stop it, or choose another --output (on Kubeflow: --state)."
            ) from None
        return descriptor


def release_lock(lock: int | None) -> None:
    """Let go."""
    if lock is not None:
        os.close(lock)
