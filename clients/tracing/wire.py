"""Trace data as OTLP puts it on the wire, which is protobuf: written, divided and cut without a package for it.

Only what a span of ours needs: a pod has nothing to install, and a span's bytes cost a third of those packages' time.
Field numbers are those of opentelemetry/proto/{trace,common,resource,collector}; tests decode with the real package.
"""

import zlib
from collections.abc import Iterable, Iterator

#: Fields of messages: (number << 3) | kind, where kind 2 is bytes with their length and 1 is eight bytes.
_BYTES, _EIGHT = 2, 1

#: What is left of each long text of a span that is too large, and where a text begins to be long.
_CUT_BYTES, _LONG_BYTES = 20_000, 24_000

CUT_MARK = "langfuse.observation.metadata.content_cut"


def field(number: int, data: bytes) -> bytes:
    """A field that holds bytes, a text or a message."""
    return bytes(((number << 3) | _BYTES,)) + _varint(len(data)) + data


def eight(number: int, value: int) -> bytes:
    """A field of kind fixed64."""
    return bytes(((number << 3) | _EIGHT,)) + value.to_bytes(8, "little")


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def text(value: str) -> bytes:
    """Text as protobuf wants it; half a character, which JSON can hold, is replaced."""
    return value.encode("utf-8", "replace")


class Attribute:
    """A span attribute with a text for its value, of which only the value is still to come.

    Args:
        key: Its name.
    """

    __slots__ = ("_head", "_head_size")

    def __init__(self, key: str) -> None:
        self._head = field(1, key.encode())
        self._head_size = len(self._head)

    def __call__(self, value: bytes) -> bytes:
        """The attribute as a field of a span."""
        size = len(value)
        if size < 0x70 - self._head_size:  # every length takes one byte
            return b"\x4a%c%b\x12%c\x0a%c%b" % (self._head_size + size + 4, self._head, size + 2, size, value)
        return field(9, self._head + field(2, field(1, value)))


def attribute(key: str, value: str | bool | int | list[str], *, number: int = 9) -> bytes:
    """An attribute of a span (field 9), or of a resource (field 1).

    Args:
        key: Its name.
        value: Its value.
        number: 9 in a span, 1 in a resource.
    """
    if isinstance(value, str):
        found = field(1, text(value))
    elif isinstance(value, bool):
        found = bytes((2 << 3, value))
    elif isinstance(value, int):
        found = bytes((3 << 3,)) + _varint(value & (1 << 64) - 1)
    else:
        found = field(5, b"".join(field(1, field(1, text(item))) for item in value))
    return field(number, field(1, key.encode()) + field(2, found))


def request(resource: bytes, scope: str, spans: Iterable[bytes]) -> bytes:
    """An ExportTraceServiceRequest.

    Args:
        resource: Its attributes, as fields with the number 1.
        scope: Name of what made the spans.
        spans: Encoded.
    """
    scoped = field(1, field(1, scope.encode())) + b"".join(field(2, span) for span in spans)
    return field(1, field(1, resource) + field(2, scoped))


def packed(body: bytes) -> bytes:
    """The body, gzipped. Level 1 makes it 15 % larger than the usual one, in a third of the time."""
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(body) + packer.flush()


def unpacked(body: bytes) -> bytes:
    """Undo `packed`.

    Raises:
        ValueError: it is not gzipped, or not whole.
    """
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(body)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacker.eof:
        raise ValueError("it is cut short")
    return found


def fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Each field of a message: its number, its content where that is bytes, and the field as it stands.

    Raises:
        ValueError: it is no message.
    """
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        content = b""
        if tag & 7 == _BYTES:
            size, at = _read_varint(message, at)
            content, at = message[at : at + size], at + size
        elif tag & 7 == 0:
            _, at = _read_varint(message, at)
        else:
            at += {_EIGHT: 8, 5: 4}.get(tag & 7, len(message))
        if at > len(message):
            raise ValueError("it is cut short")
        yield tag >> 3, content, message[start:at]


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("it is cut short")


def parts(body: bytes) -> tuple[bytes, bytes, list[bytes]]:
    """A request of `request`, taken apart: its resource, its scope, its spans.

    Raises:
        ValueError: it is none.
    """
    inner = _contents(_contents(body).get(1, b""))
    spans, scope = [], b""
    for number, content, _ in fields(inner.get(2, b"")):
        if number == 1:
            scope = content
        elif number == 2:
            spans.append(content)
    return inner.get(1, b""), scope, spans


def _contents(message: bytes) -> dict[int, bytes]:
    return {number: content for number, content, _ in fields(message)}


def joined(resource: bytes, scope: bytes, spans: Iterable[bytes]) -> bytes:
    """The request whose `parts` these are.

    Args:
        resource: As `parts` returned it, encoded.
        scope: The same.
        spans: All or some of them.
    """
    return field(1, field(1, resource) + field(2, field(1, scope) + b"".join(field(2, span) for span in spans)))


def cut(span: bytes) -> bytes | None:
    """A span whose long texts are cut, and which says so; None when it has none."""
    found, shorter = [], False
    for number, content, whole in fields(span):
        if number == 9 and len(content) > _LONG_BYTES:
            entry = _contents(content)
            value = _contents(entry[2]).get(1, b"")
            kept = value[:_CUT_BYTES].decode("utf-8", "ignore")
            mark = f"{kept} … [cut here: too large for Langfuse, {len(value)} bytes in all]"
            found.append(attribute(entry[1].decode(), mark))
            shorter = True
        else:
            found.append(whole)
    return b"".join([*found, attribute(CUT_MARK, "true")]) if shorter else None
