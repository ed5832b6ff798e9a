"""Deploying: what stands before, what is made, what is reused, and whose fields are respected."""

import threading
from pathlib import Path
from typing import Any

import pytest

from clients.errors import ConflictError, ForbiddenError, MissingKindError, ServingError, SettingsError
from clients.serving import lease
from clients.serving.cluster import Cluster
from clients.serving.labels import AFTER_RUN, CREATED_BY, STOP, WOKEN_BY
from clients.serving.spec import ServingSpec
from tests.servers.kubernetes import KubernetesServer
from tests.serving.conftest import impatient
from tests.serving.world import OTHER_RUN, RUN, deployed, ready_to_deploy, run_pod, secret, workflow

NAME = ServingSpec().name


def live(server: KubernetesServer) -> dict[str, Any]:
    found = server.get("InferenceService", NAME)
    assert found is not None
    return found


class TestWhatIsMade:
    def test_the_service_carries_its_maker_its_end_and_its_holder_from_its_first_moment(
        self, server: KubernetesServer, cluster: Cluster
    ) -> None:
        ready_to_deploy(server)
        server.fail(status=403, method="PATCH", path="/inferenceservices", times=0)
        result = deployed(cluster)
        first = next(seen for seen in server.seen("PATCH", "/inferenceservices"))
        assert f'"{CREATED_BY}": "{RUN}"'.encode() in first.body
        assert f'"{AFTER_RUN}": "delete"'.encode() in first.body
        assert lease.key(RUN).encode() in first.body
        assert (result.uid, result.gpus, result.replicas, result.created) == (
            live(server)["metadata"]["uid"],
            16,
            2,
            True,
        )

    def test_the_model_cache_is_made_once_and_belongs_to_nobody(
        self, server: KubernetesServer, cluster: Cluster
    ) -> None:
        ready_to_deploy(server)
        deployed(cluster)
        claim = server.get("PersistentVolumeClaim", "model-cache")
        assert claim is not None
        assert "ownerReferences" not in claim["metadata"]
        assert claim["spec"]["resources"]["requests"]["storage"] == "3Ti"
        deployed(cluster)
        assert len(server.seen("POST", "/persistentvolumeclaims")) == 1

    def test_the_metrics_service_goes_with_the_service(self, server: KubernetesServer, cluster: Cluster) -> None:
        ready_to_deploy(server)
        uid = deployed(cluster).uid
        metrics = server.get("Service", f"{NAME}-metrics")
        assert metrics is not None
        assert [owner["uid"] for owner in metrics["metadata"]["ownerReferences"]] == [uid]

    def test_the_same_deploy_again_changes_nothing_but_the_hold(
        self, server: KubernetesServer, cluster: Cluster
    ) -> None:
        ready_to_deploy(server)
        before = deployed(cluster)
        generation = live(server)["metadata"]["generation"]
        assert deployed(cluster) == before
        assert live(server)["metadata"]["generation"] == generation
        assert lease.annotations(live(server))[CREATED_BY] == RUN

    def test_what_is_made_for_one_run_belongs_to_its_workflow(self, server: KubernetesServer, cluster: Cluster) -> None:
        ready_to_deploy(server)
        owner = server.put(workflow(RUN))
        pod = run_pod(RUN)
        reference = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": owner["metadata"]["name"]}
        pod["metadata"]["ownerReferences"] = [{**reference, "uid": owner["metadata"]["uid"]}]
        made = server.put(pod)
        deployed(cluster, owner_pod=made["metadata"]["name"])
        assert [each["uid"] for each in live(server)["metadata"]["ownerReferences"]] == [owner["metadata"]["uid"]]
        server.remove("Workflow", owner["metadata"]["name"])
        server.wait_for(lambda: server.get("InferenceService", NAME) is None)


class TestWhatIsMissing:
    def test_kserve(self, tmp_path: Path) -> None:
        with KubernetesServer(installed=()) as bare, impatient(str(bare.kubeconfig(tmp_path / "c"))) as cluster:
            ready_to_deploy(bare)
            with pytest.raises(MissingKindError, match="KServe is not installed"):
                deployed(cluster)

    def test_rights_are_told_all_at_once(self, server: KubernetesServer, tmp_path: Path) -> None:
        ready_to_deploy(server)
        server.grant("poor", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}])
        path = str(server.kubeconfig(tmp_path / "poor", token="poor"))
        with impatient(path) as cluster, pytest.raises(ForbiddenError) as refused:
            deployed(cluster)
        for words in ("kserve/rbac.yaml", "inferenceservices", "deployments", "events", "pods/log"):
            assert words in str(refused.value)

    @pytest.mark.parametrize(
        ("made", "told"),
        [
            (None, r"Secret ml/hf-secret is not there.*kubectl -n ml create secret generic hf-secret"),
            ("REPLACE_WITH_YOUR_TOKEN", "still holds REPLACE_WITH_YOUR_TOKEN"),
            ("", "has no key HF_TOKEN"),
        ],
    )
    def test_the_token(self, server: KubernetesServer, cluster: Cluster, made: str | None, told: str) -> None:
        if made is not None:
            server.put(secret(made))
        with pytest.raises(SettingsError, match=told):
            deployed(cluster)
        assert server.find("InferenceService") == []

    def test_a_public_model_needs_no_token(self, cluster: Cluster) -> None:
        assert deployed(cluster, ServingSpec(hf_secret="")).created

    def test_a_quota_that_can_never_hold_the_gpus(self, server: KubernetesServer, cluster: Cluster) -> None:
        ready_to_deploy(server)
        hard = {"requests.nvidia.com/gpu": "8"}
        metadata = {"name": "gpus", "namespace": "ml"}
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": hard}}
        server.put(quota | {"status": {"hard": hard, "used": {"requests.nvidia.com/gpu": "0"}}})
        with pytest.raises(ServingError, match="ml/gpus allows 8 GPUs and the service needs 16"):
            deployed(cluster)

    def test_a_claim_that_only_one_node_can_mount(self, server: KubernetesServer, cluster: Cluster) -> None:
        ready_to_deploy(server)
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Ti"}}}
        metadata = {"name": "model-cache", "namespace": "ml"}
        server.put({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
        with pytest.raises(ServingError, match="only pods of one node can mount"):
            deployed(cluster)


class TestAServiceThatIsThere:
    def test_is_reused_warm_and_keeps_its_maker(self, server: KubernetesServer, cluster: Cluster) -> None:
        ready_to_deploy(server)
        first = deployed(cluster, after_run="keep")
        second = deployed(cluster, run=OTHER_RUN, after_run="delete")
        assert (second.uid, second.created) == (first.uid, False)
        found = lease.annotations(live(server))
        assert (found[CREATED_BY], found[AFTER_RUN]) == (RUN, "keep")
        assert {lease.key(RUN), lease.key(OTHER_RUN)} <= found.keys()

    def test_is_changed_when_nobody_else_needs_it(self, server: KubernetesServer, cluster: Cluster) -> None:
        ready_to_deploy(server)
        first = deployed(cluster)
        again = deployed(cluster, ServingSpec(replicas=1))
        assert again.uid == first.uid
        assert live(server)["spec"]["predictor"]["minReplicas"] == 1

    def test_is_not_changed_under_a_run_that_uses_it(self, server: KubernetesServer, cluster: Cluster) -> None:
        ready_to_deploy(server)
        deployed(cluster)
        server.put(workflow(RUN))
        with pytest.raises(ServingError, match=f"in use by run {RUN} with other settings"):
            deployed(cluster, ServingSpec(replicas=1), run=OTHER_RUN)
        assert live(server)["spec"]["predictor"]["minReplicas"] == 2
        assert lease.key(OTHER_RUN) not in lease.annotations(live(server))

    def test_that_belongs_to_somebody_else_is_left_alone_in_words(
        self, server: KubernetesServer, cluster: Cluster
    ) -> None:
        ready_to_deploy(server)
        metadata = {"name": NAME, "namespace": "ml"}
        theirs = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata}
        server.put(theirs | {"spec": {"predictor": {"minReplicas": 7, "maxReplicas": 7}}}, manager="their-team")
        with pytest.raises(ConflictError, match=r"their-team.*another service name"):
            deployed(cluster)
        assert live(server)["spec"]["predictor"]["minReplicas"] == 7

    def test_that_sleeps_is_woken(self, server: KubernetesServer, cluster: Cluster) -> None:
        ready_to_deploy(server)
        deployed(cluster, after_run="stop")
        server.change("InferenceService", NAME, {"metadata": {"annotations": {STOP: "true"}}})
        deployed(cluster, run=OTHER_RUN)
        found = lease.annotations(live(server))
        assert STOP not in found
        assert found[WOKEN_BY] == OTHER_RUN

    def test_that_is_going_is_waited_out(self, server: KubernetesServer, cluster: Cluster) -> None:
        ready_to_deploy(server)
        first = deployed(cluster)
        server.change("InferenceService", NAME, {"metadata": {"finalizers": ["inferenceservice.finalizers"]}})
        server.remove("InferenceService", NAME)
        gone = {"metadata": {"finalizers": []}}
        later = threading.Timer(1.0, lambda: server.change("InferenceService", NAME, gone))
        later.start()
        second = deployed(cluster, run=OTHER_RUN)
        later.join()
        assert second.uid != first.uid
        assert second.created


def test_names_of_runs_are_valid_and_tell_runs_apart() -> None:
    assert lease.name_for_run(RUN) == "vllm-3f2a9c1b7d4e"
    assert lease.name_for_run(RUN) != lease.name_for_run(OTHER_RUN)
    for odd in ("", "-", "Ünïcode", "x" * 300, "0123"):
        ServingSpec(name=lease.name_for_run(odd))
