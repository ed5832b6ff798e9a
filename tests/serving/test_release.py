"""Releasing and sweeping: what a run made is given back, and nothing else is touched."""

import threading
from typing import Any

import pytest

from clients.errors import ServingError
from clients.serving import lease, times
from clients.serving.cluster import Cluster
from clients.serving.labels import AFTER_RUN, CREATED_BY, STOP
from clients.serving.release import release
from clients.serving.spec import ServingSpec
from clients.serving.sweep import sweep
from tests.servers.kubernetes import KubernetesServer
from tests.serving.world import OTHER_RUN, RUN, deployed, ready_to_deploy, run_pod, workflow

NAME = ServingSpec().name


@pytest.fixture(autouse=True)
def prepared(server: KubernetesServer) -> None:
    ready_to_deploy(server)


def live(server: KubernetesServer) -> dict[str, Any] | None:
    return server.get("InferenceService", NAME)


def expire(server: KubernetesServer, run: str) -> None:
    past = times.write(times.now().replace(year=2020))
    server.change("InferenceService", NAME, {"metadata": {"annotations": {lease.key(run): past}}})


def swept(cluster: Cluster, **choices: Any) -> dict[str, str]:
    return {released.name: released.action for released in sweep(cluster, gone_s=2.0, **choices)}


class TestRelease:
    def test_what_a_run_made_is_deleted_and_the_cache_stays(self, server: KubernetesServer, cluster: Cluster) -> None:
        deployed(cluster)
        assert release(cluster, NAME, run=RUN).action == "deleted"
        assert live(server) is None
        assert server.get("PersistentVolumeClaim", "model-cache") is not None
        assert server.get("Secret", "hf-secret") is not None

    def test_releasing_twice_is_fine(self, cluster: Cluster) -> None:
        deployed(cluster)
        release(cluster, NAME, run=RUN)
        assert release(cluster, NAME, run=RUN).action == "absent"

    def test_a_service_that_the_run_does_not_hold_is_not_touched(
        self, server: KubernetesServer, cluster: Cluster
    ) -> None:
        deployed(cluster)
        before = live(server)
        assert release(cluster, NAME, run=OTHER_RUN).action == "absent"
        assert live(server) == before

    def test_a_service_of_somebody_else_is_not_touched(self, server: KubernetesServer, cluster: Cluster) -> None:
        theirs = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService"}
        server.put(theirs | {"metadata": {"name": NAME, "namespace": "ml"}, "spec": {"predictor": {}}})
        assert release(cluster, NAME, run=RUN).action == "absent"
        assert swept(cluster) == {}
        assert live(server) is not None

    def test_another_run_keeps_it_and_the_last_one_out_deletes_it(
        self, server: KubernetesServer, cluster: Cluster
    ) -> None:
        deployed(cluster)
        deployed(cluster, run=OTHER_RUN)
        first = release(cluster, NAME, run=RUN)
        assert (first.action, first.detail) == ("in_use", f"run {OTHER_RUN}")
        assert live(server) is not None
        assert release(cluster, NAME, run=OTHER_RUN).action == "deleted"

    def test_a_dead_run_keeps_nothing(self, server: KubernetesServer, cluster: Cluster) -> None:
        deployed(cluster)
        deployed(cluster, run=OTHER_RUN)
        server.put(workflow(OTHER_RUN, "Failed"))
        assert release(cluster, NAME, run=RUN).action == "deleted"

    def test_a_hold_that_comes_at_the_same_moment_wins(self, server: KubernetesServer, cluster: Cluster) -> None:
        """Between the look at the service and its deletion another run takes it: the deletion must not happen."""
        deployed(cluster)
        taken = threading.Event()
        seen_before = len(server.requests)

        def take() -> None:
            server.wait_for(
                lambda: (
                    any("/workflows" in each.target or "/pods" in each.target for each in server.requests[seen_before:])
                    or taken.is_set()
                )
            )
            lease.hold(cluster, NAME, OTHER_RUN, lease_s=3600)

        server.put(workflow("11111111-0000-4a5f-9b8c-0123456789ab"))
        lease.hold(cluster, NAME, "11111111-0000-4a5f-9b8c-0123456789ab", lease_s=-1)
        server.change("Workflow", "batch-11111111", {"status": {"phase": "Succeeded"}})
        server.fail(path="/workflows", hang_s=0.6)
        racer = threading.Thread(target=take)
        racer.start()
        result = release(cluster, NAME, run=RUN)
        racer.join()
        assert result.action == "in_use"
        assert live(server) is not None

    def test_kept_as_chosen(self, server: KubernetesServer, cluster: Cluster) -> None:
        deployed(cluster, after_run="keep")
        assert release(cluster, NAME, run=RUN).action == "kept"
        found = live(server)
        assert found is not None
        assert lease.holds(found) == []

    def test_stopped_as_chosen(self, server: KubernetesServer, cluster: Cluster) -> None:
        deployed(cluster, after_run="stop")
        assert release(cluster, NAME, run=RUN).action == "stopped"
        found = live(server)
        assert found is not None
        assert lease.annotations(found)[STOP] == "true"

    def test_one_that_was_found_asleep_is_put_to_sleep_again(self, server: KubernetesServer, cluster: Cluster) -> None:
        deployed(cluster, after_run="keep")
        patch = {STOP: "true", CREATED_BY: None, AFTER_RUN: None, lease.key(RUN): None}
        server.change("InferenceService", NAME, {"metadata": {"annotations": patch}})
        deployed(cluster, run=OTHER_RUN)
        assert release(cluster, NAME, run=OTHER_RUN).action == "stopped"

    def test_a_finalizer_that_stays_is_reported(self, server: KubernetesServer, cluster: Cluster) -> None:
        deployed(cluster)
        server.change("InferenceService", NAME, {"metadata": {"finalizers": ["inferenceservice.finalizers"]}})
        with pytest.raises(ServingError, match=r"not gone after 1 s.*inferenceservice\.finalizers"):
            release(cluster, NAME, run=RUN, gone_s=1.0)

    def test_pods_that_stay_are_reported(self, server: KubernetesServer, cluster: Cluster) -> None:
        deployed(cluster)
        labels = {"serving.kserve.io/inferenceservice": NAME}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stuck", "namespace": "ml", "labels": labels}}
        server.put(pod | {"spec": {"containers": [{"name": "c", "image": "i:1"}]}, "status": {"phase": "Running"}})
        with pytest.raises(ServingError, match="still hold GPUs: stuck"):
            release(cluster, NAME, run=RUN, gone_s=1.0)

    def test_a_server_that_is_away_is_waited_for(self, server: KubernetesServer, cluster: Cluster) -> None:
        deployed(cluster)
        server.stop()
        back = threading.Timer(3.0, server.start)
        back.start()
        assert release(cluster, NAME, run=RUN).action == "deleted"
        back.join()


class TestSweep:
    def test_a_hold_that_has_ended_frees_the_gpus(self, server: KubernetesServer, cluster: Cluster) -> None:
        deployed(cluster)
        assert swept(cluster) == {NAME: "in_use"}
        expire(server, RUN)
        assert swept(cluster, dry_run=True) == {NAME: "would_end"}
        assert live(server) is not None
        assert swept(cluster) == {NAME: "deleted"}
        assert live(server) is None

    def test_a_run_at_work_keeps_it_whatever_its_hold_says(self, server: KubernetesServer, cluster: Cluster) -> None:
        deployed(cluster)
        expire(server, RUN)
        server.put(workflow(RUN))
        assert swept(cluster) == {NAME: "in_use"}
        found = live(server)
        assert found is not None
        assert lease.holds(found)[0].until > times.now()

    @pytest.mark.parametrize("phase", ["Pending", "Running"])
    def test_so_does_a_pod_of_it_where_workflows_are_not_to_be_seen(
        self, server: KubernetesServer, cluster: Cluster, phase: str
    ) -> None:
        deployed(cluster)
        expire(server, RUN)
        server.put(run_pod(RUN, phase))
        assert swept(cluster) == {NAME: "in_use"}

    @pytest.mark.parametrize("phase", ["Succeeded", "Failed", "Error"])
    def test_a_workflow_that_is_over_frees_it_before_the_hold_ends(
        self, server: KubernetesServer, cluster: Cluster, phase: str
    ) -> None:
        deployed(cluster)
        server.put(workflow(RUN, phase))
        assert swept(cluster) == {NAME: "deleted"}

    def test_pods_that_ended_long_ago_free_it_and_fresh_ones_do_not(
        self, server: KubernetesServer, cluster: Cluster
    ) -> None:
        deployed(cluster)
        server.put(run_pod(RUN, "Succeeded", ended_s_ago=30))
        assert swept(cluster) == {NAME: "in_use"}
        server.change("Pod", f"step-{RUN[:8]}", {"status": run_pod(RUN, "Succeeded", ended_s_ago=3000)["status"]})
        assert swept(cluster) == {NAME: "deleted"}

    def test_what_is_to_be_kept_is_kept(self, server: KubernetesServer, cluster: Cluster) -> None:
        deployed(cluster, after_run="keep")
        expire(server, RUN)
        assert swept(cluster) == {NAME: "kept"}
        assert live(server) is not None

    def test_one_that_cannot_be_released_does_not_stop_the_others(
        self, server: KubernetesServer, cluster: Cluster
    ) -> None:
        deployed(cluster)
        expire(server, RUN)
        server.change("InferenceService", NAME, {"metadata": {"finalizers": ["inferenceservice.finalizers"]}})
        deployed(cluster, ServingSpec(name="vllm-z"), run=OTHER_RUN)
        server.put(workflow(OTHER_RUN, "Failed"))
        assert swept(cluster) == {NAME: "failed", "vllm-z": "deleted"}

    def test_every_namespace_is_swept_when_asked(self, server: KubernetesServer, cluster: Cluster) -> None:
        deployed(cluster)
        server.put(workflow(RUN, "Failed"))
        away = Cluster(cluster._connection, "default")
        assert swept(away) == {}
        assert swept(away, all_namespaces=True) == {NAME: "deleted"}
