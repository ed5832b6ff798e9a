"""Open what prompts are read from: a path, an object store, a web address, or the text itself."""

import base64
import contextlib
import io
import re
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from clients.errors import PromptsError, StorageError
from clients.storage.addresses import in_full, is_uri, remember, shown
from clients.storage.object_stores import connect
from clients.storage.patience import patient
from clients.storage.refused import reason, refusals

_INLINE = "inline:"
_HUB = re.compile(r"hf://(?:(datasets|spaces)/)?((?!(?:datasets|spaces)/)[^/]+/[^/@]+)(?:@([^/]+))?/(.+)")
_BUFFER = 1 << 20

_UNREADABLE = "inline prompts cannot be read"
_WANTED = "They are inline:jsonl: and the base64 of the gzip of the file."

#: Inline prompts may unpack to so much; they came in a parameter, so more is no honest file.
_MOST_INLINE = 64 << 20


@contextlib.contextmanager
def at_hand(prompts: str) -> Iterator[str]:
    """Prompts as something `open_input` opens, by a name that may be told to everyone; for as long as the block lasts.

    Inline prompts are unpacked into a file. A web address is known by what stands before its `?`.

    Raises:
        PromptsError: they cannot be used.
    """
    if prompts.startswith(_INLINE):
        with tempfile.TemporaryDirectory(prefix="kllm-prompts-") as folder:
            kind, data = _unpacked(prompts)
            path = Path(folder) / f"inline-prompts.{kind}"
            with refusals("write", path):
                path.write_bytes(data)
            yield str(path)
    elif prompts.startswith(("http://", "https://", "hf://")):
        yield remember(_web_address(prompts))
    else:
        yield prompts


def open_input(location: str) -> BinaryIO:
    """Open an input for reading bytes, seekable.

    Raises:
        PromptsError: it does not exist, is a folder, or may not be read.
    """
    if is_uri(location):
        return _open_remote(location)
    try:
        stream = Path(location).open("rb", buffering=_BUFFER)  # noqa: SIM115  (the caller closes it)
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
    if location.startswith(("http://", "https://")):
        from clients.storage.web import open_web  # late: most inputs are elsewhere

        return open_web(in_full(location), buffer_bytes=_BUFFER)
    try:
        with refusals("read", location):
            filesystem, path = connect(location)
            return cast(BinaryIO, io.BufferedReader(patient(filesystem, path), buffer_size=_BUFFER))
    except StorageError as error:
        raise PromptsError(str(error)) from error


def _web_address(address: str) -> str:
    """An address without credentials; a file on the Hugging Face hub by its web address."""
    if address.startswith("hf://"):
        match = _HUB.fullmatch(address)
        if match is None:
            raise PromptsError(f"cannot use {address}. Write hf://datasets/OWNER/NAME/FILE.")
        kind, name, revision, file = match.groups()
        return f"https://huggingface.co/{kind + '/' if kind else ''}{name}/resolve/{revision or 'main'}/{file}"
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise PromptsError(
            f"{shown(address)} carries credentials: take out what stands before '@' and give a signed address instead."
        )
    return address


def _unpacked(prompts: str) -> tuple[str, bytes]:
    kind, _, packed = prompts.removeprefix(_INLINE).rpartition(":")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        data = unpacker.decompress(base64.b64decode(packed, validate=True), _MOST_INLINE)
    except (ValueError, zlib.error) as error:
        raise PromptsError(f"{_UNREADABLE}: {error}. {_WANTED}") from error
    if not unpacker.eof or not re.fullmatch(r"[a-z]{0,8}", kind):
        raise PromptsError(f"{_UNREADABLE}: they are cut short, too long, or of no known kind. {_WANTED}")
    return kind or "jsonl", data
