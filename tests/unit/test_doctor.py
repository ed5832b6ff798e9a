"""The checks of a cluster, each with its mend, against an API server on a socket."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.kubernetes import FakeCluster, KubernetesServer, gpu_node

ROOT = Path(__file__).resolve().parents[2]


def doctor(kubeconfig: Path | str, *flags: str, **environment: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and every check by its name."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.doctor", "--json", *flags],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "KUBECONFIG": str(kubeconfig), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def account(server: KubernetesServer) -> None:
    metadata = {"name": "default-editor", "namespace": "ml"}
    server.put({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})


@pytest.fixture
def fake() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        account(cluster.server)
        yield cluster


@pytest.fixture
def kubeconfig(fake: FakeCluster, tmp_path: Path) -> Path:
    return fake.kubeconfig(tmp_path / "config")


def test_a_cluster_that_has_everything_passes(kubeconfig: Path) -> None:
    status, checks = doctor(kubeconfig)
    assert {name: check for name, check in checks.items() if check["status"] == "failed"} == {}
    assert status == 0
    assert "16 free" in checks["GPU nodes"]["found"]


def test_gpus_that_are_too_few_or_of_another_kind_are_counted(tmp_path: Path) -> None:
    with FakeCluster(nodes=[gpu_node("gpu-0", gpus=4)]) as fake:
        account(fake.server)
        status, checks = doctor(fake.kubeconfig(tmp_path / "config"))
        assert status == 1
        assert "failed" in (checks["GPU nodes"]["status"], checks["Room for the model"]["status"])
        _, other = doctor(fake.kubeconfig(tmp_path / "config"), "--gpu-product", "NVIDIA-B200")
        assert any(check["status"] == "failed" for check in other.values())


@pytest.mark.parametrize("token", ["", "REPLACE_WITH_YOUR_TOKEN"])
def test_a_token_that_is_missing_is_mended_by_a_command(fake: FakeCluster, kubeconfig: Path, token: str) -> None:
    if token:
        fake.server.change("Secret", "hf-secret", {"data": {"HF_TOKEN": "UkVQTEFDRV9XSVRIX1lPVVJfVE9LRU4="}})
    else:
        fake.server.remove("Secret", "hf-secret")
    status, checks = doctor(kubeconfig)
    assert status == 1
    assert checks["Hugging Face token"]["status"] == "failed"
    assert "kubectl" in checks["Hugging Face token"]["mend"]


def test_without_kserve_it_fails_with_the_mend(tmp_path: Path) -> None:
    with FakeCluster(installed=()) as fake:
        status, checks = doctor(fake.kubeconfig(tmp_path / "config"))
    assert status == 1
    assert checks["KServe"]["status"] == "failed"
    assert checks["KServe"]["mend"]


def test_what_the_account_may_not_see_is_unknown_and_stops_nothing(fake: FakeCluster, tmp_path: Path) -> None:
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"], "namespaces": ["ml"]}
    fake.server.grant("poor", [rule])
    _, checks = doctor(fake.kubeconfig(tmp_path / "poor", token="poor"))
    assert checks["GPU nodes"]["status"] == "unknown"
    assert len(checks) > 10


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_one_failed_line(tmp_path: Path) -> None:
    with KubernetesServer() as server:
        kubeconfig = server.kubeconfig(tmp_path / "config")
    status, checks = doctor(kubeconfig)
    assert status == 1
    assert [check["status"] for check in checks.values()].count("failed") == 1


def test_keys_are_never_shown(kubeconfig: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.doctor"],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(kubeconfig),
            "LANGFUSE_PUBLIC_KEY": "pk-lf-public",
            "LANGFUSE_SECRET_KEY": "sk-lf-very-secret",
            "LANGFUSE_BASE_URL": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "very-secret" not in done.stdout + done.stderr
    assert "Langfuse" in done.stdout
