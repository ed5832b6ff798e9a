"""The results as an output file of the OpenAI batch format, which `vllm run-batch` writes too."""

import hashlib
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clients.errors import StorageError
from clients.records import Outcome
from clients.results.schema import COLUMNS
from clients.storage import refusals

#: Rows in memory at once; an answer kept as the server sent it may be large.
_BATCH_ROWS = 512

#: Outcomes of rows for which there is no answer.
_UNANSWERED = (Outcome.REJECTED, Outcome.FAILED, Outcome.INVALID)

_STARTED = COLUMNS.get_field_index("started_at")

_STATUS = re.compile(r"http_(\d{3})")


def write_batch_output(results: Path, target: Path) -> int:
    """Write one line a row, in input order, replacing what was there only once the new file stands.

    Args:
        results: A results.parquet.
        target: JSONL file to write.

    Returns:
        The number of lines.

    Raises:
        StorageError: the results cannot be read or the file not be written.
    """
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    lines = 0
    try:
        with refusals("write", target), aside.open("wb") as stream:
            for row in _rows(results):
                stream.write(batch_line(row))
                lines += 1
        with refusals("write", target):
            aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return lines


def _rows(results: Path) -> Iterator[dict[str, Any]]:
    """The result rows, with `started_at` in Unix seconds."""
    try:
        with pq.ParquetFile(results, buffer_size=1 << 18, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=COLUMNS.names, use_threads=False):
                started = pc.floor(pc.divide(batch["started_at"].cast(pa.int64()).cast(pa.float64()), 1e6))
                yield from batch.set_column(_STARTED, "started_at", started).to_pylist()
    except pa.ArrowException as error:
        raise StorageError(f"cannot read {results}: {error}. Run the same command again.") from error


def batch_line(row: dict[str, Any]) -> bytes:
    """One result row as a line of the format.

    A row (of `_rows`) without an answer has an `error`, and a `response` only where the server gave a status.
    """
    name = hashlib.blake2b(f"{row['row']}:{row['request_hash']}".encode(), digest_size=16).hexdigest()
    line: dict[str, Any] = {"id": f"batch_req_{name}", "custom_id": row["id"], "response": None, "error": None}
    if row["outcome"] in _UNANSWERED:
        line["error"] = {"code": row["error_code"] or row["outcome"], "message": row["error_message"] or ""}
        if status := _STATUS.fullmatch(row["error_code"] or ""):
            line["response"] = _response(int(status[1]), name, {"error": line["error"]})
    else:
        line["response"] = _response(200, name, _kept(row) or _rebuilt(row, name))
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _response(status: int, name: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": str(body.get("id") or name), "body": body}


def _kept(row: dict[str, Any]) -> dict[str, Any] | None:
    """The answer as the server sent it, where it was kept."""
    try:
        body = orjson.loads(row["raw_response"] or b"null")
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _rebuilt(row: dict[str, Any], name: str) -> dict[str, Any]:
    """A chat completion made of what the columns hold."""
    message: dict[str, Any] = {"role": "assistant", "content": row["content"]}
    if row["reasoning"] is not None:
        message["reasoning"] = row["reasoning"]
    if row["tool_calls"] is not None:
        message["tool_calls"] = orjson.loads(row["tool_calls"])
    if row["outcome"] == Outcome.FILTERED and row["content"] is None:
        message["refusal"] = row["error_message"]
    body = {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": int(row["started_at"] or 0),
        "model": row["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": row["finish_reason"]}],
    }
    if row["prompt_tokens"] is not None or row["completion_tokens"] is not None:
        body["usage"] = _usage(row["prompt_tokens"] or 0, row["completion_tokens"] or 0, row["cached_tokens"])
    return body


def _usage(prompt: int, completion: int, cached: int | None) -> dict[str, Any]:
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        **details,
    }
