"""Progress for Prometheus, over real sockets: a scrape, a Pushgateway, and gateways that are none."""

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest

from clients.batch import metrics
from clients.batch.metrics import Metrics
from clients.batch.progress import Progress
from clients.records import ChatResult, Outcome
from clients.tracing.tracer import NoTracer, TraceCounts
from tests.contract.test_observability import OURS
from tests.unit.tracing_rows import events

_SAMPLE = re.compile(r'([a-z_]+)\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)+)\} (\d+)')


class CountedTraces(NoTracer):
    """Traces that were counted already."""

    def counts(self) -> TraceCounts:
        return TraceCounts(exported=7, spooled=2, dropped=1, sampled_out=5)


class Gateway:
    """A stand-in for a Pushgateway: keeps the last push of each group, as it does."""

    def __init__(self, status: int = 200, delay_s: float = 0.0) -> None:
        self.groups: dict[str, str] = {}
        self.types: list[str | None] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(delay_s)
                gateway.types.append(self.headers["Content-Type"])
                gateway.groups[self.path] = body.decode()
                self.send_response(status)
                self.send_header("Content-Length", "5")
                self.end_headers()
                self.wfile.write(b"words")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def shown() -> Iterator[Metrics]:
    progress = Progress(shard=3, rows=100, joins=False)
    progress.reuse(Outcome.OK)
    for row in range(4):
        fields: dict[str, Any] = {"prompt_tokens": 10, "completion_tokens": 20}
        outcome = Outcome.OK if row else Outcome.FAILED
        progress.finish(ChatResult(row=row, id="", request_hash="", outcome=outcome, **fields))
    progress.retries = 6
    progress.report(in_flight=8, waiting=0)
    found = Metrics(run='a "run"', shard=3, tracer=CountedTraces())
    found.see(progress)
    yield found
    found.close()


def get(host: str, path: str) -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection(host, timeout=5)
    try:
        connection.request("GET", path)
        with connection.getresponse() as reply:
            return reply.status, reply.getheader("Content-Type"), reply.read()
    finally:
        connection.close()


def samples(text: str) -> dict[str, int]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = _SAMPLE.fullmatch(line)
            assert match, line
            found[f"{match[1]}{{{match[2]}}}"] = int(match[3])
    return found


def test_names_and_labels_are_those_of_the_dashboard(shown: Metrics) -> None:
    text = shown.text().decode()
    labels: dict[str, set[str]] = {}
    for line in text.splitlines():
        if match := _SAMPLE.fullmatch(line):
            labels[match[1]] = set(re.findall(r'([a-z]+)="', match[2]))
    assert labels == OURS
    assert set(re.findall(r"# TYPE (\w+)", text)) == set(re.findall(r"# HELP (\w+)", text)) == set(OURS)
    found = samples(text)
    common = r'run="a \"run\"",shard="3"'
    assert found[f"llm_batch_rows{{{common}}}"] == 100
    assert found[f"llm_batch_in_flight{{{common}}}"] == 8
    assert found[f"llm_batch_output_tokens_total{{{common}}}"] == 80
    assert found[f"llm_batch_prompt_tokens_total{{{common}}}"] == 40
    assert found[f"llm_batch_retries_total{{{common}}}"] == 6
    assert found[f'llm_batch_rows_total{{{common},outcome="ok"}}'] == 4
    assert found[f'llm_batch_rows_total{{{common},outcome="failed"}}'] == 1
    assert found[f'llm_batch_rows_total{{{common},outcome="empty"}}'] == 0
    assert found[f'llm_batch_traces_total{{{common},state="exported"}}'] == 7
    assert found[f'llm_batch_traces_total{{{common},state="spooled"}}'] == 2
    assert found[f'llm_batch_traces_total{{{common},state="dropped"}}'] == 1


def test_a_scrape_gets_them_and_the_port_is_free_again_at_the_end(shown: Metrics) -> None:
    with events() as told:
        shown.serve("127.0.0.1", 0)
    host, _, path = told[0]["url"].removeprefix("http://").partition("/")
    assert get(host, f"/{path}") == (200, metrics.CONTENT_TYPE, shown.text())
    assert get(host, "/")[0] == 404
    shown.close()
    with pytest.raises(ConnectionRefusedError):
        get(host, f"/{path}")


def test_before_the_run_has_begun_there_is_nothing_to_read() -> None:
    assert Metrics(run="r", shard=0, tracer=NoTracer()).text() == b""


def test_a_port_that_is_taken_is_told_and_the_run_goes_on(shown: Metrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, events() as told:
        shown.serve("127.0.0.1", taken.getsockname()[1])
        shown.serve("no such host", 0)
    assert [event["event"] for event in told] == ["metrics.off", "metrics.off"]
    assert "Choose another" in told[0]["reason"]


def test_a_pushgateway_has_the_last_numbers_at_the_end_and_in_between(
    shown: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_PUSH_S", 0.05)
    with Gateway() as gateway:
        shown.push(f"{gateway.url}/prefix/")
        until = time.monotonic() + 5
        while len(gateway.types) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(gateway.types) >= 3
        shown.see(Progress(shard=3, rows=222))
        shown.close()
        ((path, text),) = gateway.groups.items()
    assert path == "/prefix/metrics/job/kubeflow_llm_inference/run/a%20%22run%22/shard/3"
    assert 'llm_batch_rows{run="a \\"run\\"",shard="3"} 222' in text
    assert set(gateway.types) == {metrics.CONTENT_TYPE}


def test_a_name_with_a_slash_goes_in_base64_as_a_pushgateway_wants_it() -> None:
    with Gateway() as gateway:
        found = Metrics(run="a/b", shard=0, tracer=NoTracer())
        found.see(Progress(shard=0, rows=1))
        found.push(gateway.url)
        found.close()
        assert list(gateway.groups) == ["/metrics/job/kubeflow_llm_inference/run@base64/YS9i/shard/0"]


@pytest.mark.parametrize("kind", ["refused", "silent", "500", "no such host"])
def test_a_gateway_that_is_none_costs_little_at_the_end(shown: Metrics, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, Gateway(status=500) as failing, events() as told:
        url = {"silent": f"http://127.0.0.1:{silent.getsockname()[1]}", "500": failing.url}.get(kind)
        began = time.monotonic()
        shown.push(url or {"refused": "http://127.0.0.1:9", "no such host": "http://gateway.invalid"}[kind])
        assert time.monotonic() - began < 1
        shown.close()
        assert time.monotonic() - began < 6
    if kind != "silent":
        assert [event["event"] for event in told] == ["metrics.unsent"]


def test_the_same_trouble_is_told_once(shown: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PUSH_S", 0.02)
    with Gateway(status=400) as gateway, events() as told:
        shown.push(gateway.url)
        time.sleep(1.3)
        shown.close()
        assert len(gateway.types) > 2
    assert [event["reason"] for event in told] == ["HTTP 400: words"]
