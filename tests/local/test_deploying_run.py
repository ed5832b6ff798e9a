"""The compiled pipeline, deploy to release, by Kubeflow's local runner against a cluster on a socket."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet as pq
import pytest

from clients.fake_vllm.process import FakeServer
from clients.serving.cluster import Cluster
from clients.serving.sweep import sweep
from tests.servers.kubernetes import FakeCluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    with FakeServer("--model", "qwen3-30b-fp8", "--step-base-ms", "1") as server:
        yield server.url.removesuffix("/v1")


def prompts(tmp_path: Path, rows: int = 40) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "number {row}", "max_tokens": 2000}}\n' for row in range(rows)))
    return str(path)


def started(tmp_path: Path, kubeconfig: Path, log: TextIO) -> subprocess.Popen[bytes]:
    """The runner, which ends when its standard input closes."""
    files = (ROOT / "compiled/batch_inference.yaml", tmp_path / "arguments.json", tmp_path / "artifacts")
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.local_runner", *map(str, files)],
        cwd=tmp_path,
        env={**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def ran(tmp_path: Path, kubeconfig: Path, **arguments: Any) -> tuple[int, list[dict[str, Any]]]:
    """Run the pipeline; its exit status and the events of its steps."""
    given = {
        "prompts": prompts(tmp_path),
        "output": str(tmp_path / "out"),
        "state": str(tmp_path / "state"),
        "shards": 2,
        **arguments,
    }
    (tmp_path / "arguments.json").write_text(json.dumps(given))
    with (tmp_path / "log").open("w") as log:
        process = started(tmp_path, kubeconfig, log)
        status = process.wait(110)
        process.communicate()
    lines = [line.strip() for line in (tmp_path / "log").read_text().splitlines()]
    return status, [json.loads(line) for line in lines if line.startswith('{"event"')]


def test_a_run_deploys_waits_answers_and_gives_the_gpus_back(tmp_path: Path, model: str) -> None:
    with FakeCluster(speed=200, address=model) as fake:
        status, events = ran(tmp_path, fake.kubeconfig(tmp_path / "config"))
        assert status == 0, events
        assert fake.server.find("InferenceService") == []
        assert [pod for pod in fake.server.find("Pod", "ml") if pod["status"]["phase"] == "Running"] == []
        assert fake.server.get("PersistentVolumeClaim", "model-cache") is not None
    assert pq.read_table(tmp_path / "out/results.parquet")["outcome"].to_pylist() == ["ok"] * 40
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["gpu_seconds_held"] >= summary["gpu_seconds_used"] > 0
    assert "GPU hours held" in (tmp_path / "out/report.html").read_text()
    assert [event["action"] for event in events if event["event"] == "service.released"] == ["deleted"]


@pytest.mark.slow
def test_a_run_whose_model_cannot_start_fails_with_the_cause_and_gives_the_gpus_back(tmp_path: Path) -> None:
    with FakeCluster(scenario="bad_argument", speed=200) as fake:
        status, events = ran(tmp_path, fake.kubeconfig(tmp_path / "config"))
        assert status == 1
        assert fake.server.find("InferenceService") == []
    (failure,) = [event for event in events if event["event"] == "step.failed"]
    assert failure["step"] == "wait_service"
    assert "unrecognized arguments" in failure["error"]


def test_bad_prompts_are_told_before_anything_is_deployed(tmp_path: Path) -> None:
    with FakeCluster(speed=200) as fake:
        status, events = ran(tmp_path, fake.kubeconfig(tmp_path / "config"), prompts=str(tmp_path / "absent.jsonl"))
        assert status == 1
        assert fake.server.seen("PATCH", "/inferenceservices") == []
    assert [event["step"] for event in events if event["event"] == "step.failed"] == ["check_prompts"]


@pytest.mark.slow
def test_what_a_killed_run_left_behind_is_swept(tmp_path: Path, model: str) -> None:
    """The runner and all its tasks die at once, exit handler included."""
    with FakeCluster(scenario="loading", speed=100, address=model) as fake:
        kubeconfig = fake.kubeconfig(tmp_path / "config")
        (tmp_path / "arguments.json").write_text(json.dumps({"prompts": prompts(tmp_path), "lease_hours": 0.001}))
        with (tmp_path / "log").open("w") as log:
            process = started(tmp_path, kubeconfig, log)
        fake.server.wait_for(lambda: fake.server.find("Pod", "ml"), timeout_s=60)
        os.killpg(process.pid, 9)
        process.communicate()
        (left,) = fake.server.find("InferenceService")
        with Cluster.connect(kubeconfig=str(kubeconfig)) as cluster:
            fake.server.wait_for(lambda: "deleted" in [each.action for each in sweep(cluster)], timeout_s=20)
        assert fake.server.get("InferenceService", left["metadata"]["name"]) is None
