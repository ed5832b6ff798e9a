"""One way to read an input and to keep files, on this machine or in an object store (pyarrow.fs).

A write is all or nothing: on a disk it goes aside, is synced and renamed; in an object store it is a single put.
"""

import errno
import io
import os
import secrets
import shutil
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
        filesystem, path = _remote(location)
        try:
            return cast(BinaryIO, io.BufferedReader(filesystem.open_input_file(path), buffer_size=1 << 20))
        except OSError as error:
            raise PromptsError(
                f"cannot read {location}: {_reason(error)}. Check the address and its access."
            ) from error
    try:
        return Path(location).open("rb", buffering=1 << 20)
    except FileNotFoundError as error:
        raise PromptsError(f"no such file: {location}. Give --prompts a JSONL file, one request a line.") from error
    except IsADirectoryError as error:
        raise PromptsError(f"{location} is a folder. Give --prompts one JSONL file inside it.") from error
    except OSError as error:
        raise PromptsError(f"cannot read {location}: {_reason(error)}. Check its permissions.") from error


class Folder:
    """A folder of immutable files, on this machine or in an object store.

    Args:
        location: Path or URI. A local folder is made at the first write.
    """

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/")
        self._remote = is_uri(location)
        self._fs, self._root = _remote(self.location) if self._remote else (fs.LocalFileSystem(), self.location)

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.location}/{name}")

    @property
    def local_path(self) -> Path | None:
        """The folder on this machine, or None in an object store."""
        return None if self._remote else Path(self.location)

    def names(self) -> list[str]:
        """Every file below this folder, relative and sorted; unfinished writes (`.` files) are not files."""
        selector = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
        try:
            infos = self._fs.get_file_info(selector)
        except OSError as error:
            raise self._refused("list", "", error) from error
        paths = (info.path[len(self._root) :].lstrip("/") for info in infos if info.type == fs.FileType.File)
        return sorted(path for path in paths if not path.rpartition("/")[2].startswith("."))

    def open(self, name: str) -> Any:
        """Open one file for random reading (a `pyarrow.NativeFile`)."""
        try:
            return self._fs.open_input_file(f"{self._root}/{name}")
        except OSError as error:
            raise self._refused("read", name, error) from error

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Keep `data` under `name`, completely and durably or not at all."""
        try:
            if self._remote:
                with self._fs.open_output_stream(f"{self._root}/{name}") as stream:
                    stream.write(data)
            else:
                _write_durably(Path(self._root) / name, data)
        except OSError as error:
            raise self._refused("write", name, error) from error

    def put(self, name: str, path: Path) -> None:
        """Keep a finished file of this machine under `name`, replacing what was there only once the new one stands."""
        try:
            if self._remote:
                with path.open("rb") as source, self._fs.open_output_stream(f"{self._root}/{name}") as stream:
                    shutil.copyfileobj(source, stream, 1 << 20)
            else:
                _place(path, Path(self._root) / name)
        except OSError as error:
            raise self._refused("write", name, error) from error

    def _refused(self, verb: str, name: str, error: OSError) -> StorageError:
        where = f"{self.location}/{name}".rstrip("/")
        mend = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check that it can be written"
        return StorageError(f"cannot {verb} {where}: {_reason(error)}. {mend} and run the same command again.")


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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _remote(location: str) -> tuple[Any, str]:
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StorageError(
            f"cannot use {location}: {error}. Give a path, or an address such as s3://bucket/key."
        ) from error
    return filesystem, path


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
