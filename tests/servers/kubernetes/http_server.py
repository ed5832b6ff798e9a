"""The HTTP side: connections, requests read and answers sent; what is answered is decided elsewhere."""

import contextlib
import json
import select
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(kw_only=True)
class Request:
    """One HTTP request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    alive: Callable[[], bool]


@dataclass(kw_only=True)
class Response:
    """What to send: `body` whole, or `stream` a line at a time; `reset` sends nothing and cuts the connection."""

    code: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: list[tuple[str, str]] = field(default_factory=list)
    stream: Iterator[bytes] | None = None
    reset: bool = False


class Listener:
    """A listening socket whose connections are answered by a function.

    Args:
        respond: Called in a thread of the connection.
        port: 0 lets the system choose.
    """

    def __init__(self, respond: Callable[[Request], Response], port: int = 0) -> None:
        self.closing = threading.Event()
        listener = self

        class Handler(_Handler):
            owner = listener
            answer = staticmethod(respond)

        self._connections: set[socket.socket] = set()
        self._cut: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
            self._cut.discard(connection)

    def cut_all(self) -> None:
        """Reset every open connection."""
        with self._lock:
            for connection in self._connections:
                self._cut.add(connection)
                reset(connection)

    def was_cut(self, connection: socket.socket) -> bool:
        return self.closing.is_set() or connection in self._cut

    def close(self) -> None:
        """Stop listening and reset what is open."""
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.cut_all()
        self._server.join_all()


def reset(connection: socket.socket) -> None:
    """End a connection with RST; the thread that serves it closes it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], handler: type[socketserver.BaseRequestHandler]) -> None:
        self._workers: list[threading.Thread] = []
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        worker = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._workers = [thread for thread in self._workers if thread.is_alive()] + [worker]
        worker.start()

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # no shutdown() before: with SO_LINGER set, close alone sends the RST

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    def join_all(self) -> None:
        for worker in self._workers:
            worker.join(5)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: Listener
    answer: Callable[[Request], Response]

    def setup(self) -> None:
        super().setup()
        self.owner.opened(self.connection)

    def finish(self) -> None:
        self.owner.closed(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        """The requests are kept by the server; nothing is printed."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(method=self.command, target=self.path, headers=headers, body=body, alive=self._alive)
        response = type(self).answer(request)
        if response.reset or self.owner.closing.is_set():
            reset(self.connection)
            self.close_connection = True
        elif response.stream is not None:
            self._send_stream(response)
        else:
            self._send(response)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve  # noqa: N815

    def _alive(self) -> bool:
        if self.owner.was_cut(self.connection):
            return False
        readable, _, _ = select.select([self.connection], [], [], 0)
        return not readable or bool(self.connection.recv(1, socket.MSG_PEEK))

    def _head(self, response: Response, *more: tuple[str, str]) -> bytes:
        rows = [f"HTTP/1.1 {response.code} {self.responses.get(response.code, ('',))[0]}"]
        fields = (("Content-Type", response.content_type), *response.headers, *more)
        return ("\r\n".join([*rows, *(f"{name}: {value}" for name, value in fields)]) + "\r\n\r\n").encode()

    def _send(self, response: Response) -> None:
        head = self._head(response, ("Content-Length", str(len(response.body))))
        self.wfile.write(head + (b"" if self.command == "HEAD" else response.body))

    def _send_stream(self, response: Response) -> None:
        assert response.stream is not None
        self.wfile.write(self._head(response, ("Transfer-Encoding", "chunked")))
        for line in response.stream:
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        if self.owner.was_cut(self.connection):
            reset(self.connection)
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")


def as_json(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()
