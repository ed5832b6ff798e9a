"""HTTP: one connection's bytes in and out, and which address does what."""

import asyncio
import os
import socket
import struct
import time
from typing import Any, cast

import httptools
import orjson

from clients.fake_vllm import replies
from clients.fake_vllm.cluster import Cluster, Door
from clients.fake_vllm.exchange import Exchange
from clients.fake_vllm.replica import Replica

#: Seconds for written bytes to arrive before RST or an unannounced FIN follows.
_FLUSH_S = 0.003

_VERSION = "0.32.0"
_CHAT = b"/v1/chat/completions"


class Connection(asyncio.Protocol):
    """The server's side of one connection.

    Args:
        cluster: Where it leads.
        door: Through which it came.

    Attributes:
        keep: Whether the client wants the connection kept after the current reply.
    """

    _transport: asyncio.Transport

    def __init__(self, cluster: Cluster, door: Door) -> None:
        self._cluster = cluster
        self._door = door
        self._replica: Replica | None = None
        self._exchange: Exchange | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._doomed = False
        self._requests = 0
        self._path = b""
        self._body: list[bytes] = []
        self._key = self._request_id = ""
        self.keep = True

    # ------------------------------------------------------------- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Reach a replica."""
        self._transport = cast(asyncio.Transport, transport)
        self._replica = self._cluster.pick(self._door)
        if self._replica is None:  # died since the kernel took the connection
            self._reset()
            return
        self._replica.connections.add(self)
        self._cluster.idle[self] = time.monotonic()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        if self._doomed:  # closed, but the client does not know yet
            self._cluster.tally.reused_closed += 1
            self._reset()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:  # a mistake of ours
            raise
        except httptools.HttpParserError:
            self._abandon(lost=False)
            self.keep = False
            self.send(replies.reply(400, b"Invalid HTTP request received.", kind=replies.TEXT, keep=False))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went away, or we did."""
        self._cluster.idle.pop(self, None)
        if self._replica is not None:
            self._replica.connections.discard(self)
        self._abandon(lost=False)

    # ---------------------------------------------------------- called by httptools

    def on_message_begin(self) -> None:
        """Start a request."""
        self._cluster.idle.pop(self, None)
        self._path = b""
        self._body = []
        self._key = self._request_id = ""

    def on_url(self, url: bytes) -> None:
        """Take the path."""
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take the two headers that matter."""
        if len(name) == 13 and name.lower() == b"authorization":
            self._key = value.decode("latin-1")
        elif len(name) == 12 and name.lower() == b"x-request-id":
            self._request_id = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer."""
        replica = self._replica
        if self._exchange is not None or replica is None:  # pipelining; nobody who waits for answers does that
            self._abandon(lost=False)
            self._reset()
            return
        self.keep = self._parser.should_keep_alive()
        self._requests += 1
        path, _, query = self._path.partition(b"?")
        method = self._parser.get_method()
        options = self._cluster.options
        if path.startswith(b"/v1") and options.api_key is not None and self._key != f"Bearer {options.api_key}":
            self.send(replies.reply(401, b'{"error":"Unauthorized"}', keep=self.keep))
        elif method == b"POST" and path == _CHAT:
            self._chat(replica)
        elif method == b"POST" and path == b"/_reset":
            self._cluster.reset()
            self.send(replies.reply(200, b"{}", keep=self.keep))
        elif method == b"GET":
            self._get(replica, path, query)
        else:
            self.send(replies.reply(405, b'{"detail":"Method Not Allowed"}', keep=self.keep))

    # ------------------------------------------------------------- for the exchange

    def send(self, data: bytes) -> None:
        """Send a whole reply; the next request may come."""
        self._exchange = None
        self._transport.write(data)
        if self.keep:
            self._cluster.idle[self] = time.monotonic()
        else:
            self.close()

    def send_part(self, data: bytes, end: str) -> None:
        """Send a part of a reply, then `end`: "reset", "fin" or "silence"."""
        if data:
            self._transport.write(data)
        if end == "silence":  # the exchange stays, so that nothing else is taken from this client
            return
        self._exchange = None
        self._doomed = True
        loop = asyncio.get_running_loop()
        loop.call_later(_FLUSH_S, self._reset if end == "reset" else self.close)

    def send_last(self, data: bytes) -> None:
        """Send a whole reply, and close the connection without having said so."""
        self._exchange = None
        self._doomed = True
        self._transport.write(data)
        asyncio.get_running_loop().call_later(_FLUSH_S, self.close)

    # ------------------------------------------------------ for the replica and idling

    def lose(self) -> None:
        """End with RST; what it waits for is lost, but an answer that was just written still arrives."""
        if self._exchange is None:
            self._doomed = True
            asyncio.get_running_loop().call_later(_FLUSH_S, self._reset)
        else:
            self._abandon(lost=True)
            self._reset()

    def close(self) -> None:
        """End with FIN."""
        self._doomed = True
        self._transport.close()

    # ------------------------------------------------------------------------ inside

    def _abandon(self, *, lost: bool) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon(lost=lost)

    def _reset(self) -> None:
        """End with RST, on any event loop."""
        self._doomed = True
        if self._transport.is_closing():  # its descriptor may be another connection's by now
            return
        with socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as twin:
            twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _chat(self, replica: Replica) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        name = self._request_id or f"{id(self):x}-{self._requests}"
        self._exchange = exchange = Exchange(self._cluster, replica, self, f"chatcmpl-{name}")
        exchange.begin(body)

    def _get(self, replica: Replica, path: bytes, query: bytes) -> None:
        options, keep = self._cluster.options, self.keep
        ready = self._cluster.is_ready(time.monotonic())
        if path in (b"/health", b"/ping"):
            data = replies.reply(200 if ready else 503, b"", keep=keep)
        elif path == b"/metrics" and options.metrics:
            data = replies.reply(
                200,
                replica.metrics(options.model, options.slots, anonymous=options.anonymous).encode(),
                kind=replies.TEXT,
                keep=keep,
            )
        elif path == b"/load":
            data = replies.reply(200, orjson.dumps({"server_load": sum(replica.load())}), keep=keep)
        elif path == b"/version":
            data = replies.reply(200, orjson.dumps({"version": _VERSION}), keep=keep)
        elif path == b"/v1/models":
            card = {"id": options.model, "object": "model", "created": 0, "owned_by": "vllm", "root": options.model}
            cards = [card | {"parent": None, "max_model_len": options.max_model_len}]
            data = replies.reply(200, orjson.dumps({"object": "list", "data": cards}), keep=keep)
        elif path == b"/_tally":
            data = replies.reply(200, self._cluster.report(rows=b"rows=1" in query), keep=keep)
        else:
            data = replies.reply(404, b'{"detail":"Not Found"}', keep=keep)
        self.send(data)
