"""One way to read an input and to keep files, on this machine or in an object store (pyarrow.fs).

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
from typing import Any, BinaryIO, cast

import pyarrow as pa
from pyarrow import fs

from clients.errors import PromptsError, StorageError


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
        self._fs, self._root = _remote(self.location) if is_uri(location) else (fs.LocalFileSystem(), self.location)
        self._remote = not isinstance(self._fs, fs.LocalFileSystem)

    def __truediv__(self, name: str) -> "Folder":
        inner = copy.copy(self)  # one connection for all folders of a store
        inner.location, inner._root = f"{self.location}/{name}", f"{self._root}/{name}"
        return inner

    @property
    def local_path(self) -> Path | None:
        """The folder on this machine, or None in an object store."""
        return None if self._remote else Path(self._root)

    def names(self) -> list[str]:
        """Every file below this folder, relative and sorted; unfinished writes (`.` files) are not files."""
        selector = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
        with refusals("list", self.location):
            infos = self._fs.get_file_info(selector)
        paths = (info.path[len(self._root) :].lstrip("/") for info in infos if info.type == fs.FileType.File)
        return sorted(path for path in paths if not path.rpartition("/")[2].startswith("."))

    def open(self, name: str) -> Any:
        """Open one file for random reading (a `pyarrow.NativeFile`)."""
        with refusals("read", f"{self.location}/{name}"):
            return self._fs.open_input_file(f"{self._root}/{name}")

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Keep `data` under `name`, completely and durably or not at all."""
        with refusals("write", f"{self.location}/{name}"):
            if self._remote:
                with self._fs.open_output_stream(f"{self._root}/{name}") as stream:
                    stream.write(data)
            else:
                _write_durably(Path(self._root) / name, data)

    def remove(self, name: str) -> None:
        """Remove one file; it may be gone already."""
        with refusals("write", f"{self.location}/{name}"), contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(f"{self._root}/{name}")

    def put(self, name: str, path: Path) -> None:
        """Keep a finished file of this machine under `name`, replacing what was there only once the new one stands."""
        with refusals("write", f"{self.location}/{name}"):
            if self._remote:
                with path.open("rb") as source, self._fs.open_output_stream(f"{self._root}/{name}") as stream:
                    shutil.copyfileobj(source, stream, 1 << 20)
            else:
                _place(path, Path(self._root) / name)


def _write_durably(path: Path, data: bytes | pa.Buffer) -> None:
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
