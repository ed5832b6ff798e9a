"""One HTTP/1.1 connection to a model server, one request at a time: asyncio for the socket, httptools for the grammar.

General HTTP clients cost three to sixty times the CPU of a request here, and hide which connection a request takes. The
engine has to know: behind a Service address the connection decides which replica answers, a connection that was
closed while idle costs no attempt, and a request whose duplicate was answered is broken off.
"""

import asyncio
import dataclasses
import socket
import ssl
import zlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import httptools

from clients.errors import ChatError, TransientError, UnreachableError

#: A larger body is a broken server, not an answer, and must not end the run for want of memory.
MAX_BODY_BYTES = 64 << 20

_MAX_HEAD_BYTES = 1 << 16

#: Seconds of silence after which the kernel asks whether the peer is alive, and between its further questions; an
#: answer may take twenty minutes, in which nothing else would notice a node that has lost its power.
_PROBE_AFTER_S, _PROBE_EVERY_S, _PROBES = 20, 5, 4

#: A used connection that breaks so soon after a request was written had been closed before the request came.
_IDLE_CLOSE_S = 1.0


#: Lower-case names, of a repeated header the last; as bytes, since most are never looked at.
Headers = Mapping[bytes, bytes]

#: Hears that a reply's body begins, with its status and its headers.
Begun = Callable[[int, Headers], object]


@dataclasses.dataclass(slots=True)
class Reply:
    """A complete response.

    Attributes:
        status: HTTP status.
        reason: Reason phrase.
        headers: See Headers.
        body: Decompressed.
    """

    status: int
    reason: str
    headers: Headers
    body: bytes


class ClosedIdleError(ChatError):
    """The server closed a connection that had served before, without a byte of an answer: it never took the request."""


class Connection(asyncio.Protocol):
    """Sends requests and reads their replies.

    Attributes:
        replies: Complete replies so far.
        idle_since: `loop.time()` at which the last reply was complete, or the connection was made.
        last_data: `loop.time()` of the last bytes that came; 0.0 while none of the current reply did.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Reply] | None = None
        self._parser: Any = None
        self._lost: BaseException | str | None = None
        self._inflate: Any = None
        self._begun: Begun | None = None
        self._reset_reply()
        self.replies = 0
        self.idle_since = self._sent_at = loop.time()
        self.last_data = 0.0

    # ---------------------------------------------------------------- for the engine

    @property
    def is_open(self) -> bool:
        """Whether another request may be sent."""
        return self._lost is None and self._waiter is None

    def send(self, request: bytes, begun: Begun | None = None) -> "asyncio.Future[Reply]":
        """Send one request, head and body; the future yields its reply.

        Args:
            request: Its bytes.
            begun: Called with status and headers when the first part of the reply's body comes.

        The future ends with:
            ClosedIdleError: the connection was closed before, unnoticed until now.
            TransientError: it broke, or what came is no HTTP.
        """
        waiter = self._loop.create_future()
        if self._lost is not None or self._transport is None:
            waiter.set_exception(self._broken())
            return waiter
        self._waiter = waiter
        self._reset_reply()
        self._begun = begun
        self.last_data = 0.0
        self._sent_at = self._loop.time()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        return waiter

    def close(self, error: ChatError | None = None) -> None:
        """Cut the connection; a request under way ends with `error`, and the server stops working on it."""
        self._end(error or TransientError("connection", "the connection was closed"))
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; watch for a peer that vanishes without a word."""
        self._transport = cast(asyncio.Transport, transport)
        if self._lost is not None:  # closed before it was open
            self._transport.abort()
        sock = transport.get_extra_info("socket")
        if sock is not None:
            _watch_for_life(sock)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a reply."""
        self.last_data = self._loop.time()
        if self._waiter is None:  # bytes nobody asked for: what follows could not be told from an answer
            self.close()
            return
        if not self._has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.close(TransientError("connection", f"the connection broke: the answer is not HTTP ({error})"))
            return
        if not self._has_head and self._head_bytes > _MAX_HEAD_BYTES:
            self.close(_too_long_a_head())

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end; a body without a length ends with its connection."""
        self._lost = self._lost or exc or "the server closed it"
        if self._waiter is not None and self._has_head and self._until_close and exc is None:
            self._complete(keep=False)
        self._end(self._broken())

    # ---------------------------------------------------------- called by httptools

    def on_status(self, status: bytes) -> None:
        """Take the reason phrase."""
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Decide how the body is read."""
        if self._parser.get_status_code() < 200:  # an interim reply: the real one follows
            return
        headers = self._headers
        if self._head_bytes > _MAX_HEAD_BYTES and sum(map(len, headers.values())) > _MAX_HEAD_BYTES:
            self.close(_too_long_a_head())
            return
        self._has_head = True
        is_chunked = b"chunked" in headers.get(b"transfer-encoding", b"")
        self._until_close = b"content-length" not in headers and not is_chunked
        if headers.get(b"content-encoding", b"").lower() in (b"gzip", b"x-gzip", b"deflate"):
            self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if self._inflate is not None:
            try:
                body = self._inflate.decompress(body, MAX_BODY_BYTES + 1)
            except zlib.error as error:
                self.close(TransientError("connection", f"the connection broke: cannot decompress the answer: {error}"))
                return
        if self._begun is not None:
            begun, self._begun = self._begun, None
            begun(self._parser.get_status_code(), self._headers)
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self.close(TransientError("too_large", f"the answer is larger than {MAX_BODY_BYTES >> 20} MiB"))

    def on_message_complete(self) -> None:
        """Hand the reply over."""
        if self._has_head:
            self._complete(keep=self._parser.should_keep_alive())
        else:
            self._reset_reply()

    # ------------------------------------------------------------------------ inside

    def _reset_reply(self) -> None:
        self._reason = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = self._head_bytes = 0
        self._has_head = self._until_close = False
        self._inflate = None

    def _complete(self, *, keep: bool) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        if not keep:
            self._lost = self._lost or "the server closed it"
            if self._transport is not None:
                self._transport.abort()
        self.replies += 1
        self.idle_since = self._loop.time()
        if self._inflate is not None and not self._inflate.eof:
            error = TransientError("connection", "the connection broke: the compressed answer has no end")
            if not waiter.done():
                waiter.set_exception(error)
            return
        if not waiter.done():
            reason = self._reason.decode("utf-8", "replace")
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            waiter.set_result(Reply(self._parser.get_status_code(), reason, self._headers, body))
        self._body = []

    def _end(self, error: ChatError) -> None:
        waiter, self._waiter = self._waiter, None
        self._lost = self._lost or error
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _broken(self) -> ChatError:
        lost = self._lost
        if isinstance(lost, ChatError):
            return lost
        found = lost.strerror or str(lost) if isinstance(lost, OSError) else str(lost)
        message = f"the connection broke: {' '.join(found.split()) or 'the server closed it'}"
        if self.replies and not self.last_data and self._loop.time() - self._sent_at < _IDLE_CLOSE_S:
            return ClosedIdleError("connection", message)
        return TransientError("connection", message)


async def connect(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None,
    server_name: str,
    timeout_s: float,
    made: Callable[[Connection], object],
) -> Connection:
    """Open a connection.

    Args:
        host: Address to connect to.
        port: TCP port.
        tls: None for plain HTTP.
        server_name: Host name that a certificate must carry.
        timeout_s: Seconds for TCP and TLS together.
        made: Called with the connection before it is open; a wait that is cancelled later hands it to nobody else.

    Raises:
        UnreachableError: no connection could be made.
        ssl.SSLCertVerificationError: nobody vouches for the server's certificate.
    """
    loop = asyncio.get_running_loop()

    def make() -> Connection:
        connection = Connection(loop)
        made(connection)
        return connection

    try:
        async with asyncio.timeout(timeout_s):
            _, connection = await loop.create_connection(
                make, host, port, ssl=tls, server_hostname=server_name if tls else None
            )
    except TimeoutError as error:
        raise UnreachableError("connect_timeout", f"no connection within {timeout_s:g} s") from error
    except ssl.SSLCertVerificationError:
        raise
    except OSError as error:
        raise UnreachableError("unreachable", f"cannot connect: {error.strerror or error}") from error
    return connection


def _too_long_a_head() -> TransientError:
    return TransientError("connection", f"the connection broke: a head of more than {_MAX_HEAD_BYTES >> 10} KiB")


def _watch_for_life(sock: Any) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _PROBE_AFTER_S),
            ("TCP_KEEPINTVL", _PROBE_EVERY_S),
            ("TCP_KEEPCNT", _PROBES),
            ("TCP_USER_TIMEOUT", 1000 * (_PROBE_AFTER_S + _PROBE_EVERY_S * _PROBES)),
        ):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except OSError:  # a socket that is gone already, or a system that has no such options
        return
