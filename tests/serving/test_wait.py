"""Waiting, against a whole cluster whose pods start, or fail to, as real ones do."""

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.errors import ServingError
from clients.fake_vllm.process import FakeServer
from clients.serving import lease
from clients.serving.cluster import Cluster
from clients.serving.deployed import Deployed
from clients.serving.release import release
from clients.serving.spec import ServingSpec
from clients.serving.wait import Serving, wait_until_ready
from tests.servers import crds
from tests.servers.kubernetes import FakeCluster, gpu_node
from tests.serving.conftest import impatient
from tests.serving.world import RUN, deployed

NAME = ServingSpec().name


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """A model server that answers; its address is what KServe calls the service's."""
    with FakeServer("--model", "qwen3-30b-fp8") as server:
        yield server.url.removesuffix("/v1")


@pytest.fixture
def events() -> Iterator[list[dict[str, Any]]]:
    """What is told while the test runs."""
    found: list[dict[str, Any]] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(record.getMessage()))

    logger = logging.getLogger("clients")
    before, level = logger.handlers[:], logger.level
    logger.handlers[:] = [Keeper()]
    logger.setLevel(logging.INFO)
    yield found
    logger.handlers[:] = before
    logger.setLevel(level)


def schema() -> dict[str, Any]:
    """The real schema of InferenceService where its CRD is at hand; the server is less strict without."""
    return {"validator": crds.problems} if crds.crd_folder() else {}


def started(tmp_path: Path, cluster: FakeCluster) -> Cluster:
    return impatient(str(cluster.kubeconfig(tmp_path / "config")))


def waited(cluster: Cluster, service: Deployed, timeout_s: float = 30.0) -> Serving:
    return wait_until_ready(cluster, service, ready_timeout_s=timeout_s, lease_s=3600.0, api_key=None)


class TestReady:
    def test_all_replicas_serve_and_one_has_answered(
        self, tmp_path: Path, model: str, events: list[dict[str, Any]]
    ) -> None:
        with FakeCluster(speed=200, address=model, **schema()) as fake, started(tmp_path, fake) as cluster:
            serving = waited(cluster, deployed(cluster))
        assert serving.url == model
        assert sorted(gpus for gpus, _ in serving.gpus_held_since) == [8, 8]
        assert [event["event"] for event in events][-1] == "service.ready"
        stages = [event["stage"] for event in events if event["event"] == "service.progress"]
        assert stages

    @pytest.mark.slow
    def test_ready_with_one_of_two_replicas_is_not_enough(self, tmp_path: Path, model: str) -> None:
        with (
            FakeCluster(scenario="late_replica", speed=100, address=model) as fake,
            started(tmp_path, fake) as cluster,
        ):
            serving = waited(cluster, deployed(cluster))
            ready = [
                pod
                for pod in fake.server.find("Pod", "ml")
                for condition in pod["status"]["conditions"]
                if condition["type"] == "Ready" and condition["status"] == "True"
            ]
        assert len(ready) == 2
        assert len(serving.gpus_held_since) == 2

    @pytest.mark.slow
    def test_a_service_whose_model_has_another_name_is_not_ready(self, tmp_path: Path, model: str) -> None:
        with FakeCluster(speed=200, address=model) as fake, started(tmp_path, fake) as cluster:
            service = deployed(cluster, ServingSpec(served_model_name="another"))
            with pytest.raises(ServingError, match="is not ready after 4 s"):
                waited(cluster, service, 4.0)

    def test_a_wait_that_starts_again_ends_when_the_first_would_have(self, tmp_path: Path, model: str) -> None:
        with FakeCluster(speed=200, address=model) as fake, started(tmp_path, fake) as cluster:
            service = deployed(cluster, ServingSpec(served_model_name="another"))
            earlier = dataclasses.replace(service, at=time.time() - 3600)
            begun = time.monotonic()
            with pytest.raises(ServingError, match="is not ready after 3590 s"):
                waited(cluster, Deployed.from_json(earlier.to_json()), 3590.0)
            assert time.monotonic() - begun < 20

    @pytest.mark.slow
    def test_an_api_server_that_restarts_in_the_middle(
        self, tmp_path: Path, model: str, events: list[dict[str, Any]]
    ) -> None:
        with (
            FakeCluster(speed=50, address=model) as fake,
            impatient(str(fake.kubeconfig(tmp_path / "config")), 0.5) as cluster,
        ):
            service = deployed(cluster)
            threading.Timer(0.5, fake.server.stop).start()
            threading.Timer(4.0, fake.server.start).start()
            assert waited(cluster, service).url == model
        assert "api.unavailable" in [event["event"] for event in events]


@pytest.mark.parametrize(
    ("scenario", "told"),
    [
        ("bad_argument", r"unrecognized arguments"),
        pytest.param("hf_gated", r"Hugging Face|hf_secret|HF_TOKEN", marks=pytest.mark.slow),
        pytest.param("oom_killed", r"memory", marks=pytest.mark.slow),
        pytest.param("gpu_memory", r"--gpu-memory-utilization|max_model_len|--max-model-len", marks=pytest.mark.slow),
        pytest.param("block_shape", r"expert", marks=pytest.mark.slow),
        pytest.param("no_space", r"space|full", marks=pytest.mark.slow),
    ],
)
def test_what_can_never_work_ends_the_wait_with_its_cause(
    tmp_path: Path, events: list[dict[str, Any]], scenario: str, told: str
) -> None:
    with FakeCluster(scenario=scenario, speed=200) as fake, started(tmp_path, fake) as cluster:
        service = deployed(cluster)
        began = time.monotonic()
        with pytest.raises(ServingError, match=told) as failed:
            waited(cluster, service, 60.0)
        assert time.monotonic() - began < 30
        assert "\n" not in str(failed.value)
        assert release(cluster, NAME, run=RUN).action == "deleted"
        assert fake.server.find("Pod", "ml") == []
    assert "service.waiting" in [event["event"] for event in events]


def test_busy_gpus_are_waited_for_by_name_to_the_deadline(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    late = pytest.raises(ServingError, match=r"not ready after 3 s.*nvidia\.com/gpu")
    with FakeCluster(scenario="gpus_busy", speed=200) as fake, started(tmp_path, fake) as cluster, late:
        waited(cluster, deployed(cluster), 3.0)
    causes = [event["cause"] for event in events if event["event"] == "service.waiting"]
    assert causes
    assert set(causes) == {"unschedulable"}


def test_a_service_that_is_deleted_meanwhile_ends_the_wait(tmp_path: Path) -> None:
    with FakeCluster(scenario="loading", speed=100) as fake, started(tmp_path, fake) as cluster:
        service = deployed(cluster)
        threading.Timer(1.0, lambda: fake.server.remove("InferenceService", NAME)).start()
        with pytest.raises(ServingError, match=r"was deleted|is being deleted|on its way out"):
            waited(cluster, service, 20.0)


@pytest.mark.slow
def test_the_hold_is_renewed_while_it_waits(tmp_path: Path) -> None:
    with FakeCluster(scenario="loading", speed=100) as fake, started(tmp_path, fake) as cluster:
        service = deployed(cluster, lease_s=4.0)
        found = cluster.get("InferenceService", NAME)
        assert found is not None
        (before,) = lease.holds(found)
        with pytest.raises(ServingError, match="not ready"):
            wait_until_ready(cluster, service, ready_timeout_s=4.0, lease_s=4.0, api_key=None)
        found = cluster.get("InferenceService", NAME)
        assert found is not None
        (after,) = lease.holds(found)
    assert after.until > before.until


def test_an_update_while_all_gpus_are_taken_goes_through(tmp_path: Path, model: str) -> None:
    nodes = [gpu_node("gpu-0"), gpu_node("gpu-1")]
    with FakeCluster(speed=200, address=model, nodes=nodes) as fake, started(tmp_path, fake) as cluster:
        waited(cluster, deployed(cluster))
        changed = deployed(cluster, ServingSpec(vllm_args="--max-num-seqs 256"))
        serving = waited(cluster, changed)
        pods = [pod for pod in fake.server.find("Pod", "ml") if not pod["metadata"].get("deletionTimestamp")]
        assert len(serving.gpus_held_since) == 2
        assert all("--max-num-seqs" in " ".join(pod["spec"]["containers"][0]["args"]) for pod in pods)
