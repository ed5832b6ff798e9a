"""How far a shard is, for Prometheus: at a port of this process, or sent to a Pushgateway. Off unless it is asked for.

The names are those of `observability/monitoring`. Nothing here slows or ends a run, whatever becomes of the network.
"""

import base64
import http.client
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, urlsplit

from clients.batch.progress import Progress
from clients.events import emit
from clients.records import Outcome
from clients.tracing.tracer import Tracer

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: The job that a Pushgateway files the numbers under.
_JOB = "kubeflow_llm_inference"

#: Seconds between two pushes, until one is given up, and by which the last one may delay the end.
_PUSH_S, _TIMEOUT_S, _LAST_S = 10.0, 5.0, 2.0


class Metrics:
    """The numbers of one shard.

    Args:
        run: Name of the run.
        shard: Number of the shard.
        tracer: Where its traces are counted.
    """

    def __init__(self, *, run: str, shard: int, tracer: Tracer) -> None:
        self._run, self._shard, self._tracer = run, shard, tracer
        self._progress: Progress | None = None
        self._server: ThreadingHTTPServer | None = None
        self._pusher: _Pusher | None = None

    def see(self, progress: Progress) -> None:
        """Take the counts of rows from here on from these."""
        self._progress = progress

    def serve(self, host: str, port: int) -> None:
        """Let Prometheus read them at `http://host:port/metrics`; a port that cannot be had is told, no more.

        Args:
            host: Address to listen at.
            port: 0 for any that is free.
        """
        try:
            server = ThreadingHTTPServer((host, port), _handler(self.text))
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            emit(logger, "metrics.off", reason=f"cannot listen at {host}:{port}: {reason}. Choose another port.")
            return
        server.daemon_threads, server.block_on_close = True, False
        self._server = server
        emit(logger, "metrics.served", url=f"http://{host}:{server.server_address[1]}/metrics")
        threading.Thread(target=server.serve_forever, args=(0.05,), name="metrics", daemon=True).start()

    def push(self, gateway: str) -> None:
        """Send them to a Pushgateway every few seconds.

        Args:
            gateway: Its URL.
        """
        group = f"{_label('run', self._run)}/{_label('shard', str(self._shard))}"
        self._pusher = _Pusher(gateway, f"/metrics/job/{_JOB}/{group}", self)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return "".join(f"{line}\n" for line in self._lines()).encode()

    def _lines(self) -> Iterator[str]:
        labels = f'run="{_escaped(self._run)}",shard="{self._shard}"'
        progress, traces = self._progress, self._tracer.counts()
        if progress is None:
            return
        plain = {
            "llm_batch_rows": ("gauge", "Rows of the shard.", progress.rows),
            "llm_batch_in_flight": ("gauge", "Requests under way.", progress.in_flight),
            "llm_batch_output_tokens_total": ("counter", "Output tokens of finished rows.", progress.output_tokens),
            "llm_batch_prompt_tokens_total": ("counter", "Prompt tokens of finished rows.", progress.prompt_tokens),
            "llm_batch_retries_total": ("counter", "Requests sent again.", progress.retries),
        }
        for name, (kind, told, value) in plain.items():
            yield from (f"# HELP {name} {told}", f"# TYPE {name} {kind}", f"{name}{{{labels}}} {value}")
        rows = {outcome.value: progress.outcomes.get(outcome, 0) for outcome in Outcome}
        kept = {"exported": traces.exported, "spooled": traces.spooled, "dropped": traces.dropped}
        yield from _family("llm_batch_rows_total", "Rows that have an outcome.", labels, "outcome", rows)
        yield from _family("llm_batch_traces_total", "Traces of rows.", labels, "state", kept)

    def close(self) -> None:
        """Send them once more, and end."""
        if self._pusher is not None:
            self._pusher.close()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _Pusher:
    """A thread that sends, so that nobody waits for a gateway that is not there."""

    def __init__(self, gateway: str, path: str, metrics: Metrics) -> None:
        self._gateway, self._metrics = urlsplit(gateway), metrics
        self._path = f"{self._gateway.path.rstrip('/')}{path}"
        self._told = ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the last numbers. They stay at the gateway: a Prometheus that comes by later still sees them."""
        self._end.set()
        self._thread.join(_LAST_S)

    def _run(self) -> None:
        is_last, pause_s = False, 1.0
        while not is_last:
            is_last, pause_s = self._end.wait(pause_s), _PUSH_S
            try:
                trouble = self._put()
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                trouble = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if trouble and trouble != self._told:
                emit(logger, "metrics.unsent", pushgateway=self._gateway.netloc, reason=trouble)
            self._told = trouble

    def _put(self) -> str:
        kind = http.client.HTTPSConnection if self._gateway.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._gateway.hostname or "", self._gateway.port, timeout=_TIMEOUT_S)
        try:
            connection.request("PUT", self._path, body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})
            with connection.getresponse() as reply:
                words = reply.read(200).decode("utf-8", "replace")
                return "" if reply.status < 300 else " ".join(f"HTTP {reply.status}: {words}".split())
        finally:
            connection.close()


def _handler(text: Callable[[], bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds that a connection may say nothing

        def do_GET(self) -> None:
            is_known = self.path.partition("?")[0] == "/metrics"
            body = text() if is_known else b"see /metrics\n"
            self.send_response(200 if is_known else 404)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def _family(name: str, told: str, labels: str, label: str, values: dict[str, int]) -> Iterator[str]:
    yield from (f"# HELP {name} {told}", f"# TYPE {name} counter")
    for key, value in values.items():
        yield f'{name}{{{labels},{label}="{key}"}} {value}'


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _label(name: str, value: str) -> str:
    """A label in the path of a Pushgateway, which takes a slash, or nothing, only in base64."""
    if value and "/" not in value:
        return f"{name}/{quote(value, safe='')}"
    return f"{name}@base64/{base64.urlsafe_b64encode(value.encode()).decode() or '='}"
