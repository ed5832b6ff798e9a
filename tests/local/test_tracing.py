"""Tracing where it is used: rows through the engine into a sink, runs that are killed or stopped, single questions."""

import asyncio
import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.batch.chat import ChatEndpoint
from clients.batch.commits import Committer
from clients.batch.engine import Engine, EngineSettings
from clients.batch.ledger import Ledger
from clients.batch.pool import Pool
from clients.batch.progress import Progress
from clients.fake_vllm.process import FakeServer
from clients.records import ChatRequest, ChatResult, Outcome
from clients.storage import Folder
from clients.tracing.spans import Origin
from clients.tracing.tracer import NoTracer, TraceCounts, Tracer, open_tracer
from tests.servers.openai_server import OpenAIServer
from tests.servers.otlp_sink import OtlpSink
from tests.unit.tracing_rows import settings

ROOT = Path(__file__).resolve().parents[2]
MODEL = "qwen3-30b-fp8"
ORIGIN = Origin(run="run-1", shard=0, pipeline="batch", model=MODEL)


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        yield sink


def requests(rows: int) -> Iterator[ChatRequest]:
    for row in range(rows):
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"question {row}"}], "max_tokens": 64}
        yield ChatRequest(row, f"row-{row}", f"{row:032x}", json.dumps(body).encode())


def opened(sink: OtlpSink, folder: Path, **changes: Any) -> Callable[[], Tracer]:
    """Opens a tracer for the rows of a folder."""
    return lambda: open_tracer(
        settings(sink.url, **changes), ORIGIN, spool=Folder(f"{folder}/traces"), home=Folder(f"{folder}/ledger")
    )


async def run(
    server: OpenAIServer | FakeServer, folder: Path, open_it: Callable[[], Tracer], rows: int
) -> tuple[Tracer, list[Any]]:
    """Run rows as a shard does; returns the tracer and the trace ids that were committed."""
    with Ledger(Folder(f"{folder}/ledger"), first_row=0, rows=rows) as ledger:
        tracer = open_it()  # after the ledger, which has taken up what a killed run left in its journal
        pending = []
        for request in requests(rows):
            if ledger.claim(request) is None:
                pending.append(request)
            else:
                tracer.reused(request)
        engine = Engine(
            pool=Pool([ChatEndpoint(server.url)], cap=32, wait_s=5.0),
            committer=Committer(ledger, tracer=tracer),
            progress=Progress(shard=0, rows=rows),
            settings=EngineSettings(),
            tracer=tracer,
        )
        try:
            await engine.run(iter(pending))
        except asyncio.CancelledError:  # SIGTERM
            return tracer, []
        found: list[Any] = []
        for table, _ in ledger.rows_by_segment():
            found += table["trace_id"].to_pylist()
        return tracer, found


async def test_every_row_of_a_run_has_its_trace_and_its_id_in_the_results(sink: OtlpSink, tmp_path: Path) -> None:
    async with OpenAIServer(reasoning="reasoning") as server:
        server.models = (MODEL,)
        tracer, found = await run(server, tmp_path, opened(sink, tmp_path), 300)
        counts = await asyncio.to_thread(tracer.close)
    assert counts == TraceCounts(exported=300)
    assert sink.row_numbers() == list(range(300))
    assert sorted(map(str, found)) == sorted(span.trace_id for span in sink.rows())
    span = sink.rows()[0]
    assert span.json("model.parameters") == {"max_tokens": 64}
    assert span.json("output")["reasoning"]
    assert span.json("usage_details")["total"] > 0


@pytest.mark.slow
async def test_a_row_that_came_as_a_stream_tells_when_its_answer_began(sink: OtlpSink, tmp_path: Path) -> None:
    with FakeServer("--no-metrics", "--model", MODEL) as server:
        tracer, _ = await run(server, tmp_path, opened(sink, tmp_path), 300)
        await asyncio.to_thread(tracer.close)
    times = [
        (row.start_ns, dt.datetime.fromisoformat(row.json("completion_start_time")), row.end_ns)
        for row in sink.rows()
        if "langfuse.observation.completion_start_time" in row.attributes
    ]
    assert times
    assert all(start <= first.timestamp() * 1e9 + 1000 <= end + 2000 for start, first, end in times)


async def test_without_a_tracer_nothing_is_traced_and_rows_have_no_trace_id(tmp_path: Path) -> None:
    async with OpenAIServer() as server:
        tracer, found = await run(
            server, tmp_path, lambda: open_tracer(None, ORIGIN, spool=Folder(f"{tmp_path}/traces")), 20
        )
        assert isinstance(tracer, NoTracer)
        assert tracer.close() == TraceCounts()
        assert tracer.url_template() is None
    assert found == [None] * 20
    assert not (tmp_path / "traces").exists()


async def test_failed_rows_are_traced_with_their_errors(sink: OtlpSink, tmp_path: Path) -> None:
    async with OpenAIServer() as server:
        server.faults = lambda request: "400" if request.text == "question 3" else None
        tracer, _ = await run(server, tmp_path, opened(sink, tmp_path, sample_rate=0.0), 10)
        counts = await asyncio.to_thread(tracer.close)
    assert counts == TraceCounts(exported=1, sampled_out=9)
    (span,) = sink.rows()
    assert span.attributes["langfuse.observation.metadata.outcome"] == "rejected"
    assert span.attributes["langfuse.observation.level"] == "ERROR"


@pytest.mark.parametrize("trouble", ["down", "hang", "401", "slow:5"])
@pytest.mark.slow
async def test_langfuse_in_trouble_slows_no_row(sink: OtlpSink, tmp_path: Path, trouble: str) -> None:
    async with OpenAIServer() as server:
        began = time.monotonic()
        await run(server, tmp_path / "without", NoTracer, 1500)
        without_s = time.monotonic() - began
        if trouble == "down":
            sink.down()
        sink.default = trouble
        began = time.monotonic()
        tracer, found = await run(server, tmp_path / "with", opened(sink, tmp_path / "with"), 1500)
        with_s = time.monotonic() - began
        began = time.monotonic()
        counts = await asyncio.to_thread(tracer.close, deadline_s=1.0)
        assert time.monotonic() - began < 6
    assert len(found) == 1500
    assert with_s < 1.5 * without_s + 0.5
    assert counts == TraceCounts(spooled=1500)


# --------------------------------------------------------------- killed, stopped

CHILD = """
import asyncio, signal, sys
from pathlib import Path
from tests.local.test_tracing import opened, run
class At:
    def __init__(self, url):
        self.url = url
async def main():
    task = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    folder = Path(sys.argv[3])
    return await run(At(sys.argv[1]), folder, opened(At(sys.argv[2]), folder, flush_interval_s=0.2), int(sys.argv[4]))
tracer, _ = asyncio.run(main())
counts = tracer.close(deadline_s=3.0)
print(counts.exported, counts.spooled, counts.dropped, flush=True)
"""


@contextlib.contextmanager
def child(server: OpenAIServer, sink: OtlpSink, folder: Path, rows: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CHILD, server.url, sink.url, str(folder), str(rows)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def identities(sink: OtlpSink) -> set[Any]:
    return {span.identity for span in sink.spans if span.name == "batch row"}


@pytest.mark.slow
def test_after_a_kill_the_next_run_sends_the_traces_that_are_owed_and_doubles_none(
    sink: OtlpSink, tmp_path: Path
) -> None:
    with OpenAIServer(token_delay_s=0.002).in_thread() as server:
        with child(server, sink, tmp_path, 3000) as process:
            sink.wait_for(lambda: len(sink.spans) > 500 and any(tmp_path.glob("traces/settled-*")))
            process.send_signal(signal.SIGKILL)
            process.wait()
        before = len(identities(sink))
        with child(server, sink, tmp_path, 3000) as process:
            exported, spooled, dropped = map(int, process.communicate(timeout=60)[0].split())
    assert sink.row_numbers() == list(range(3000))
    assert len(identities(sink)) == 3000
    assert (spooled, dropped) == (0, 0)
    assert 3000 - before <= exported < 3000


@pytest.mark.slow
def test_sigterm_flushes_what_was_committed_within_the_deadline(sink: OtlpSink, tmp_path: Path) -> None:
    with OpenAIServer(token_delay_s=0.002).in_thread() as server, child(server, sink, tmp_path, 100_000) as process:
        sink.wait_for(lambda: len(sink.spans) > 200)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        exported, spooled, dropped = map(int, process.communicate(timeout=30)[0].split())
        assert time.monotonic() - began < 6
    assert (spooled, dropped) == (0, 0)
    assert exported == len(sink.rows()) == len(identities(sink))
    with Ledger(Folder(f"{tmp_path}/ledger"), first_row=0, rows=100_000) as ledger:
        assert sum(ledger.claim(request) is not None for request in requests(100_000)) == exported


@pytest.mark.slow
def test_sigterm_with_a_black_hole_keeps_the_rows_within_the_deadline(sink: OtlpSink, tmp_path: Path) -> None:
    sink.default = "hang"
    with OpenAIServer(token_delay_s=0.002).in_thread() as server, child(server, sink, tmp_path, 100_000) as process:
        sink.wait_for(lambda: sink.posts() > 0)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        exported, spooled, dropped = map(int, process.communicate(timeout=30)[0].split())
        assert time.monotonic() - began < 6
    assert (exported, dropped) == (0, 0)
    assert spooled > 0


# ------------------------------------------------------------------------- cost


def cost_us(tracer: Tracer, rows: int) -> float:
    """CPU microseconds of this process for a row's trace, from the end of the row to Langfuse's answer."""
    text = ("lorem ipsum dolor sit amet consetetur sadipscing elitr " * 9)[:450]
    asked, results = [], []
    for row in range(rows):
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"{text}{row}"}],
            "max_tokens": 128,
            "temperature": 0.6,
        }
        asked.append(ChatRequest(row, f"row-{row}", f"{row:032x}", json.dumps(body).encode()))
    now, began = dt.datetime.now(dt.UTC), time.process_time()
    for at in range(0, rows, 512):
        for request in asked[at : at + 512]:
            result = ChatResult(
                row=request.row,
                id=request.id,
                request_hash=request.request_hash,
                outcome=Outcome.OK,
                content=f"{text}{request.row}",
                finish_reason="stop",
                prompt_tokens=100,
                completion_tokens=120,
                attempts=1,
                started_at=now,
                latency_s=1.25,
                model=MODEL,
                endpoint="http://vllm:8000/v1",
                trace_id=tracer.trace_id(request),
            )
            tracer.finished(request, result)
            results.append(result)
        tracer.committed(results)
        results = []
    counts = tracer.close()
    spent_us = (time.process_time() - began) / rows * 1e6
    assert counts in (TraceCounts(), TraceCounts(exported=rows))
    return spent_us


# -------------------------------------------------------------- single questions

SCRIPT = ROOT / "clients" / "query_vllm.py"
CLEAN = {
    name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON", "COV_", "LANGFUSE_"))
}


def ask(server: OpenAIServer, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--url", server.url, "--prompt", "부산", *flags],
        capture_output=True,
        encoding="utf-8",
        env={**CLEAN, **environment},
        timeout=60,
        check=False,
    )


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(reasoning="reasoning", latency_s=0.1).in_thread() as server:
        yield server


def test_a_question_is_traced_and_the_address_of_its_trace_is_printed(server: OpenAIServer, sink: OtlpSink) -> None:
    done = ask(server, "--max-tokens", "40", **sink.environment())
    assert (done.returncode, done.stderr) == (0, "")
    (span,) = sink.spans
    assert done.stdout.splitlines()[-1] == f"Trace: {sink.url}/project/project-1/traces/{span.trace_id}"
    assert done.stdout.splitlines()[-2].startswith("Elapsed: ")
    assert span.json("input") == [{"role": "user", "content": "부산"}]
    assert span.json("model.parameters") == {"max_tokens": 40}
    assert span.json("output")["content"]
    assert span.json("output")["reasoning"]
    assert span.json("usage_details")["total"] > 0
    assert 0.1 <= (span.end_ns - span.start_ns) / 1e9 < 5


def test_a_streamed_question_tells_the_time_of_its_first_token_and_json_stays_json(
    server: OpenAIServer, sink: OtlpSink
) -> None:
    assert ask(server, "--stream", **sink.environment()).returncode == 0
    (span,) = sink.spans
    first = dt.datetime.fromisoformat(span.json("completion_start_time")).timestamp()
    assert span.start_ns / 1e9 + 0.09 < first < span.end_ns / 1e9
    assert span.json("output")["content"]
    done = ask(server, "--json", **sink.environment())
    json.loads(done.stdout)
    assert "Trace: " in done.stderr


def test_a_question_that_fails_is_traced_as_an_error(server: OpenAIServer, sink: OtlpSink) -> None:
    server.faults = lambda _: "500"
    done = ask(server, **sink.environment())
    assert done.returncode == 1
    assert "Trace: " in done.stderr
    assert sink.spans[0].attributes["langfuse.observation.level"] == "ERROR"
    assert sink.spans[0].message.startswith("http_500: ")


@pytest.mark.parametrize("trouble", ["down", "hang", "401"])
def test_langfuse_in_trouble_delays_no_answer_and_the_end_by_little(
    server: OpenAIServer, sink: OtlpSink, trouble: str
) -> None:
    environment = sink.environment()
    if trouble == "down":
        sink.down()
    sink.default = trouble
    if trouble == "401":
        environment["LANGFUSE_SECRET_KEY"] = "sk-lf-other"
    began = time.monotonic()
    done = ask(server, **environment)
    assert time.monotonic() - began < 10
    assert done.returncode == 0
    elapsed, last = done.stdout.splitlines()[-2:]
    assert float(elapsed.removeprefix("Elapsed: ").removesuffix("s")) < 3
    assert last.startswith("Trace: not sent, ")
    assert "sk-lf" not in done.stdout + done.stderr


def test_settings_that_cannot_be_used_are_told_and_the_question_is_asked(server: OpenAIServer, sink: OtlpSink) -> None:
    done = ask(server, **{**sink.environment(), "LANGFUSE_BASE_URL": "langfuse"})
    assert done.returncode == 0
    assert "has no scheme" in done.stderr
    assert "Trace" not in done.stdout
    assert sink.requests == []


def test_a_question_without_keys_loads_nothing_of_tracing(server: OpenAIServer) -> None:
    code = (
        "import sys; from clients.query_vllm import main\n"
        f"main(['--url', '{server.url}', '--prompt', 'x', '--json'])\n"
        "print([name for name in sys.modules if 'clients.tracing' in name or 'langfuse' in name], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=CLEAN, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.splitlines()[-1] == "[]"
