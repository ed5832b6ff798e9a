"""What only a real API server can tell. Nothing but an InferenceService of the test's own is made, and it is deleted.

    KLLM_TEST_CLUSTER=~/.kube/config KLLM_TEST_NAMESPACE=ml python -m pytest tests/cluster

The cluster needs KServe's CRDs; GPUs and KServe's controller are not needed.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.serving import lease
from clients.serving.cluster import Cluster
from clients.serving.deploy import deploy
from clients.serving.kinds import KINDS
from clients.serving.manifest import inference_service, metrics_service
from clients.serving.release import release
from clients.serving.spec import PROFILES, ServingSpec
from clients.serving.sweep import sweep

ROOT = Path(__file__).resolve().parents[2]
KUBECONFIG = os.environ.get("KLLM_TEST_CLUSTER", "")

pytestmark = pytest.mark.skipif(not KUBECONFIG, reason="KLLM_TEST_CLUSTER names no kubeconfig")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster.connect(kubeconfig=KUBECONFIG, namespace=os.environ.get("KLLM_TEST_NAMESPACE", "")) as connected:
        yield connected


def documents() -> list[dict[str, Any]]:
    files = [*sorted((ROOT / "kserve").rglob("*.yaml")), *sorted((ROOT / "ray-option").rglob("*.yaml"))]
    return [each for path in files for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


@pytest.mark.parametrize("document", documents(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_each_manifest_is_accepted(cluster: Cluster, document: dict[str, Any]) -> None:
    kind = document["kind"]
    if kind not in KINDS:
        pytest.skip(f"{kind} is applied by people only")
    if KINDS[kind].brought_by and not installed(cluster, kind):
        pytest.skip(f"{KINDS[kind].brought_by} is not installed")
    cluster.apply(kind, document, force=True, dry_run=True)


def installed(cluster: Cluster, kind: str) -> bool:
    return cluster.get("CustomResourceDefinition", f"{KINDS[kind].plural}.{KINDS[kind].group}") is not None


@pytest.mark.parametrize("profile", [*PROFILES])
def test_what_is_deployed_is_accepted(cluster: Cluster, profile: str) -> None:
    spec = ServingSpec(profile=profile, name=f"kllm-test-{uuid.uuid4().hex[:8]}")
    cluster.apply("InferenceService", inference_service(spec), dry_run=True)
    cluster.apply("Service", metrics_service(spec), dry_run=True)


def test_a_service_is_deployed_held_and_released(cluster: Cluster) -> None:
    run = str(uuid.uuid4())
    spec = ServingSpec(name=lease.name_for_run(run), hf_secret="", model_cache="")
    try:
        made = deploy(cluster, spec, run=run, after_run="delete", lease_s=600.0)
        assert deploy(cluster, spec, run=run, after_run="delete", lease_s=600.0) == made
        found = cluster.get("InferenceService", spec.name)
        assert found is not None
        assert [each.run for each in lease.holds(found)] == [run]
        assert spec.name in [each.name for each in sweep(cluster, dry_run=True) if each.action == "in_use"]
        assert release(cluster, spec.name, run=str(uuid.uuid4())).action == "absent"
    finally:
        assert release(cluster, spec.name, run=run).action == "deleted"
    assert cluster.get("InferenceService", spec.name) is None
