"""What only vLLM itself can tell: its errors, its metrics, its structured answers, as the client takes them.

    KLLM_TEST_VLLM=http://localhost:8000/v1 python -m pytest tests/cluster

Any chat model does; the answers need not make sense. A machine without a GPU can serve a tiny one with random weights
(`vllm serve FOLDER --load-format dummy`). Some 400 short requests are sent.
"""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
URL = os.environ.get("KLLM_TEST_VLLM", "")

pytestmark = pytest.mark.skipif(not URL, reason="KLLM_TEST_VLLM names no endpoint")

ONE_NUMBER = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


def batch(folder: Path, rows: list[dict[str, Any]], *flags: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the results, and the events on the way."""
    import pyarrow.parquet as pq

    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [sys.executable, "-m", "clients.batch", "--prompts", str(folder / "prompts.jsonl"), "--url", URL]
    command += ["--output", str(folder / "results"), "--max-error-rate", "1", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return pq.read_table(folder / "results" / "results.parquet").to_pylist(), events


def context_length() -> int:
    with urllib.request.urlopen(f"{URL}/models", timeout=30) as answer:  # noqa: S310 - whoever runs the tests names it
        return int(json.load(answer)["data"][0]["max_model_len"])


def test_each_row_ends_with_the_outcome_that_the_server_means(tmp_path: Path) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "one", "schema": ONE_NUMBER}}
    rows = [
        {"id": "plain", "prompt": "hello"},
        {"id": "structured", "prompt": "one number", "response_format": asked},
        {"id": "two choices", "prompt": "hello", "n": 2},
        {"id": "too long", "prompt": "word " * (context_length() + 100)},
        {"id": "too much", "prompt": "hello", "max_tokens": context_length() + 1},
        {"id": "another model", "prompt": "hello", "model": "no/such-model"},
        {"id": "no image model", "messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {}}]}]},
    ]
    found, _ = batch(tmp_path, rows, "--max-tokens", "64")
    by_id = {row["id"]: row for row in found}
    answered = {"ok", "truncated", "truncated_in_reasoning", "empty"}
    assert by_id["plain"]["outcome"] in answered
    assert by_id["plain"]["prompt_tokens"] > 0
    assert len(json.loads(by_id["two choices"]["raw_response"])["choices"]) == 2
    for row in (by_id["too long"], by_id["too much"], by_id["no image model"]):
        assert (row["outcome"], row["error_code"], row["attempts"]) == ("rejected", "http_400", 1)
    assert "maximum context length" in by_id["too long"]["error_message"]
    assert (by_id["another model"]["outcome"], by_id["another model"]["error_code"]) == ("failed", "http_404")
    structured = by_id["structured"]
    assert structured["outcome"] in answered - {"empty"}
    if structured["outcome"] == "ok":
        assert 0 <= json.loads(structured["content"])["n"] <= 9


def test_the_limit_follows_what_the_servers_metrics_say(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number} " * 20, "min_tokens": 40, "max_tokens": 40} for number in range(400)]
    found, events = batch(tmp_path, rows)
    assert all(row["completion_tokens"] == 40 for row in found)
    reasons = [event["reason"] for event in events if event["event"] == "limiter.changed"]
    assert any(" run, " in reason and " wait" in reason for reason in reasons), reasons
