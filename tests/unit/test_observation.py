"""Where a shard's traces are kept, and how they are named, by where its state lies."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clients.errors import EndpointError
from clients.prompts.check import check_prompts
from clients.prompts.plan import Shard
from clients.prompts.rows import JobDefaults
from clients.results.merge import merge_parts
from clients.steps.observation import spool_of
from clients.steps.shard_runs import run_to_file
from tests.servers.openai_server import OpenAIServer
from tests.servers.otlp_sink import OtlpSink
from tests.unit.tracing_rows import events


def shard_of(folder: Path, url: str = "http://vllm/v1", rows: int = 20, **changes: Any) -> Shard:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "question {row}"}}\n' for row in range(rows)))
    defaults = JobDefaults(model="qwen3-30b-fp8")
    ((part, found),) = check_prompts(str(prompts), defaults).cut(1)
    shard = Shard(
        shard=0, of=1, prompts=str(prompts), part=part, rows=found, defaults=defaults, carried={}, plan="p",
        base_url=url, state=f"{folder}/state", concurrency=0,
    )  # fmt: skip
    return dataclasses.replace(shard, **changes)


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ("s3://bucket/jobs/mine", "s3://bucket/jobs/mine"),
        ("/data/2026", "/data/2026"),
        ("/home/me/results/prompts/state/0002", "/home/me/results/prompts/state"),
        ("minio://mlpipeline/v2/artifacts/batch/state/0123456789abcdef/0007", "minio://mlpipeline/v2/artifacts/batch/state"),
    ],
)  # fmt: skip
def test_traces_that_wait_outlive_a_state_that_is_replaced(tmp_path: Path, state: str, place: str) -> None:
    assert spool_of(shard_of(tmp_path, state=state, shard=12)) == f"{place}/traces/00012"


def run(shard: Shard, folder: Path) -> tuple[Any, Any]:
    """The summary, and the trace ids of the rows."""
    run_to_file(shard, folder / "part.parquet")
    summary = merge_parts([folder / "part.parquet"], folder / "results.parquet", folder / "rejects.parquet")
    return summary, pq.read_table(folder / "results.parquet")["trace_id"].to_pylist()


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Any:
    with OtlpSink() as sink:
        for name, value in sink.environment().items():
            monkeypatch.setenv(name, value)
        yield sink


def test_a_run_of_kubeflow_is_named_and_linked_in_its_traces(keys: OtlpSink, tmp_path: Path) -> None:
    url = "https://kubeflow.example/_/pipeline/?ns=ml#/runs/details/{run}"
    with OpenAIServer().in_thread() as server:
        shard = shard_of(tmp_path, server.url, run="5b1f-77", options={"run_url": url})
        summary, _ = run(shard, tmp_path)
    assert summary["traces"]["exported"] == 20
    attributes = keys.rows()[0].attributes
    assert attributes["session.id"] == "5b1f-77/00000"
    assert attributes["langfuse.trace.metadata.kfp_run_id"] == "5b1f-77"
    assert attributes["langfuse.trace.metadata.kfp_run_url"] == url.replace("{run}", "5b1f-77")
    assert {"run:5b1f-77", "model:qwen3-30b-fp8"} < set(attributes["langfuse.trace.tags"])


def test_without_a_state_what_langfuse_does_not_take_is_counted_as_dropped(keys: OtlpSink, tmp_path: Path) -> None:
    keys.down()
    with OpenAIServer().in_thread() as server:
        summary, ids = run(shard_of(tmp_path, server.url, state=""), tmp_path)
    assert summary["outcomes"]["ok"] == 20
    assert summary["traces"] == {"exported": 0, "spooled": 0, "dropped": 20, "sampled_out": 0, "replayed": 0}
    assert len(set(ids)) == 20
    assert summary["trace_url"] == f"{keys.url}/trace/{{trace_id}}"


def test_a_shard_that_cannot_reach_its_endpoint_still_closes_its_traces(keys: OtlpSink, tmp_path: Path) -> None:
    shard = shard_of(tmp_path, "http://127.0.0.1:9/v1", server_wait_s=0.1)
    with pytest.raises(EndpointError), events() as told:
        run_to_file(shard, tmp_path / "part.parquet")
    assert "tracing.closed" in [event["event"] for event in told]


def test_a_place_that_cannot_be_written_costs_no_row(keys: OtlpSink, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/traces").write_text("a file where the folder should be")
    with OpenAIServer().in_thread() as server:
        summary, _ = run(shard_of(tmp_path, server.url), tmp_path)
    assert summary["outcomes"]["ok"] == 20
    assert summary["traces"]["exported"] == 20
