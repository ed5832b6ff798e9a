"""One way to read an input and to keep files, on this machine or, with pyarrow.fs, in an object store.

A write is all or nothing: on a disk it goes aside, is synced and renamed; in an object store it is a single put.
"""

import contextlib
import copy
import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from clients.errors import PromptsError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa


def is_uri(location: str) -> bool:
    """Tell an object-store address such as `s3://bucket/key` from a path on this machine."""
    return "://" in location


def open_input(location: str) -> BinaryIO:
    """Open an input for reading bytes, seekable.

    Raises:
        PromptsError: it does not exist, is a folder, or may not be read.
    """
    if is_uri(location):
        return _open_remote(location)
    try:
        stream = Path(location).open("rb", buffering=1 << 20)  # noqa: SIM115  (the caller closes it)
    except FileNotFoundError as error:
        raise PromptsError(f"no such file: {location}. Give --prompts a JSONL, CSV or Parquet file.") from error
    except IsADirectoryError as error:
        raise PromptsError(f"{location} is a folder. Give --prompts one file inside it.") from error
    except OSError as error:
        raise PromptsError(f"cannot read {location}: {reason(error)}. Check its permissions.") from error
    if not stream.seekable():
        stream.close()
        raise PromptsError(f"{location} is a pipe, and the prompts are read more than once. Save them in a file first.")
    return stream


def _open_remote(location: str) -> BinaryIO:
    try:
        filesystem, path = _remote(location)
        return cast(BinaryIO, io.BufferedReader(filesystem.open_input_file(path), buffer_size=1 << 20))
    except StorageError as error:
        raise PromptsError(str(error)) from error
    except OSError as error:
        raise PromptsError(f"cannot read {location}: {reason(error)}. Check the address and its access.") from error


@contextlib.contextmanager
def refusals(verb: str, where: str | Path) -> Iterator[None]:
    """Turn what a disk or an object store refuses inside the block into a `StorageError` with a mend.

    Args:
        verb: What is done: list, read or write.
        where: To what.
    """
    try:
        yield
    except OSError as error:
        mend = f"Check that it can be {'written' if verb == 'write' else 'read'}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            mend = "Free some space"
        raise StorageError(f"cannot {verb} {where}: {reason(error)}. {mend} and run the same command again.") from error


class Folder:
    """A folder of immutable files, on this machine or in an object store.

    Args:
        location: Path or URI. A local folder is made at the first write.
    """

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/") or location[:1] or "."
        self._fs: Any = None
        self._root = self.location
        if is_uri(location):
            self._fs, self._root = _remote(self.location)
        if self._fs is not None and self._fs.type_name == "local":  # file:///folder
            self._fs = None

    def __truediv__(self, name: str) -> "Folder":
        inner = copy.copy(self)  # one connection for all folders of a store
        inner.location, inner._root = f"{self.location}/{name}", f"{self._root}/{name}"
        return inner

    @property
    def local_path(self) -> Path | None:
        """The folder on this machine, or None in an object store."""
        return Path(self._root) if self._fs is None else None

    def names(self) -> list[str]:
        """Every file below this folder, relative and sorted; unfinished writes (`.` files) are not files."""
        with refusals("list", self.location):
            found = _local_files(self._root) if self._fs is None else _remote_files(self._fs, self._root)
            paths = [path[len(self._root) :].lstrip("/") for path in found]
        return sorted(path for path in paths if not path.rpartition("/")[2].startswith("."))

    def open(self, name: str) -> Any:
        """Open one file for random reading (a `pyarrow.NativeFile`)."""
        import pyarrow as pa  # late, as below: a run on this machine sends its first request without it

        with refusals("read", f"{self.location}/{name}"):
            path = f"{self._root}/{name}"
            return pa.OSFile(path) if self._fs is None else self._fs.open_input_file(path)

    def write(self, name: str, data: "bytes | pa.Buffer") -> None:
        """Keep `data` under `name`, completely and durably or not at all."""
        with refusals("write", f"{self.location}/{name}"):
            if self._fs is None:
                _write_durably(Path(self._root) / name, data)
            else:
                with self._fs.open_output_stream(f"{self._root}/{name}") as stream:
                    stream.write(data)

    def remove(self, name: str) -> None:
        """Remove one file; it may be gone already."""
        with refusals("write", f"{self.location}/{name}"), contextlib.suppress(FileNotFoundError):
            if self._fs is None:
                (Path(self._root) / name).unlink()
            else:
                self._fs.delete_file(f"{self._root}/{name}")

    def put(self, name: str, path: Path) -> None:
        """Keep a finished file of this machine under `name`, replacing what was there only once the new one stands."""
        with refusals("write", f"{self.location}/{name}"):
            if self._fs is None:
                _place(path, Path(self._root) / name)
            else:
                with path.open("rb") as source, self._fs.open_output_stream(f"{self._root}/{name}") as stream:
                    shutil.copyfileobj(source, stream, 1 << 20)


def _local_files(root: str) -> Iterator[str]:
    def stop(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, _, names in os.walk(root, onerror=stop, followlinks=True):
        yield from (f"{folder}/{name}" for name in names)


def _remote_files(store: Any, root: str) -> Iterator[str]:
    from pyarrow import fs

    infos = store.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    return (info.path for info in infos if info.type == fs.FileType.File)


def _write_durably(path: Path, data: "bytes | pa.Buffer") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        with aside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(target)
    try:
        try:
            aside.hardlink_to(source)  # free on the same disk; results may be large
        except OSError:
            shutil.copyfile(source, aside)
        _sync(aside)
        aside.replace(target)
        _sync(target.parent)
    finally:
        aside.unlink(missing_ok=True)


def _remote(location: str) -> tuple[Any, str]:
    import pyarrow as pa
    from pyarrow import fs

    mend = "Give a path, or an address such as s3://bucket/key."
    if not location.partition("://")[2]:
        raise StorageError(f"cannot use {location}: it names no bucket. {mend}")
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise StorageError(f"cannot use {location}: {' '.join(str(error).split())}. {mend}") from error
    return filesystem, path


def reason(error: OSError) -> str:
    """What an error says, on one line."""
    return " ".join((error.strerror or str(error)).split())
