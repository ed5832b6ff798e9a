"""An S3-compatible store on loopback: moto in a process of its own, and in front of it a proxy that makes trouble.

`with ObjectStore() as store:`; clients talk to `store.url`. moto takes any key, so the access key is the name of the
client: the record of requests says who sent each.
"""

import contextlib
import http.client
import http.server
import re
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import unquote, urlsplit

_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message><RequestId>1</RequestId></Error>"

#: What a store may answer instead of doing what it was asked for: status, code, message.
REFUSALS = {
    "slow": (503, "SlowDown", "Please reduce your request rate."),
    "internal": (500, "InternalError", "We encountered an internal error. Please try again."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "unknown": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    "denied": (403, "AccessDenied", "Access Denied"),
}

_CLIENT = re.compile(r"Credential=([^/]+)/")
#: moto looks at who asks, not at the signature.
_ONESELF = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "server", "date"}
_WRITES = ("PUT", "POST", "DELETE")


@dataclass(kw_only=True)
class SeenCall:
    """One request as the proxy saw it.

    Attributes:
        client: The access key it was signed with; "" without one.
        number: How many requests of this client came before it; `write` counts its writes alone, None if it is none.
        status: What was answered; None when nothing was.
    """

    client: str
    method: str
    path: str
    number: int
    write: int | None
    status: int | None = None
    sent: int = 0


#: What becomes of a call. `before` and `after` are called around what the store does with it, and may kill the client.
Trouble = Callable[[SeenCall], str | None]


@dataclass(kw_only=True)
class ObjectStore:
    """The store; a context manager.

    Attributes:
        before: Asked before the store sees a call: a key of `REFUSALS`, `reset`, `hang`, or None to let it pass.
        after: Asked once the store has done it and before the client hears of it; `reset` is the same, others pass.
        calls: Every call so far.
    """

    before: Trouble | None = None
    after: Trouble | None = None
    calls: list[SeenCall] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._store = self._stack.enter_context(_moto())
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.store = self
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="s3-proxy", daemon=True)
        thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._stack.close()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its name."""
        self._ask("PUT", f"/{name}")
        return name

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Keep an object, past the proxy."""
        self._ask("PUT", f"/{bucket}/{key}", data)

    def get(self, bucket: str, key: str) -> bytes:
        """What an object holds, past the proxy."""
        return self._ask("GET", f"/{bucket}/{key}")

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Keys of a bucket's objects, without those that stand for a folder; past the proxy."""
        found = re.findall(r"<Key>([^<]*)</Key>", self._ask("GET", f"/{bucket}?prefix={prefix}&max-keys=1000").decode())
        return sorted(unquote(key) for key in found if not key.endswith("/"))

    def quiet(self) -> None:
        """No trouble any more."""
        self.before = self.after = None

    def writes_of(self, client: str) -> list[SeenCall]:
        """What a client has written, in its order."""
        return [call for call in self.calls if call.client == client and call.write is not None]

    def _ask(self, method: str, path: str, data: bytes = b"") -> bytes:
        headers = {"Content-Length": str(len(data)), "Authorization": _ONESELF}
        status, _, body = self._forward(method, path, headers, data)
        if status >= 300:
            raise AssertionError(f"{method} {path}: {status} {body[:300]!r}")
        return body

    def _forward(self, method: str, path: str, headers: dict[str, str], data: bytes) -> tuple[int, Any, bytes]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._store, timeout=60)) as connection:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _record(self, method: str, path: str, client: str) -> SeenCall:
        with self._lock:
            before = [call for call in self.calls if call.client == client]
            writes = sum(call.write is not None for call in before)
            writing = method in _WRITES
            call = SeenCall(
                client=client, method=method, path=path, number=len(before), write=writes if writing else None
            )
            self.calls.append(call)
            return call


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    store: ObjectStore

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is what the tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, http.client.HTTPException):
            self.close_connection = True

    def answer(self) -> None:
        store = self.server.store
        data = self._body()
        signed = _CLIENT.search(self.headers.get("Authorization", ""))
        call = store._record(self.command, unquote(urlsplit(self.path).path), signed[1] if signed else "")
        trouble = store.before(call) if store.before else None
        if trouble in REFUSALS:
            status, code, message = REFUSALS[trouble]
            text = _ERROR.format(code, message).encode()
            self._reply(call, status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))], text)
            return
        if trouble == "hang":
            store._over.wait(300)
        if trouble in ("reset", "hang"):
            self._reset()
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        status, answered, body = store._forward(self.command, self.path, {**headers, "Connection": "close"}, data)
        if store.after is not None and store.after(call) == "reset":
            self._reset()
            return
        kept = [(name, value) for name, value in answered if name.lower() not in _HOP_BY_HOP]
        if not any(name.lower() == "content-length" for name, _ in kept):
            kept.append(("Content-Length", str(len(body))))
        self._reply(call, status, kept, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return data

    def _reply(self, call: SeenCall, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        call.status = status
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            call.sent = len(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def _moto() -> Iterator[int]:
    """The port of a store that does what it is told."""
    script = "import sys, moto.server as s; sys.exit(s.main(['-H', '127.0.0.1', '-p', sys.argv[1]]))"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("moto's server did not start")
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server, selectors.DefaultSelector() as selector:
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)
        taken: list[socket.socket] = []
        over = threading.Event()

        def take() -> None:
            while not over.is_set():
                if selector.select(0.1):
                    taken.append(server.accept()[0])

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            over.set()
            thread.join(5)
            for connection in taken:
                connection.close()
