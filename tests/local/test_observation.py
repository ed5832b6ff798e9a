"""`python -m clients.batch` with the keys of Langfuse, as a process of its own: what of its rows arrives is counted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clients.langfuse_utils import main as langfuse
from clients.records import Outcome
from clients.tracing.tracer import DEADLINE_S
from tests.servers.openai_server import OpenAIServer
from tests.servers.otlp_sink import OtlpSink
from tests.unit.test_metrics import Gateway, get

ROOT = Path(__file__).resolve().parents[2]
URL_KEY = b"kubeflow_llm_inference.trace_url"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "COV_", "LANGFUSE_"))}


def slow(value: str) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(token_delay_s=0.002).in_thread() as server:
        yield server


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        yield sink


class Place:
    """A file of prompts, the command that runs it, and what comes out."""

    def __init__(self, folder: Path, server: OpenAIServer, sink: OtlpSink, rows: int) -> None:
        self.prompts, self.output = folder / "prompts.jsonl", folder / "out"
        self.prompts.write_text("".join(f'{{"prompt": "question {row}"}}\n' for row in range(rows)))
        self._command = [sys.executable, "-W", "error", "-m", "clients.batch", "-i", str(self.prompts)]
        self._command += ["--url", server.url, "--output", str(self.output), "--max-error-rate", "1"]
        self._environment = {**CLEAN, **sink.environment(), "PYTHONPATH": str(ROOT)}

    def start(self, *flags: str, **changes: str) -> subprocess.Popen[str]:
        environment = {**self._environment, **changes}
        return subprocess.Popen([*self._command, *flags], env=environment, stderr=subprocess.PIPE, text=True)

    def run(self, *flags: str, **changes: str) -> dict[str, Any]:
        """Run to the end; returns the summary."""
        with self.start(*flags, **changes) as process:
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return self.summary

    def interrupt(self, when: Callable[[], bool], sink: OtlpSink, *, by: int) -> tuple[int, float]:
        """Send a signal in the middle of a run; returns the exit code, and the seconds that it took."""
        with self.start() as process:
            sink.wait_for(when)
            process.send_signal(by)
            began = time.monotonic()
            process.communicate(timeout=60)
            return process.returncode, time.monotonic() - began

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.output / "summary.json").read_text())
        return found

    def kept(self) -> int:
        """Rows in files."""
        return sum(int(path.name.split("-")[-1].split(".")[0]) for path in self.output.rglob("*.otlp.gz"))


def counted(**counts: int) -> dict[str, int]:
    return {"exported": 0, "spooled": 0, "dropped": 0, "sampled_out": 0, "replayed": 0, **counts}


def identities(sink: OtlpSink) -> int:
    return len({span.identity for span in sink.spans if span.name == "batch row"})


def test_results_summary_and_report_tell_of_the_traces(server: OpenAIServer, sink: OtlpSink, tmp_path: Path) -> None:
    server.faults = lambda request: "400" if request.text == "question 7" else None
    place = Place(tmp_path, server, sink, 40)
    summary = place.run("--trace-scores")
    table = pq.read_table(place.output / "results.parquet")
    url = f"{sink.url}/project/project-1/traces/{{trace_id}}"
    assert summary["traces"] == counted(exported=40)
    assert summary["trace_url"] == url
    assert table.schema.metadata[URL_KEY].decode() == url
    assert sorted(table["trace_id"].to_pylist()) == sorted(span.trace_id for span in sink.rows())
    page = (place.output / "report.html").read_text()
    failed = table["trace_id"][7].as_py()
    assert f'href="{url.replace("{trace_id}", failed)}"' in page
    assert "40 traces in Langfuse" in page
    assert len(sink.scores) == 40
    (told,) = sink.summaries()
    assert told.json("output")["traces"] == counted(exported=40)
    (session,) = {span.attributes["session.id"] for span in sink.rows()}
    assert session.startswith("prompts-")


def test_what_is_sent_and_of_how_many_rows_is_a_choice(server: OpenAIServer, sink: OtlpSink, tmp_path: Path) -> None:
    summary = Place(tmp_path, server, sink, 300).run("--trace-content", "hash", "--trace-sample-rate", "0.25")
    traces = summary["traces"]
    assert traces["exported"] + traces["sampled_out"] == 300
    assert 40 < traces["exported"] == len(sink.rows()) < 120
    assert "question" not in repr(sink.spans)
    assert set(sink.rows()[0].json("input")) == {"sha256", "bytes"}


def test_the_same_command_again_sends_nothing_twice(server: OpenAIServer, sink: OtlpSink, tmp_path: Path) -> None:
    place = Place(tmp_path, server, sink, 100)
    place.run()
    sent = list(sink.spans)
    assert place.run()["traces"] == counted(exported=100)
    assert sink.spans == sent


def test_sigterm_in_the_middle_sends_what_is_kept_and_the_next_run_counts_everything(
    server: OpenAIServer, sink: OtlpSink, tmp_path: Path
) -> None:
    place = Place(tmp_path, server, sink, 5000)
    code, seconds = place.interrupt(lambda: identities(sink) > 300, sink, by=signal.SIGTERM)
    assert code == 143
    assert seconds < DEADLINE_S
    assert 300 < identities(sink) < 5000
    assert place.run()["traces"] == counted(exported=5000)
    assert identities(sink) == len(sink.rows()) == 5000
    assert sum(span.name == "batch row" for span in sink.spans) == 5000


@pytest.mark.slow
def test_sigterm_with_a_langfuse_that_hangs_keeps_the_traces_for_the_next_run(
    server: OpenAIServer, sink: OtlpSink, tmp_path: Path
) -> None:
    sink.default = "hang"
    place = Place(tmp_path, server, sink, 5000)
    code, seconds = place.interrupt(lambda: sink.posts() > 0, sink, by=signal.SIGTERM)
    assert code == 143
    assert seconds < DEADLINE_S + 2
    kept = place.kept()
    assert 0 < kept < 5000
    sink.default = "ok"
    assert place.run()["traces"] == counted(exported=5000, replayed=kept)
    assert place.kept() == 0
    assert identities(sink) == 5000


@pytest.mark.slow
def test_after_a_kill_the_next_run_counts_everything(server: OpenAIServer, sink: OtlpSink, tmp_path: Path) -> None:
    place = Place(tmp_path, server, sink, 20_000)
    notes = f"{place.output.name}/state/*/traces/*/*/settled-*"
    code, _ = place.interrupt(lambda: identities(sink) > 500 and any(tmp_path.glob(notes)), sink, by=signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert place.run()["traces"] == counted(exported=20_000)
    assert identities(sink) == 20_000


@pytest.mark.parametrize(
    "trouble", ["down", *map(slow, ("hang", "slow:30", "401", "413", "429:60", "500", "503", "reset"))]
)
def test_langfuse_in_trouble_delays_the_end_by_the_deadline_at_most_and_every_trace_is_accounted_for(
    server: OpenAIServer, sink: OtlpSink, tmp_path: Path, trouble: str
) -> None:
    place = Place(tmp_path, server, sink, 600)
    began = time.monotonic()
    place.run(LANGFUSE_TRACING_ENABLED="false")
    without_s = time.monotonic() - began
    sink.default = trouble
    if trouble == "down":
        sink.down()
    began = time.monotonic()
    summary = place.run("--fresh")
    assert time.monotonic() - began < without_s + DEADLINE_S + 1
    assert summary["outcomes"]["ok"] == summary["rows"] == 600
    assert summary["traces"] == counted(spooled=600)
    assert place.kept() == 600
    if trouble == "down":
        sink.up()
    sink.default = "ok"
    assert place.run("--fresh")["traces"] == counted(exported=600, replayed=600)
    assert place.kept() == 0


def test_kept_traces_are_sent_by_hand_too(server: OpenAIServer, sink: OtlpSink, tmp_path: Path) -> None:
    place = Place(tmp_path, server, sink, 50)
    sink.default = "401"
    place.run()
    sink.default = "ok"
    assert langfuse(["replay", str(place.output / "state")], sink.environment()) == 0
    assert len(sink.rows()) == 50
    assert place.run()["traces"] == counted(exported=50)


def test_settings_that_cannot_be_used_cost_the_traces_and_not_the_run(
    server: OpenAIServer, sink: OtlpSink, tmp_path: Path
) -> None:
    place = Place(tmp_path, server, sink, 10)
    with place.start(LANGFUSE_BASE_URL="langfuse:3000") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "has no scheme" in errors
    assert place.summary["traces"] is None
    assert not list(place.output.rglob("traces"))


def test_without_keys_nothing_of_it_is_loaded(server: OpenAIServer, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n')
    code = (
        "import sys; from clients.batch.__main__ import main; code = main(sys.argv[1:])\n"
        "print(code, sorted(name for name in sys.modules if name.startswith(('clients.tracing', 'langfuse', "
        "'opentelemetry', 'google.protobuf', 'clients.batch.metrics'))))"
    )
    command = [sys.executable, "-c", code, "-i", "p.jsonl", "--url", server.url, "--output", "out"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**CLEAN, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 ['clients.tracing', 'clients.tracing.settings', 'clients.tracing.tracer']"


@pytest.mark.slow
def test_a_run_can_be_watched_at_a_port_and_at_a_pushgateway(
    server: OpenAIServer, sink: OtlpSink, tmp_path: Path
) -> None:
    place = Place(tmp_path, server, sink, 20_000)
    with Gateway() as gateway:
        with place.start("--metrics-port", "0", "--pushgateway", gateway.url) as process:
            assert process.stderr is not None
            host = ""
            for line in process.stderr:
                if line.startswith("{") and (event := json.loads(line))["event"] == "metrics.served":
                    host = event["url"].removeprefix("http://").partition("/")[0]
                elif "shard.progress" in line and json.loads(line)["done"]:
                    break
            status, _, text = get(host, "/metrics")
            process.communicate(timeout=60)
        assert process.returncode == 0
        ((path, last),) = gateway.groups.items()
    assert status == 200
    assert b"llm_batch_rows{" in text
    assert path.endswith("/shard/0")
    lines = dict(line.rsplit(" ", 1) for line in last.splitlines() if not line.startswith("#"))
    values = {name.partition("{")[0]: value for name, value in lines.items() if "outcome" not in name}
    assert values["llm_batch_in_flight"] == "0"
    assert next(value for name, value in lines.items() if f'outcome="{Outcome.OK}"' in name) == "20000"
    assert next(value for name, value in lines.items() if 'state="exported"' in name) == "20000"


@pytest.mark.slow
def test_nothing_is_lost_when_langfuse_takes_a_second_for_every_answer(
    server: OpenAIServer, sink: OtlpSink, tmp_path: Path
) -> None:
    sink.latency_s = 1.0
    assert Place(tmp_path, server, sink, 5000).run()["traces"] == counted(exported=5000)
    assert identities(sink) == 5000
