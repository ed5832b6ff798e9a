"""Rows, settings and exporters for the tests of tracing."""

import contextlib
import datetime as dt
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clients.records import ChatRequest, ChatResult, Outcome
from clients.storage import Folder
from clients.tracing.live import LiveTracer
from clients.tracing.settings import TraceSettings
from clients.tracing.spans import Origin
from tests.servers.otlp_sink import OtlpSink

STARTED = dt.datetime(2025, 11, 25, 9, 30, 0, 123456, dt.UTC)
ORIGIN = Origin(
    run="run-7",
    shard=3,
    pipeline="batch-inference",
    model="qwen3",
    kfp_run_id="5b1f",
    kfp_run_url="https://kfp.example/#/runs/details/5b1f",
)


def settings(url: str = "http://langfuse.example", **changes: Any) -> TraceSettings:
    given = {"base_url": url, "public_key": "pk-lf-test", "secret_key": "sk-lf-test", "flush_interval_s": 0.05}
    return TraceSettings(**{**given, **changes})


def request(row: int, text: str = "", **fields: Any) -> ChatRequest:
    body = {"model": "qwen3", "messages": [{"role": "user", "content": text or f"question {row}"}], **fields}
    return ChatRequest(row, f"row-{row}", f"{row:032x}", json.dumps(body, ensure_ascii=False).encode())


def result(row: int, **fields: Any) -> ChatResult:
    given: dict[str, Any] = {
        "id": f"row-{row}",
        "outcome": Outcome.OK,
        "content": f"answer {row}",
        "finish_reason": "stop",
        "prompt_tokens": 12,
        "completion_tokens": 34,
        "attempts": 1,
        "started_at": STARTED + dt.timedelta(milliseconds=row),
        "latency_s": 1.5,
        "model": "qwen3",
        "endpoint": "http://vllm:8000/v1",
        "trace_id": ORIGIN.trace_id(row, f"{row:032x}"),
    }
    return ChatResult(row=row, request_hash=f"{row:032x}", **{**given, **fields})


@contextlib.contextmanager
def tracing(sink: OtlpSink, folder: Path, *, home: Path | None = None, **changes: Any) -> Iterator[LiveTracer]:
    """A tracer over a sink; closed at once if the test did not."""
    tracer = LiveTracer(
        settings(sink.url, **changes),
        ORIGIN,
        spool=Folder(str(folder)),
        home=None if home is None else Folder(str(home)),
    )
    try:
        yield tracer
    finally:
        tracer.close(deadline_s=0.0)


def trace(tracer: LiveTracer, rows: Iterator[int] | range | list[int], text: str = "", **fields: Any) -> None:
    """Finish and commit some rows."""
    results = []
    for row in rows:
        results.append(result(row, **fields))
        tracer.finished(request(row, text), results[-1])
    tracer.committed(results)


@contextlib.contextmanager
def events() -> Iterator[list[dict[str, Any]]]:
    """What this package tells meanwhile."""
    seen: list[dict[str, Any]] = []

    class Follower(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(json.loads(record.getMessage()))

    logger, handler = logging.getLogger("clients"), Follower()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield seen
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
