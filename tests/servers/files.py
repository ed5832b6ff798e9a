"""A web server with some files, from which any part may be asked for, and what goes wrong with such servers."""

import contextlib
import http.server
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(kw_only=True)
class SeenGet:
    """One request.

    Attributes:
        path: With what stands behind the `?`.
        turn: Which request for this path it was, from 1.
        start: The byte from which on it was asked for; None for all of it.
        status: What was answered.
        sent: Bytes of the file that left.
    """

    path: str
    turn: int
    start: int | None
    status: int = 0
    sent: int = 0


@dataclass(kw_only=True)
class FileServer:
    """The server; `with FileServer(files={"/p.jsonl": data}).running() as server:`.

    Attributes:
        files: What is served, by path without what stands behind a `?`.
        has_ranges: Whether a part may be asked for.
        faults: Asked for each request; a status (`503`), `cut N` (a reset after N bytes), `short N` (the connection
            ends in good order after N bytes although more were promised), `reset`, or None.
        retry_after: What goes along with a status.
        requests: Every request so far.
    """

    files: dict[str, bytes]
    has_ranges: bool = True
    faults: Callable[[SeenGet], str | None] | None = None
    retry_after: str = ""
    requests: list[SeenGet] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Serve as long as the block lasts."""
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.files = self
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="files", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join(5)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def sent(self) -> int:
        """Bytes of files that have left."""
        return sum(request.sent for request in self.requests)

    def _record(self, path: str, start: int | None) -> SeenGet:
        with self._lock:
            turn = 1 + sum(request.path == path for request in self.requests)
            request = SeenGet(path=path, turn=turn, start=start)
            self.requests.append(request)
            return request


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    files: FileServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that reads no further is what ranges are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        files = self.server.files
        asked = _RANGE.fullmatch(self.headers.get("Range", "")) if files.has_ranges else None
        seen = files._record(self.path, int(asked[1]) if asked else None)
        fault = (files.faults(seen) if files.faults else None) or ""
        data = files.files.get(self.path.partition("?")[0])
        if fault.isdecimal() or data is None:
            self._answer(seen, int(fault or 404), {"Retry-After": files.retry_after} if files.retry_after else {})
        elif fault == "reset":
            self._reset()
        elif asked and int(asked[1]) >= len(data):
            self._answer(seen, 416, {"Content-Range": f"bytes */{len(data)}"})
        elif asked:
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            headers = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
            self._answer(seen, 206, headers, data[start : end + 1], fault)
        else:
            self._answer(seen, 200, {}, data, fault)

    def _answer(self, seen: SeenGet, status: int, headers: dict[str, str], data: bytes = b"", fault: str = "") -> None:
        seen.status = status
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        kind, _, most = fault.partition(" ")
        left = memoryview(data)[: int(most) if most else None]
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # what is counted has been asked for
        while left:
            self.wfile.write(left[: 1 << 14])
            seen.sent += len(left[: 1 << 14])
            left = left[1 << 14 :]
        if kind == "cut":
            self._reset()
        elif kind == "short":
            self.connection.shutdown(socket.SHUT_WR)
            self.close_connection = True

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass
