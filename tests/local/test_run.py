"""`python -m pipelines.run` as a person types it: the compiled pipeline, Kubeflow's local runner, real servers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pandas as pd
import pytest
import yaml

from pipelines.catalog import compiled_path
from tests.servers.answers import digest
from tests.servers.openai_server import OpenAIServer

ROOT = Path(__file__).resolve().parents[2]
FILES = {"results.parquet", "rejects.parquet", "summary.json", "report.html"}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pipelines.run", *map(str, arguments)]


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "COV_"))}
    return {**clean, "PYTHONPATH": str(ROOT)}


def run(cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=120
    )


def start(cwd: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def write_prompts(path: Path, rows: list[dict[str, object] | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def processes_below(folder: Path) -> list[str]:
    """Process id and command line of each process that names a folder; every task of a local run does."""
    if Path("/proc/self").exists():  # slim images have no ps
        lines = [f"{path.parent.name} {_command_line(path)}" for path in Path("/proc").glob("[0-9]*/cmdline")]
    else:
        command = ["ps", "-eww", "-o", "pid=,args="]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(folder) in line]


def _command_line(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it ended meanwhile


def wait_until(fact: object, timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if fact():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer().in_thread() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("with space and 한글")


@pytest.fixture(scope="module")
def done(folder: Path) -> subprocess.CompletedProcess[str]:
    rows: list[dict[str, object] | str] = [
        {"custom_id": "first", "prompt": "What is the capital of France?", "topic": "geography", "weight": 3},
        '{"prompt": "cut off',
        {"messages": [{"role": "user", "content": "Say hello."}], "tags": ["a", "b"], "topic": "인사"},
        {"custom_id": "long", "prompt": "word " * 5000},
        {"prompt": "List two colours.", "id": 17},
    ]
    write_prompts(folder / "my prompts.jsonl", rows)
    return run(folder, "--prompts", "my prompts.jsonl", "--max-tokens", "8", "--shards", "2", "--max-error-rate", "0.4")


class TestEmbedded:
    """One run with the embedded model, looked at from all sides."""

    def test_it_succeeds_and_says_what_to_do_next(self, done: subprocess.CompletedProcess[str], folder: Path) -> None:
        assert done.returncode == 0, done.stderr
        assert "5 rows checked, 1 malformed" in done.stderr
        assert "line 2: not valid JSON" in done.stderr
        for name in FILES:
            assert f"results/my prompts/{name}" in done.stdout
        assert {path.name for path in (folder / "results/my prompts").iterdir()} >= FILES

    def test_every_row_has_its_result_in_input_order(
        self, done: subprocess.CompletedProcess[str], folder: Path
    ) -> None:
        frame = pd.read_parquet(folder / "results/my prompts/results.parquet")
        assert frame["row"].tolist() == [0, 1, 2, 3, 4]
        assert frame["id"].tolist() == ["first", "row-1", "row-2", "long", "17"]
        assert frame["outcome"][1] == "invalid"
        assert frame["outcome"][3] == "rejected"
        assert set(frame["outcome"][[0, 2, 4]]) <= {"ok", "truncated"}
        assert frame["topic"].tolist()[::2] == ["geography", "인사", None] or pd.isna(frame["topic"][4])
        assert json.loads(frame["tags"][2]) == ["a", "b"]
        assert frame["weight"][0] == 3
        assert (frame["completion_tokens"][[0, 2, 4]] <= 8).all()

    def test_duckdb_reads_it_too(self, done: subprocess.CompletedProcess[str], folder: Path) -> None:
        path = folder / "results/my prompts/rejects.parquet"
        rows = duckdb.execute("select id, error_code from read_parquet(?) where outcome = 'invalid'", [str(path)])
        assert rows.fetchall() == [("row-1", "not_json")]

    def test_summary_and_report_tell_the_same(self, done: subprocess.CompletedProcess[str], folder: Path) -> None:
        summary = json.loads((folder / "results/my prompts/summary.json").read_text(encoding="utf-8"))
        assert summary["rows"] == 5
        assert summary["outcomes"]["invalid"] == summary["outcomes"]["rejected"] == 1
        assert "http_400" in (folder / "results/my prompts/report.html").read_text(encoding="utf-8")

    def test_nothing_of_it_is_left_running_or_lying_around(
        self, done: subprocess.CompletedProcess[str], folder: Path
    ) -> None:
        assert processes_below(folder) == []
        assert list((folder / "results/my prompts/.scratch").iterdir()) == []

    def test_the_tasks_ran_the_compiled_code_and_not_the_checkout(
        self, done: subprocess.CompletedProcess[str], folder: Path
    ) -> None:
        log = (folder / "results/my prompts/logs/run.log").read_text(encoding="utf-8")
        text = compiled_path("batch_inference").read_text(encoding="utf-8")
        steps = next(yaml.safe_load_all(text))["deploymentSpec"]["executors"]
        assert log.count("Loading KFP component") == len(steps) + 1  # each step once, and of shards there are two
        assert "What is the capital" not in log

    def test_the_same_command_again_sends_nothing(self, done: subprocess.CompletedProcess[str], folder: Path) -> None:
        before = pd.read_parquet(folder / "results/my prompts/results.parquet")
        again = run(
            folder, "--prompts", "my prompts.jsonl", "--max-tokens", "8", "--shards", "2", "--max-error-rate", "0.4"
        )
        after = pd.read_parquet(folder / "results/my prompts/results.parquet")
        assert again.returncode == 0
        answered = before["outcome"] != "invalid"
        assert (before["started_at"][answered] == after["started_at"][answered]).all()


def slow_prompts(folder: Path, rows: int = 40) -> Path:
    return write_prompts(folder / "prompts.jsonl", [{"custom_id": f"r{i}", "prompt": f"slow {i}"} for i in range(rows)])


def committed(folder: Path) -> int:
    """Rows that any Parquet reader finds in the state of a run."""
    return len(pd.read_parquet(folder / "out/state")) if (folder / "out/state").exists() else 0


SLOW = ("--shards", "2", "--concurrency", "8", "--output", "out")


def twice(server: OpenAIServer, rows: int) -> list[int]:
    return [i for i in range(rows) if server.seen(f"slow {i}") > 1]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_an_interrupted_run_keeps_its_rows_and_goes_on(
    server: OpenAIServer, tmp_path: Path, signum: signal.Signals, code: int
) -> None:
    server.latency_s = 0.4
    slow_prompts(tmp_path)
    process = start(tmp_path, "--prompts", "prompts.jsonl", "--url", server.url, *SLOW)
    assert wait_until(lambda: committed(tmp_path))  # readable while it runs
    process.send_signal(signum)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert errors.splitlines()[-1] == "error: interrupted; finished rows are kept, the same command goes on from there"
    assert "Traceback" not in errors
    assert wait_until(lambda: not processes_below(tmp_path), 5)
    done = run(tmp_path, "--prompts", "prompts.jsonl", "--url", server.url, *SLOW)
    assert done.returncode == 0, done.stderr
    frame = pd.read_parquet(tmp_path / "out/results.parquet")
    assert frame["outcome"].tolist() == ["ok"] * 40
    assert all(digest(f"slow {row}") in content for row, content in zip(frame["row"], frame["content"], strict=True))
    assert len(twice(server, 40)) <= 8  # what was in flight


@pytest.mark.slow
def test_after_sigkill_no_process_is_left_and_the_rerun_finishes(server: OpenAIServer, tmp_path: Path) -> None:
    server.latency_s = 0.4
    slow_prompts(tmp_path)
    process = start(tmp_path, "--prompts", "prompts.jsonl", "--url", server.url, *SLOW)
    assert wait_until(lambda: committed(tmp_path))
    process.kill()
    process.communicate(timeout=20)
    assert wait_until(lambda: not processes_below(tmp_path), 10), processes_below(tmp_path)
    done = run(tmp_path, "--prompts", "prompts.jsonl", "--url", server.url, *SLOW)
    assert done.returncode == 0, done.stderr
    assert pd.read_parquet(tmp_path / "out/results.parquet")["outcome"].tolist() == ["ok"] * 40
    assert len(twice(server, 40)) <= 8


@pytest.mark.slow
def test_a_shard_whose_process_is_killed_is_finished_by_the_step_after_it(server: OpenAIServer, tmp_path: Path) -> None:
    server.latency_s = 0.4
    slow_prompts(tmp_path)
    process = start(tmp_path, "--prompts", "prompts.jsonl", "--url", server.url, *SLOW)
    assert wait_until(lambda: committed(tmp_path))
    shards = [line for line in processes_below(tmp_path) if "executor_main" in line and "run_shard" in line]
    os.kill(min(int(line.split()[0]) for line in shards if " sh " not in line), signal.SIGKILL)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 0, errors
    assert pd.read_parquet(tmp_path / "out/results.parquet")["outcome"].tolist() == ["ok"] * 40
    assert len(twice(server, 40)) <= 8  # what was in flight


def test_a_runner_that_dies_takes_its_tasks_along(server: OpenAIServer, tmp_path: Path) -> None:
    server.latency_s = 0.4
    slow_prompts(tmp_path)
    process = start(tmp_path, "--prompts", "prompts.jsonl", "--url", server.url, *SLOW)
    assert wait_until(lambda: committed(tmp_path))
    (runner,) = [line.split()[0] for line in processes_below(tmp_path) if "pipelines.local_runner" in line]
    os.kill(int(runner), signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.splitlines()[-1].endswith("ended without naming a cause (log: out/logs/run.log)")
    assert wait_until(lambda: not processes_below(tmp_path), 10), processes_below(tmp_path)
    assert committed(tmp_path) >= 8


@pytest.mark.slow
def test_edited_rows_are_sent_again_and_fresh_sends_all(server: OpenAIServer, tmp_path: Path) -> None:
    arguments = ("--prompts", "prompts.jsonl", "--url", server.url, "--output", "out")
    rows: list[dict[str, object] | str] = [{"prompt": f"slow {i}"} for i in range(6)]
    write_prompts(tmp_path / "prompts.jsonl", rows)
    assert run(tmp_path, *arguments).returncode == 0
    rows[2] = {"prompt": "edited"}
    write_prompts(tmp_path / "prompts.jsonl", [{"prompt": "inserted"}, *rows])
    assert run(tmp_path, *arguments).returncode == 0
    assert len(server.requests) == 8
    frame = pd.read_parquet(tmp_path / "out/results.parquet")
    assert frame["id"].tolist() == [f"row-{row}" for row in range(7)]
    assert digest("edited") in frame["content"][3]
    assert digest("slow 5") in frame["content"][6]
    assert run(tmp_path, *arguments, "--fresh").returncode == 0
    assert len(server.requests) == 15
    assert [path.name for path in sorted((tmp_path / "out/state").glob("0*"))] == ["0002"]


@pytest.mark.slow
def test_too_many_bad_rows_fail_the_run_after_its_files_stand(server: OpenAIServer, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [{"prompt": "good"}, {"prompt": "[[fault:400]] bad"}])
    done = run(tmp_path, "--prompts", "prompts.jsonl", "--url", server.url, "--output", "out")
    assert done.returncode == 1
    assert "1 of 2 rows went wrong (rejected 1), more than max_error_rate 0.2 allows" in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} >= FILES
    assert len(pd.read_parquet(tmp_path / "out/rejects.parquet")) == 1


class TestMistakes:
    """Each mistake a newcomer makes is answered by one line that says what to do, before anything is started."""

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "no such file"),
            (b"", "is empty"),
            (b"\n\n", "holds only blank lines"),
            (b'[{"prompt": "a"}]', "is one JSON array, not JSONL"),
            (b"\x1f\x8bxx", "is damaged: "),
            (b"prompt\nhello\n", "no row of"),
        ],
    )
    def test_prompts_that_cannot_be_used(
        self, server: OpenAIServer, tmp_path: Path, content: bytes | None, message: str
    ) -> None:
        if content is not None:
            (tmp_path / "p.jsonl").write_bytes(content)
        done = run(tmp_path, "--prompts", "p.jsonl", "--url", server.url)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert len(server.requests) == 0

    def test_an_output_that_cannot_be_written(self, server: OpenAIServer, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        write_prompts(tmp_path / "p.jsonl", [{"prompt": "a"}])
        done = run(tmp_path, "--prompts", "p.jsonl", "--url", server.url, "--output", "file/below")
        assert done.returncode == 2
        assert "cannot write file/below" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (("--url", "http://127.0.0.1:9/v1", "--server-wait", "0"), 1, "cannot reach http://127.0.0.1:9/v1"),
            (("--url", "localhost:8000"), 2, "scheme"),
            (("--url", "URL", "--model", "nonsense"), 1, "serves no model 'nonsense'. It serves: qwen3-30b-fp8"),
            (("--url", "URL", "--shards", "0"), 2, "--shards must be at least 1"),
            (("--url", "URL", "--max-error-rate", "7"), 2, "--max-error-rate must be between 0 and 1"),
            (("--url", "URL", "--param", "top_k"), 2, "expected KEY=VALUE"),
            (("--gguf", "nothing.gguf"), 2, "nothing.gguf"),
            (("--output", "s3://bucket/out"), 2, "is an address; a run on this machine reads and writes local files"),
            (("--model", "other"), 2, "--model chooses among the models of --url"),
        ],
    )
    def test_flags_that_cannot_be_used(
        self, server: OpenAIServer, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
    ) -> None:
        write_prompts(tmp_path / "p.jsonl", [{"prompt": "a"}])
        done = run(tmp_path, "--prompts", "p.jsonl", *(server.url if text == "URL" else text for text in arguments))
        assert done.returncode == code, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_key_that_is_refused(self, tmp_path: Path) -> None:
        write_prompts(tmp_path / "p.jsonl", [{"prompt": "a"}])
        with OpenAIServer(api_key="right").in_thread() as server:
            done = run(tmp_path, "--prompts", "p.jsonl", "--url", server.url)
        assert done.returncode == 1
        assert "Set OPENAI_API_KEY" in done.stderr
