"""Files packed with gzip or zstd, read as if they were not: in flat memory, from the start on only."""

import io
from typing import Any, cast

from clients.errors import PromptsError

#: How a packed file begins, the name of its format, and the command that unpacks it.
PACKINGS = ((b"\x1f\x8b", "gzip", "gzip -dc"), (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"))

_BLOCK = 1 << 20


def unpacked(location: str, stream: io.BufferedReader, packing: str) -> io.BufferedReader:
    """What is packed in a stream; several members one after another are one.

    Reading from it raises PromptsError where the file is damaged.

    Args:
        location: Of the file, for messages.
        stream: What is packed.
        packing: `gzip` or `zstd`.
    """
    import pyarrow as pa  # late: most inputs are not packed

    raw = _Unpacked(location, pa.CompressedInputStream(stream, packing), packing)
    return io.BufferedReader(cast(io.RawIOBase, raw), buffer_size=_BLOCK)


def forward(stream: io.BufferedReader, offset: int, *, at: int = 0) -> None:
    """Go from the offset `at` on to a later one; a packed stream has to be read up to there.

    Args:
        stream: Stands at `at`.
        offset: Byte to go to.
        at: Byte where it stands.
    """
    if stream.seekable():
        stream.seek(offset)
        return
    while at < offset and (data := stream.read(min(offset - at, _BLOCK))):
        at += len(data)


class _Unpacked(io.RawIOBase):
    def __init__(self, location: str, source: Any, packing: str) -> None:
        self._location, self._source, self._packing = location, source, packing

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read(len(buffer))
        except OSError as error:
            if error.errno is not None:  # the disk's, not the archive's
                raise
            raise PromptsError(
                f"{self._location} is damaged: {error} ({self._packing}). Copy it once more, or pack it anew."
            ) from error
        buffer[: len(data)] = data
        return len(data)
