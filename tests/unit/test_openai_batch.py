import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clients.errors import StorageError
from clients.records import Outcome
from clients.results.openai_batch import write_batch_output
from clients.results.schema import COLUMNS


def row(number: int, outcome: Outcome = Outcome.OK, **fields: Any) -> dict[str, Any]:
    answer = {
        "content": "안녕\n",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "started_at": dt.datetime(2024, 5, 1, tzinfo=dt.UTC),
        "model": "m",
    }
    base = {"row": number, "id": f"row-{number}", "request_hash": f"{number:032x}", "outcome": outcome, "attempts": 1}
    return {**base, **(answer if outcome is Outcome.OK else {}), **fields}


def written(folder: Path, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    pq.write_table(pa.Table.from_pylist(list(rows), schema=COLUMNS), folder / "results.parquet")
    target = folder / "out.jsonl"
    assert write_batch_output(folder / "results.parquet", target) == len(rows)
    data = target.read_bytes()
    assert data.count(b"\n") == len(rows)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    return [json.loads(line) for line in data.splitlines()]


def test_an_answer_is_a_chat_completion_rebuilt_from_its_columns(tmp_path: Path) -> None:
    (line,) = written(tmp_path, row(0, id="mine", reasoning="hm", cached_tokens=2))
    assert set(line) == {"id", "custom_id", "response", "error"}
    assert line["id"].startswith("batch_req_")
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("mine", None, 200)
    body = line["response"]["body"]
    assert line["response"]["request_id"] == body["id"]
    assert body == {
        "id": body["id"],
        "object": "chat.completion",
        "created": 1714521600,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "안녕\n", "reasoning": "hm"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }


def test_an_answer_that_was_kept_is_written_as_it_came_on_one_line(tmp_path: Path) -> None:
    raw = {"id": "chatcmpl-7", "choices": [{"index": 0}, {"index": 1}], "extra": "줄\n바꿈"}
    kept, broken = written(
        tmp_path, row(0, raw_response=json.dumps(raw, indent=2)), row(1, raw_response='{"id": "cut off')
    )
    assert kept["response"] == {"status_code": 200, "request_id": "chatcmpl-7", "body": raw}
    assert broken["response"]["body"]["choices"][0]["message"]["content"] == "안녕\n"


def test_calls_of_tools_and_refusals_stand_in_the_message(tmp_path: Path) -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    refusal = {"finish_reason": "stop", "error_code": "filtered", "error_message": "I cannot."}
    called, refused = written(
        tmp_path,
        row(0, content=None, tool_calls=orjson.dumps(calls).decode(), finish_reason="tool_calls"),
        row(1, Outcome.FILTERED, **refusal),
    )
    message = called["response"]["body"]["choices"][0]["message"]
    assert message == {"role": "assistant", "content": None, "tool_calls": calls}
    assert refused["error"] is None
    assert refused["response"]["body"]["choices"][0]["message"]["refusal"] == "I cannot."
    assert "usage" not in refused["response"]["body"]


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.FAILED, Outcome.INVALID])
def test_a_row_without_an_answer_has_an_error(tmp_path: Path, outcome: Outcome) -> None:
    told, silent, bare = written(
        tmp_path,
        row(0, outcome, error_code="http_400", error_message="too long"),
        row(1, outcome, error_code="timeout", error_message="no answer"),
        row(2, outcome),
    )
    assert told["error"] == {"code": "http_400", "message": "too long"}
    assert (told["response"]["status_code"], told["response"]["body"]) == (400, {"error": told["error"]})
    assert (silent["response"], silent["error"]) == (None, {"code": "timeout", "message": "no answer"})
    assert bare["error"] == {"code": outcome.value, "message": ""}


@pytest.mark.parametrize("outcome", [Outcome.TRUNCATED, Outcome.TRUNCATED_IN_REASONING, Outcome.SCHEMA_INVALID])
def test_an_answer_that_is_not_ok_is_an_answer(tmp_path: Path, outcome: Outcome) -> None:
    (line,) = written(tmp_path, row(0, outcome, content="a", finish_reason="length", error_code="length"))
    assert line["error"] is None
    assert line["response"]["body"]["choices"][0]["finish_reason"] == "length"


def test_the_same_results_give_the_same_file_and_equal_requests_lines_of_their_own(tmp_path: Path) -> None:
    rows = [row(at, request_hash="0" * 32) for at in range(3)]
    first = written(tmp_path, *rows)
    assert len({line["id"] for line in first}) == 3
    assert written(tmp_path, *rows) == first


def test_what_cannot_be_read_or_written_is_told_and_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "results.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "out.jsonl").write_text("old")
    with pytest.raises(StorageError, match=r"cannot read .*results.parquet"):
        write_batch_output(tmp_path / "results.parquet", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "old"
    with pytest.raises(StorageError, match="cannot write"):
        write_batch_output(tmp_path / "results.parquet", tmp_path / "nowhere/out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "results.parquet"]


@pytest.mark.slow
def test_large_results_are_written_in_flat_memory(tmp_path: Path) -> None:
    text = os.urandom(2500).hex()
    with pq.ParquetWriter(tmp_path / "results.parquet", COLUMNS) as writer:
        for start in range(0, 40_000, 4000):
            rows = [row(at, content=f"{at}{text}") for at in range(start, start + 4000)]
            writer.write_table(pa.Table.from_pylist(rows, schema=COLUMNS))
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from clients.results.openai_batch import write_batch_output\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_batch_output(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "results.parquet", tmp_path / "out.jsonl"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert int(done.stdout) < 96, done.stdout
    assert (tmp_path / "out.jsonl").stat().st_size > 200_000_000
