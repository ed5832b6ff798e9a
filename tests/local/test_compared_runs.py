"""Runs of one folder beside each other, as a person sees them: the engine alone, and the pipeline."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.servers.openai_server import OpenAIServer

ROOT = Path(__file__).resolve().parents[2]
WRONG = "[[fault:400]]"


def command(cwd: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "COV_", "LANGFUSE_"))}
    return subprocess.run(
        [sys.executable, "-m", module, "--prompts", "prompts.jsonl", "--output", "out", *arguments],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


def write(folder: Path, *, good: int, wrong: int = 0) -> None:
    texts = [f"question {n}" for n in range(good)] + [f"question {n} {WRONG}" for n in range(wrong)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))


def comparison(folder: Path) -> Any:
    return json.loads((folder / "out/summary.json").read_text(encoding="utf-8"))["comparison"]


def events(stderr: str, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in stderr.splitlines() if line.startswith('{"event"')]
    return [event for event in found if event["event"] == name]


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer().in_thread() as running:
        yield running


def test_each_run_is_put_beside_the_last_one_that_passed(tmp_path: Path, server: OpenAIServer) -> None:
    """First, then edited, then begun anew with --fresh, then accepted: one folder's life."""
    limit = ("--url", server.url, "--max-error-rate", "1", "--max-regression", "error_rate=0.1")
    write(tmp_path, good=20)
    first = command(tmp_path, "clients.batch", *limit)
    assert first.returncode == 0, first.stderr
    assert comparison(tmp_path) is None
    assert "Beside the run before" not in first.stdout
    (merged,) = events(first.stderr, "results.merged")
    assert merged["completion_tokens"] > 0
    assert merged["rows_per_s"] > 0
    assert merged["duration_s"] > 0
    assert (merged["rows"], merged["outcomes"]["ok"], sum(merged["outcomes"].values())) == (20, 20, 20)
    assert {"traces", "verdict", "stopped_early", "gpu_seconds_held", "joined", "location"} <= set(merged)
    assert not {"not_ok", "slowest", "settings"} & set(merged), "texts of rows are for no log"

    write(tmp_path, good=20, wrong=10)
    for begun_anew in ((), ("--fresh",)):
        worse = command(tmp_path, "clients.batch", *limit, *begun_anew)
        assert worse.returncode == 1
        assert "error_rate went from 0 % to 33.3 % since the run before" in worse.stderr
        assert "50 % more rows, rows that went wrong from 0 % to 33.3 %" in worse.stdout
        assert comparison(tmp_path)["changes"]["rows"]["before"] == 20
        assert "Compared with the run before" in (tmp_path / "out/report.html").read_text(encoding="utf-8")

    accepted = command(tmp_path, "clients.batch", *limit[:-1], "error_rate=0.5", "--fresh")
    assert accepted.returncode == 0, accepted.stderr
    last = command(tmp_path, "clients.batch", *limit)
    assert last.returncode == 0, last.stderr
    assert comparison(tmp_path)["outcomes"] == {"ok": [20, 20], "rejected": [10, 10]}
    assert "had an answer before and were not sent again." in last.stdout
    assert "Beside the run before" not in last.stdout
    assert len(pd.read_parquet(tmp_path / "out/state")) >= 30  # what is kept for comparing does not disturb readers


@pytest.mark.slow
def test_the_pipeline_compares_its_runs_too_and_fails_at_the_gate(tmp_path: Path, server: OpenAIServer) -> None:
    limit = ("--url", server.url, "--shards", "2", "--max-regression", "rows=0.5")
    write(tmp_path, good=20)
    first = command(tmp_path, "pipelines.run", *limit)
    assert first.returncode == 0, first.stderr
    write(tmp_path, good=8)
    fewer = command(tmp_path, "pipelines.run", *limit)
    assert fewer.returncode == 1
    assert "rows went from 20 to 8 since the run before, more than max_regression rows=0.5 allows." in fewer.stderr
    assert comparison(tmp_path)["run"]


def test_a_name_that_runs_are_not_compared_by_is_refused_before_anything_starts(tmp_path: Path) -> None:
    write(tmp_path, good=1)
    done = command(tmp_path, "clients.batch", "--url", "http://127.0.0.1:9/v1", "--max-regression", "cost=1")
    assert done.returncode == 2
    assert "--max-regression: runs are not compared by 'cost', but by rows, " in done.stderr
    assert not (tmp_path / "out").exists()
