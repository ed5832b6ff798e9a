"""Input as people have it, through the commands as people type them."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.servers.answers import digest
from tests.servers.openai_server import OpenAIServer

ROOT = Path(__file__).resolve().parents[2]
REVIEWS = ROOT / "examples/reviews.csv"
MODEL = "qwen3-30b-fp8"
TEMPLATE = "Translate into Korean: {text}"


def run(cwd: Path, *arguments: str | Path, module: str = "clients.batch") -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "COV_"))}
    warnings = ("-W", "error") if module == "clients.batch" else ()
    done = subprocess.run(
        [sys.executable, *warnings, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert "Traceback" not in done.stderr
    return done


def error_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if not line.startswith("{")]


def batch_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "custom_id": f"c{at}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": [{"role": "user", "content": f"question {at}"}], "max_tokens": 50},
        }
        for at in range(count)
    ]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer().in_thread() as running:
        yield running


class TestTables:
    """A table and a template."""

    def test_each_record_is_asked_about_and_keeps_its_columns(self, server: OpenAIServer, tmp_path: Path) -> None:
        done = run(tmp_path, "--prompts", REVIEWS, "--url", server.url, "--template", TEMPLATE)
        assert done.returncode == 0, done.stderr
        frame = pd.read_parquet(tmp_path / "results/reviews/results.parquet")
        source = pd.read_csv(REVIEWS)
        assert frame["id"].tolist() == source["id"].tolist()
        assert frame["text"].tolist() == source["text"].tolist()
        assert frame["product"].tolist() == source["product"].tolist()
        assert {seen.text for seen in server.requests} == {f"Translate into Korean: {text}" for text in source["text"]}
        for text, content in zip(source["text"], frame["content"], strict=True):
            assert digest(f"Translate into Korean: {text}") in content

    def test_the_format_of_the_file_makes_no_difference(self, server: OpenAIServer, tmp_path: Path) -> None:
        source = pd.read_csv(REVIEWS)
        source.assign(at=pd.Timestamp("2024-05-01 12:30", tz="Asia/Seoul")).to_parquet(tmp_path / "a.parquet")
        (tmp_path / "b.csv.gz").write_bytes(gzip.compress(REVIEWS.read_bytes()))
        source.to_json(tmp_path / "c.jsonl.gz", orient="records", lines=True, force_ascii=False)
        for name in ("a.parquet", "b.csv.gz", "c.jsonl.gz"):
            done = run(tmp_path, "-i", name, "--url", server.url, "--prompt-column", "text", "--output", "out")
            assert done.returncode == 0, done.stderr
            if name == "a.parquet":
                assert pd.read_parquet(tmp_path / "out/results.parquet")["at"][0].startswith("2024-05-01 03:30:00")
        assert len(server.requests) == len(source), "the same requests are not sent again"

    @pytest.mark.parametrize(
        ("flags", "code", "words"),
        [
            (("--template", "no column"), 2, "names no column. Write {name}"),
            (("--template", "{"), 2, "'{' at character 1 names no column"),
            (("--prompt-column", "a{b"), 2, "a name with braces cannot be used"),
            (("--prompt-column", "title"), 2, "line 2: no column 'title'; the row has: id, product, text"),
            (("--prompt-column", "text", "--template", "{text}"), 2, "not allowed with argument"),
            ((), 2, 'neither (fields: ["id","product","text"]); --prompt-column NAME takes'),
            (("--prompt-column", "text", "--gpus", "-1"), 2, "--gpus must be at least 0, found -1"),
        ],
    )
    def test_what_cannot_be_used_is_a_usage_error(
        self, server: OpenAIServer, tmp_path: Path, flags: tuple[str, ...], code: int, words: str
    ) -> None:
        done = run(tmp_path, "--prompts", REVIEWS, "--url", server.url, *flags)
        assert done.returncode == code
        assert words in error_lines(done)[-1]
        assert server.requests == []


class TestDryRun:
    """What is told before anything is sent."""

    def test_nothing_is_sent_or_written(self, server: OpenAIServer, tmp_path: Path) -> None:
        write(tmp_path / "p.jsonl", [*batch_rows(3), {"prompt": ""}])
        done = run(tmp_path, "-i", "p.jsonl", "-o", "out.jsonl", "--url", server.url, "--dry-run")
        assert done.returncode == 0, done.stderr
        assert "4 rows in p.jsonl, 3 to send" in done.stdout
        assert "takes 131,072 tokens" in done.stdout
        assert done.stderr == ""
        assert server.requests == []
        assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]

    def test_an_earlier_run_tells_how_long_it_will_take(self, server: OpenAIServer, tmp_path: Path) -> None:
        server.latency_s = 0.3
        arguments = ("--prompts", REVIEWS, "--template", TEMPLATE, "--gpus", "8")
        assert run(tmp_path, *arguments, "--url", server.url).returncode == 0
        for flags in ((), ("--lengths-from", tmp_path / "results/reviews/results.parquet", "--output", "other")):
            done = run(tmp_path, *arguments, *flags, "--dry-run")
            assert done.returncode == 0
            assert "GPU hours, at" in done.stdout
            assert "results/reviews" in done.stdout

    @pytest.mark.parametrize("module", ["clients.batch", "pipelines.run"])
    def test_an_input_that_cannot_be_sent_is_a_usage_error(self, tmp_path: Path, module: str) -> None:
        write(tmp_path / "p.jsonl", [{"question": "a"}])
        done = run(tmp_path, "--prompts", "p.jsonl", "--dry-run", module=module)
        assert done.returncode == 2
        (line,) = error_lines(done)
        assert "no row of p.jsonl can be sent" in line

    def test_the_pipelines_command_has_it_too(self, tmp_path: Path) -> None:
        done = run(tmp_path, "--prompts", REVIEWS, "--template", TEMPLATE, "--dry-run", module="pipelines.run")
        assert done.returncode == 0, done.stderr
        assert "at most 512 tokens" in done.stdout
        assert list(tmp_path.iterdir()) == []


class TestBatchOutput:
    """What a user of `vllm run-batch` types."""

    def test_the_answers_are_written_as_openai_batch_lines(self, server: OpenAIServer, tmp_path: Path) -> None:
        rows = batch_rows(4)
        rows[2]["body"]["max_tokens"] = 1_000_000
        write(tmp_path / "in.jsonl", [*rows, {"custom_id": "bad", "body": {}}])
        arguments = ("-i", "in.jsonl", "-o", "out.jsonl", "--url", server.url, "--model", MODEL)
        done = run(tmp_path, *arguments, "--max-error-rate", "0.5")
        assert done.returncode == 0, done.stderr
        assert "Batch     out.jsonl" in done.stdout
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
        assert [line["custom_id"] for line in lines] == ["c0", "c1", "c2", "c3", "bad"]
        for at in (0, 1, 3):
            message = lines[at]["response"]["body"]["choices"][0]["message"]
            assert digest(f"question {at}") in message["content"]
            assert (lines[at]["response"]["status_code"], lines[at]["error"]) == (200, None)
        assert (lines[2]["response"]["status_code"], lines[2]["error"]["code"]) == (400, "http_400")
        assert (lines[4]["response"], lines[4]["error"]["code"]) == (None, "wrong_type")
        assert (tmp_path / "out.run/results.parquet").exists()
        sent = len(server.requests)
        assert run(tmp_path, *arguments, "--max-error-rate", "0.5", "--raw-response").returncode == 0
        assert len(server.requests) == sent, "the same command again sends nothing"

    def test_raw_answers_are_the_bodies(self, server: OpenAIServer, tmp_path: Path) -> None:
        write(tmp_path / "in.jsonl", batch_rows(1))
        arguments = ("-i", "in.jsonl", "-o", "out", "--output", "kept", "--url", server.url)
        assert run(tmp_path, *arguments, "--raw-response").returncode == 0
        (line,) = [json.loads(line) for line in (tmp_path / "out").read_text("utf-8").splitlines()]
        assert line["response"]["body"]["id"] == line["response"]["request_id"]
        assert not line["response"]["body"]["id"].endswith(line["id"].removeprefix("batch_req_"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "kept", "out"]

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            ("in.jsonl", "is the file of the prompts"),
            (".", "is a folder"),
            ("nowhere/out.jsonl", "there is no folder nowhere"),
        ],
    )
    def test_a_file_that_cannot_be_written_is_told_before_anything_is_sent(
        self, server: OpenAIServer, tmp_path: Path, target: str, words: str
    ) -> None:
        write(tmp_path / "in.jsonl", batch_rows(1))
        done = run(tmp_path, "-i", "in.jsonl", "-o", target, "--url", server.url)
        assert done.returncode == 2
        assert words in error_lines(done)[0]
        assert server.requests == []

    @pytest.mark.slow
    def test_the_pipeline_writes_them_too(self, server: OpenAIServer, tmp_path: Path) -> None:
        arguments = ("-i", REVIEWS, "-o", "out.jsonl", "--template", TEMPLATE, "--url", server.url, "--shards", "2")
        done = run(tmp_path, *arguments, module="pipelines.run")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
        assert [line["custom_id"] for line in lines] == ["r-1", "r-2", "r-3", "r-4"]
        assert all(seen.text.startswith("Translate into Korean: ") for seen in server.requests)


def test_an_endpoint_is_needed_to_send_anything(tmp_path: Path) -> None:
    done = run(tmp_path, "--prompts", REVIEWS, "--prompt-column", "text")
    assert done.returncode == 2
    assert "the following arguments are required: --url" in done.stderr
