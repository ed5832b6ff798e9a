"""A stand-in for Langfuse's ingestion on a real loopback socket, strict where the real one or its proxies are.

It checks Basic auth, gunzips, decodes ExportTraceServiceRequest with the real package, refuses ids of a wrong length,
paths such as `//api/...` and bodies above 5 MB, and plays scripted answers, one a POST of traces:

    "ok"  "401"  "413"  "429:30" (Retry-After)  "503"  "slow:1.5" (seconds)  "hang"  "reset" (after reading it)
    "late:2" (keeps it, answers after 2 s)  "partial" (200, says that it left a span out)

In a test: `with OtlpSink() as sink:`; as a process: `python -m tests.servers.otlp_sink`, whose first line is its URL;
it tells at `GET /_seen` what came.
"""

import argparse
import base64
import contextlib
import gzip
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

TRACES, SCORES = "/api/public/otel/v1/traces", "/api/public/scores"
_MAX_BODY = 5_000_000


@dataclass(frozen=True)
class SeenSpan:
    """A span as the sink decoded it."""

    trace_id: str
    span_id: str
    parent: str
    name: str
    start_ns: int
    end_ns: int
    status: int
    message: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    scope: str

    @property
    def identity(self) -> tuple[str, str, int]:
        """What Langfuse keeps one observation for."""
        return self.trace_id, self.span_id, self.start_ns

    def json(self, name: str) -> Any:
        """An attribute that is JSON; `name` without its first two words."""
        return json.loads(self.attributes[f"langfuse.observation.{name}"])


@dataclass(kw_only=True)
class OtlpSink:
    """The stand-in; every attribute may also be changed while it runs.

    Attributes:
        script: Answers to the next POSTs of traces, in order; then `default`.
        refuse: Asked for each span; True makes its whole request a 400, as one malformed span does.
        max_span: Bytes of a span's texts above which the request is a 413.
        latency_s: Seconds that every answer takes.
    """

    public_key: str = "pk-lf-test"
    secret_key: str = "sk-lf-test"
    project_id: str | None = "project-1"
    port: int = 0
    script: list[str] = field(default_factory=list)
    default: str = "ok"
    refuse: Callable[[SeenSpan], bool] | None = None
    max_span: int | None = None
    max_body: int = _MAX_BODY
    latency_s: float = 0.0

    spans: list[SeenSpan] = field(default_factory=list, init=False)
    scores: list[dict[str, Any]] = field(default_factory=list, init=False)
    requests: list[tuple[str, int]] = field(default_factory=list, init=False)
    sizes: list[tuple[int, int]] = field(default_factory=list, init=False)  # of each accepted request: spans, raw bytes
    times: list[float] = field(default_factory=list, init=False)
    errors: list[Exception] = field(default_factory=list, init=False)
    headers: list[dict[str, str]] = field(default_factory=list, init=False)
    in_flight: int = field(default=0, init=False)
    peak: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.released = threading.Event()
        self._server: _Server | None = None

    # ------------------------------------------------------------------ life

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> Self:
        """Listen; at the same port again after `down`."""
        self.released.clear()
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.sink = self
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def down(self) -> None:
        """Stop listening and cut what is open."""
        server, self._server = self._server, None
        self.released.set()
        if server is not None:
            server.shutdown()
            server.server_close()
            for connection in list(server.open):
                _cut(connection)

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.down()
        if kind is None and self.errors:
            raise ExceptionGroup("the sink failed", self.errors)

    # ------------------------------------------------------------ what it saw

    def environment(self) -> dict[str, str]:
        """What a process needs to send here."""
        return {
            "LANGFUSE_PUBLIC_KEY": self.public_key,
            "LANGFUSE_SECRET_KEY": self.secret_key,
            "LANGFUSE_BASE_URL": self.url,
        }

    def rows(self) -> list[SeenSpan]:
        """Spans of rows, one for each identity: the last that came."""
        found = {span.identity: span for span in list(self.spans) if span.name == "batch row"}
        return list(found.values())

    def row_numbers(self) -> list[int]:
        return sorted(int(span.attributes["langfuse.observation.metadata.row"]) for span in self.rows())

    def summaries(self) -> list[SeenSpan]:
        return list({span.identity: span for span in list(self.spans) if span.name == "shard summary"}.values())

    def posts(self) -> int:
        """POSTs of traces, whatever became of them."""
        return sum(path == TRACES for path, _ in list(self.requests))

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until, f"the sink saw {len(self.spans)} spans, {self.requests[-5:]}"
            time.sleep(0.01)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    sink: OtlpSink

    def __init__(self, *args: Any) -> None:
        self.open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away in the middle of things; that is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        sink = self.server.sink
        if self.path == "/_seen":
            with sink.lock:
                seen = {
                    "rows": sink.row_numbers(),
                    "spans": len(sink.spans),
                    "identities": len({s.identity for s in sink.spans}),
                }
            self._answer(200, seen)
            return
        sink.requests.append((self.path, 0))
        if self.path != "/api/public/projects":
            self._answer(404, {"error": "not found"})
        elif not self._is_known():
            self._answer(401, {"error": "Invalid credentials"})
        elif sink.default == "hang":
            sink.released.wait(60)
            self.close_connection = True
        elif sink.project_id is None:
            self._answer(500, {"error": "no"})
        else:
            self._answer(200, {"data": [{"id": sink.project_id, "name": "test", "metadata": {}}]})

    def do_POST(self) -> None:
        sink = self.server.sink
        with sink.lock:
            sink.in_flight += 1
            sink.peak = max(sink.peak, sink.in_flight)
        try:
            self._post(sink)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:  # noqa: BLE001 - shown when the sink stops
            sink.errors.append(error)
            self._answer(500, {"error": repr(error)})
        finally:
            with sink.lock:
                sink.in_flight -= 1

    def _post(self, sink: OtlpSink) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with sink.lock:
            sink.requests.append((self.path, len(body)))
            sink.times.append(time.monotonic())
            sink.headers.append(dict(self.headers))
        if self.path not in (TRACES, SCORES):
            self._answer(404, {"error": "not found"})
        elif not self._is_known():
            self._answer(401, {"error": "Invalid credentials. Confirm that you've configured the correct host."})
        elif self.path == SCORES:
            self._scores(sink, body)
        else:
            self._traces(sink, body)

    def _is_known(self) -> bool:
        sink = self.server.sink
        wanted = base64.b64encode(f"{sink.public_key}:{sink.secret_key}".encode()).decode()
        return self.headers.get("Authorization") == f"Basic {wanted}"

    def _scores(self, sink: OtlpSink, body: bytes) -> None:
        found = json.loads(body)
        if not isinstance(found, list) or not all({"name", "value", "traceId"} <= set(score) for score in found):
            self._answer(400, {"error": "Invalid request data"})
            return
        sink.scores.extend(found)
        self._answer(201, {"message": "Accepted"})

    def _traces(self, sink: OtlpSink, body: bytes) -> None:
        with sink.lock:
            act = sink.script.pop(0) if sink.script else sink.default
        kind, _, argument = act.partition(":")
        time.sleep(sink.latency_s)
        if kind == "hang":
            sink.released.wait(60)
            self.close_connection = True
            return
        if kind == "reset":
            _cut(self.connection)
            raise ConnectionResetError
        if kind.isdigit():
            headers = {"Retry-After": argument} if argument else {}
            self._answer(int(kind), {"error": f"scripted {kind}"}, headers)
            return
        if kind == "slow":
            time.sleep(float(argument))
        self._take(sink, body, kind, argument)

    def _take(self, sink: OtlpSink, body: bytes, kind: str, argument: str) -> None:
        if (
            self.headers.get("Content-Type") != "application/x-protobuf"
            or self.headers.get("Content-Encoding") != "gzip"
        ):
            self._answer(400, {"error": "Invalid content type"})
            return
        try:
            raw = gzip.decompress(body)
            message = ExportTraceServiceRequest()
            message.ParseFromString(raw)
            spans = list(_spans(message))
        except (OSError, zlib.error, EOFError, DecodeError, ValueError) as error:
            self._answer(400, {"error": f"Failed to parse OTel Protobuf Trace: {error}"})
            return
        if max(len(body), len(raw)) > sink.max_body or any(
            sink.max_span is not None and _texts(span) > sink.max_span for span in spans
        ):
            self._answer(413, {"error": "Body exceeded 5mb limit"})
            return
        if sink.refuse is not None and any(map(sink.refuse, spans)):
            self._answer(400, {"error": "one of the spans is malformed"})
            return
        if kind == "partial":
            self._answer(200, {"partialSuccess": {"rejectedSpans": "1", "errorMessage": "a span is too large"}})
            return
        with sink.lock:
            sink.spans.extend(spans)
            sink.sizes.append((len(spans), len(raw)))
        if kind == "late":
            time.sleep(float(argument))
        self._answer(200, {})

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _cut(connection: socket.socket) -> None:
    """End it with RST."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
        connection.close()


def _spans(message: ExportTraceServiceRequest) -> Iterator[SeenSpan]:
    for resource in message.resource_spans:
        of_resource = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            if scope.scope.name.startswith("langfuse-sdk"):
                raise ValueError("a span of the SDK's scope needs the public key as its attribute")
            for span in scope.spans:
                if len(span.trace_id) != 16 or len(span.span_id) != 8 or not any(span.span_id):
                    raise ValueError("an id has a wrong length")
                if not 0 < span.start_time_unix_nano <= span.end_time_unix_nano:
                    raise ValueError("a time is wrong")
                yield SeenSpan(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    name=span.name,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    status=span.status.code,
                    message=span.status.message,
                    attributes=_attributes(span.attributes),
                    resource=of_resource,
                    scope=scope.scope.name,
                )


def _attributes(found: Iterable[Any]) -> dict[str, Any]:
    names = [entry.key for entry in found]
    assert len(set(names)) == len(names) <= 128, f"an attribute stands there twice, or there are too many: {names}"
    return {entry.key: _value(entry.value) for entry in found}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind or "string_value")


def _texts(span: SeenSpan) -> int:
    return sum(len(value.encode()) for value in span.attributes.values() if isinstance(value, str))


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers.otlp_sink", description=re.split(r"\n", __doc__)[0])
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--default", default="ok", help="the answer to every POST of traces")
    args = parser.parse_args()
    sink = OtlpSink(latency_s=args.latency, default=args.default).up()
    print(sink.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
