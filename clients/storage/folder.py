"""A folder of immutable files, on this machine or in an object store."""

import contextlib
import copy
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from clients.errors import StorageError
from clients.storage.addresses import is_uri
from clients.storage.object_stores import COPY_S, connect
from clients.storage.patience import patient
from clients.storage.refused import refusals

if TYPE_CHECKING:
    import pyarrow as pa


#: Bytes that are copied at once.
_BLOCK = 4 << 20

#: Written and removed by `prove`; not listed, for its dot.
_PROOF = ".can-be-written"


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
            self._fs, self._root = connect(self.location)
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

    def folders(self) -> list[str]:
        """The names of the folders right below this one, sorted; what they hold is not listed."""
        with refusals("list", self.location):
            if self._fs is None:
                with contextlib.suppress(FileNotFoundError):
                    return sorted(entry.name for entry in os.scandir(self._root) if entry.is_dir())
                return []
            from pyarrow import fs

            infos = self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
            return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)

    def ages_s(self, now: float) -> dict[str, float]:
        """The files right below this folder, and the seconds since each was written."""
        from pyarrow import fs

        with refusals("list", self.location):
            store = fs.LocalFileSystem() if self._fs is None else self._fs
            infos = store.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
            return {info.base_name: now - info.mtime.timestamp() for info in infos if info.type == fs.FileType.File}

    def read(self, name: str) -> bytes | None:
        """What a small file holds; None when it is not there."""
        with refusals("read", f"{self.location}/{name}"), contextlib.suppress(FileNotFoundError):
            path = f"{self._root}/{name}"
            if self._fs is None:
                return Path(path).read_bytes()
            with patient(self._fs, path) as stream:
                return bytes(stream.readall())
        return None

    def read_note(self, name: str) -> dict[str, Any] | None:
        """The JSON object that a small file holds; None when it is not there.

        Raises:
            StorageError: it cannot be read, or holds something else.
        """
        data = self.read(name)
        try:
            note = {} if data is None else orjson.loads(data)
        except orjson.JSONDecodeError:
            note = None
        if not isinstance(note, dict):
            raise StorageError(
                f"{self.location}/{name} is damaged: {len(data or b'')} bytes that are no JSON object. "
                "Restore it, or remove it and run again: the rows it stands for may then be answered anew"
            )
        return None if data is None else note

    def fetch(self, name: str, path: Path) -> None:
        """Bring a file here."""
        if self._fs is None:
            with refusals("read", f"{self.location}/{name}"):
                _place(Path(self._root) / name, path)
            return
        with self.open(name) as source, refusals("write", path), path.open("wb") as target:
            while data := self._more(source, name):
                target.write(data)

    def _more(self, source: Any, name: str) -> bytes:
        with refusals("read", f"{self.location}/{name}"):
            return bytes(source.read(_BLOCK))

    def open(self, name: str) -> Any:
        """Open one file for random reading: a `pyarrow.NativeFile`, or a file object of Python's."""
        import pyarrow as pa  # late, as below: a run on this machine sends its first request without it

        with refusals("read", f"{self.location}/{name}"):
            path = f"{self._root}/{name}"
            return pa.OSFile(path) if self._fs is None else patient(self._fs, path)

    def write(self, name: str, data: "bytes | pa.Buffer") -> None:
        """Keep `data` under `name`, completely and durably or not at all."""
        with refusals("write", f"{self.location}/{name}"):
            if self._fs is None:
                _write_durably(Path(self._root) / name, data)
            else:
                with self._fs.open_output_stream(f"{self._root}/{name}") as stream:
                    stream.write(data)

    def prove(self) -> None:
        """Write a small file and take it away again: what cannot be written is known before anything costly starts.

        Raises:
            StorageError: it cannot be written.
        """
        self.write(_PROOF, b"")
        with contextlib.suppress(StorageError):  # who may write may not remove everywhere
            self.remove(_PROOF)

    def remove(self, name: str) -> None:
        """Remove one file; it may be gone already."""
        with refusals("write", f"{self.location}/{name}"), contextlib.suppress(FileNotFoundError):
            if self._fs is None:
                (Path(self._root) / name).unlink()
            else:
                self._fs.delete_file(f"{self._root}/{name}")

    def remove_all(self) -> None:
        """Remove the folder with all it holds; it may be gone already."""
        with refusals("write", self.location), contextlib.suppress(FileNotFoundError):
            if self._fs is None:
                shutil.rmtree(self._root)
            else:
                self._fs.delete_dir(self._root)

    def copy(self, name: str, source: "Folder", source_name: str) -> None:
        """Keep a copy of another folder's file; within one store nothing passes through here.

        Args:
            name: Path in this folder.
            source: The other folder.
            source_name: Path in that one.

        Raises:
            StorageError: one of the two refuses.
        """
        if self._fs is not None and source._fs is not None and self._fs.equals(source._fs):  # noqa: SLF001
            with refusals("write", f"{self.location}/{name}"):
                store = self._fs if self._fs.type_name != "s3" else connect(self.location, answer_s=COPY_S)[0]
                store.copy_file(f"{source._root}/{source_name}", f"{self._root}/{name}")  # noqa: SLF001
            return
        if self._fs is None and source._fs is None:  # noqa: SLF001
            self.put(name, Path(source._root) / source_name)  # noqa: SLF001
            return
        with tempfile.TemporaryDirectory(prefix="kllm-copy-") as scratch:
            path = Path(scratch) / "file"
            source.fetch(source_name, path)
            self.put(name, path)

    def put(self, name: str, path: Path) -> None:
        """Keep a finished file of this machine under `name`, replacing what was there only once the new one stands."""
        with refusals("write", f"{self.location}/{name}"):
            if self._fs is None:
                _place(path, Path(self._root) / name)
            else:
                with path.open("rb") as source, self._fs.open_output_stream(f"{self._root}/{name}") as stream:
                    shutil.copyfileobj(source, stream, _BLOCK)


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
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(aside.unlink, missing_ok=True)  # a signal is one, too
        with aside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
        on_failure.pop_all()
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
