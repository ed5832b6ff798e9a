"""The stand-in for what runs in a cluster: rollouts as they were measured, and each way for a service not to start."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from tests.servers.kubernetes import SCENARIOS, FakeCluster, gpu_node
from tests.servers.kubernetes.asking import SERVICES, apply, ask, service
from tests.servers.kubernetes.workloads import condition_of, is_ready

Obj = dict[str, Any]

ROLLING = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
ONE_LESS = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
RECREATE = {"type": "Recreate"}


def wanted(name: str = "qwen", *, strategy: Obj = RECREATE, image: str = "vllm:1", **predictor: Any) -> Obj:
    """A service of two replicas with all 8 GPUs of a node each."""
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf-secret", "key": "HF_TOKEN"}}}
    box = {"name": "kserve-container", "image": image, "env": [token], "args": ["--model=Qwen/Qwen3"]}
    box |= {"resources": {"limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "8"}}}
    box |= {"volumeMounts": [{"name": "cache", "mountPath": "/cache"}], "ports": [{"containerPort": 8080}]}
    volumes = [{"name": "cache", "persistentVolumeClaim": {"claimName": "model-cache"}}]
    product = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    spec = {"containers": [box], "volumes": volumes, "nodeSelector": product, "deploymentStrategy": strategy}
    return service(name, **spec | predictor)


@contextmanager
def cluster_with(scenario: str = "happy", **settings: Any) -> Iterator[FakeCluster]:
    with FakeCluster(scenario=scenario, **{"speed": 300, **settings}) as cluster:
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "3Ti"}}}
        meta = {"name": "model-cache", "namespace": "ml"}
        cluster.server.put({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec})
        yield cluster


def pods(cluster: FakeCluster) -> list[Obj]:
    return cluster.server.find("Pod", "ml")


def ready_pods(cluster: FakeCluster, image: str = "vllm:1") -> int:
    found = [pod for pod in pods(cluster) if pod["spec"]["containers"][0]["image"] == image]
    return sum(is_ready(pod) for pod in found)


def condition(cluster: FakeCluster, kind: str, name: str, what: str) -> str:
    return str(condition_of(cluster.server.get(kind, name) or {}, what).get("status", ""))


def is_up(cluster: FakeCluster) -> bool:
    return condition(cluster, "InferenceService", "qwen", "Ready") == "True" and ready_pods(cluster) == 2


def says(cluster: FakeCluster, reason: str, words: str, kind: str = "") -> Callable[[], Any]:
    """Whether some event says so."""

    def look() -> bool:
        return any(
            event["reason"] == reason and words in event["message"] and kind in ("", event["involvedObject"]["kind"])
            for event in cluster.server.find("Event")
        )

    return look


def containers(pod: Obj) -> list[Obj]:
    return (pod.get("status") or {}).get("containerStatuses") or []


def state(cluster: FakeCluster, part: str, field: str = "state") -> list[Obj]:
    rows = [row for pod in pods(cluster) for row in containers(pod)]
    return [row[field][part] for row in rows if part in row.get(field, {})]


def has_died(pod: Obj) -> bool:
    return any("terminated" in row.get("lastState", {}) for row in containers(pod))


def transition(cluster: FakeCluster) -> str:
    found = cluster.server.get("InferenceService", "qwen") or {}
    return str(found["status"]["modelStatus"]["transitionStatus"])


# ---------------------------------------------------------------- all goes well


def test_a_service_becomes_ready_and_leaves_nothing_when_it_is_deleted(tmp_path: Any) -> None:
    with cluster_with(address="http://127.0.0.1:1/v1") as cluster:
        path = cluster.kubeconfig(tmp_path / "config", token="t1")
        assert yaml.safe_load(path.read_text())["clusters"][0]["cluster"]["server"] == cluster.url
        apply(cluster.server, wanted())
        cluster.server.wait_for(lambda: is_up(cluster))
        found = cluster.server.get("InferenceService", "qwen") or {}
        assert found["metadata"]["finalizers"] == ["inferenceservice.finalizers"]
        assert found["status"]["address"] == {"url": "http://127.0.0.1:1/v1"}
        assert found["status"]["modelStatus"]["copies"]["totalCopies"] == 2
        assert {pod["spec"]["nodeName"] for pod in pods(cluster)} == {"gpu-0", "gpu-1"}
        name = pods(cluster)[0]["metadata"]["name"]
        _, text = ask(cluster.server, "GET", f"/api/v1/namespaces/ml/pods/{name}/log?tailLines=3")
        assert "Application startup complete." in text
        assert len(text.splitlines()) == 3
        ask(cluster.server, "DELETE", f"{SERVICES}/qwen")
        cluster.server.wait_for(lambda: not pods(cluster))
        for kind in ("InferenceService", "Deployment", "ReplicaSet", "Service"):
            assert not cluster.server.find(kind, "ml"), kind
        assert cluster.server.get("PersistentVolumeClaim", "model-cache")


def test_the_stop_annotation_takes_the_workload_away_and_its_end_brings_it_back() -> None:
    with cluster_with() as cluster:
        apply(cluster.server, wanted())
        cluster.server.wait_for(lambda: is_up(cluster))
        note = {"serving.kserve.io/stop": "true"}
        cluster.server.change("InferenceService", "qwen", {"metadata": {"annotations": note}})
        cluster.server.wait_for(lambda: not pods(cluster))
        found = cluster.server.get("InferenceService", "qwen") or {}
        ready = condition_of(found, "Ready")
        assert (ready["status"], ready["reason"]) == ("False", "Stopped")
        assert condition_of(found, "Stopped")["status"] == "True"
        cluster.server.change("InferenceService", "qwen", {"metadata": {"annotations": {next(iter(note)): None}}})
        cluster.server.wait_for(lambda: is_up(cluster))


def test_without_an_autoscaler_class_the_deployment_begins_with_one_replica() -> None:
    with cluster_with() as cluster:
        asked = wanted()
        del asked["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"]
        apply(cluster.server, asked)
        first = cluster.server.wait_for(lambda: cluster.server.get("Deployment", "qwen-predictor"))
        assert first["spec"]["replicas"] == 1
        cluster.server.wait_for(lambda: is_up(cluster))


# ---------------------------------------------------------------- rollouts


@pytest.mark.parametrize(("strategy", "enough"), [(ROLLING, 2), (ONE_LESS, 1), (RECREATE, 2)])
def test_a_deployment_is_available_with_as_many_pods_as_its_strategy_needs(strategy: Obj, enough: int) -> None:
    with cluster_with("late_replica") as cluster:
        apply(cluster.server, wanted(strategy=strategy))
        cluster.server.wait_for(lambda: ready_pods(cluster) == 1)
        time.sleep(0.1)
        assert (condition(cluster, "InferenceService", "qwen", "Ready") == "True") is (enough == 1)
        cluster.server.wait_for(lambda: is_up(cluster))


def test_the_default_strategy_deadlocks_when_all_gpus_are_taken() -> None:
    with cluster_with() as cluster:
        apply(cluster.server, wanted(strategy=ROLLING))
        cluster.server.wait_for(lambda: is_up(cluster))
        apply(cluster.server, wanted(strategy=ROLLING, image="vllm:2"))
        cluster.server.wait_for(says(cluster, "FailedScheduling", "2 Insufficient nvidia.com/gpu"))
        time.sleep(1.0)  # 300 s of the cluster's time
        assert (ready_pods(cluster), ready_pods(cluster, "vllm:2")) == (2, 0)
        assert condition(cluster, "Deployment", "qwen-predictor", "Available") == "True"
        assert condition(cluster, "InferenceService", "qwen", "Ready") == "True"


@pytest.mark.parametrize("strategy", [ONE_LESS, RECREATE])
def test_the_other_strategies_update_when_all_gpus_are_taken(strategy: Obj) -> None:
    with cluster_with() as cluster:
        apply(cluster.server, wanted(strategy=strategy))
        cluster.server.wait_for(lambda: is_up(cluster))
        apply(cluster.server, wanted(strategy=strategy, image="vllm:2"))
        cluster.server.wait_for(lambda: ready_pods(cluster, "vllm:2") == 2)
        assert len(pods(cluster)) == 2


def test_ready_is_left_over_from_the_earlier_spec_until_kserve_looks() -> None:
    with cluster_with() as cluster:
        apply(cluster.server, wanted())
        cluster.server.wait_for(lambda: is_up(cluster))
        cluster.kserve.lag_s = 60.0
        _, changed = apply(cluster.server, wanted(image="vllm:2"))
        assert changed["metadata"]["generation"] == 2
        assert condition_of(changed, "Ready")["status"] == "True"
        cluster.server.wait_for(lambda: condition(cluster, "InferenceService", "qwen", "Ready") == "False")
        cluster.server.wait_for(lambda: ready_pods(cluster, "vllm:2") == 2)


def test_a_progress_deadline_that_passes_is_not_the_end() -> None:
    with cluster_with("slow", speed=600) as cluster:
        apply(cluster.server, wanted())
        cluster.server.wait_for(lambda: condition(cluster, "Deployment", "qwen-predictor", "Progressing") == "False")
        found = condition_of(cluster.server.get("Deployment", "qwen-predictor") or {}, "Progressing")
        assert found["reason"] == "ProgressDeadlineExceeded"
        cluster.server.wait_for(lambda: is_up(cluster))
        assert condition(cluster, "Deployment", "qwen-predictor", "Progressing") == "True"


# ---------------------------------------------------------------- no node

ALL = "0/3 nodes are available: "
HELPLESS = f"preemption: {ALL}3 Preemption is not helpful for scheduling."
BUSY = f"preemption: {ALL}1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod."


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (
            "gpus_busy",
            f"{ALL}1 node(s) didn't match Pod's node affinity/selector, 2 Insufficient nvidia.com/gpu. {BUSY}",
        ),
        ("no_such_product", f"{ALL}3 node(s) didn't match Pod's node affinity/selector. {HELPLESS}"),
        ("tainted", "2 node(s) had untolerated taint {reserved: team-b}. "),
        ("no_gpu_nodes", "3 node(s) didn't match Pod's node affinity/selector"),
        ("no_nodes", "no nodes available to schedule pods"),
        ("claim_missing", '0/3 nodes are available: persistentvolumeclaim "model-cache" not found. preemption: '),
        ("claim_no_class", "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. preemption: "),
    ],
)
def test_a_pod_that_gets_no_node_is_told_why_in_the_schedulers_words(scenario: str, words: str) -> None:
    with cluster_with(scenario) as cluster:
        apply(cluster.server, wanted())
        cluster.server.wait_for(says(cluster, "FailedScheduling", words))
        event = next(event for event in cluster.server.find("Event") if event["reason"] == "FailedScheduling")
        assert event["lastTimestamp"] is None
        assert event["eventTime"]
        placed = cluster.server.wait_for(lambda: condition_of(pods(cluster)[0], "PodScheduled"))
        assert (placed["status"], placed["reason"]) == ("False", "Unschedulable")


def test_a_pod_gets_its_node_when_gpus_are_freed() -> None:
    with cluster_with("gpus_busy") as cluster:
        apply(cluster.server, wanted())
        cluster.server.wait_for(says(cluster, "FailedScheduling", "Insufficient"))
        cluster.free_gpus()
        cluster.server.wait_for(lambda: is_up(cluster))


def test_pods_that_keep_apart_do_not_share_a_node() -> None:
    term = {"labelSelector": {"matchLabels": {"app": "isvc.qwen-predictor"}}, "topologyKey": "kubernetes.io/hostname"}
    apart = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    with cluster_with(nodes=[gpu_node("big", gpus=16)]) as cluster:
        apply(cluster.server, wanted(affinity=apart))
        cluster.server.wait_for(says(cluster, "FailedScheduling", "1 node(s) didn't match pod anti-affinity rules"))


@pytest.mark.parametrize(
    ("scenario", "reason", "words"),
    [
        (
            "claim_no_class",
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        ),
        (
            "claim_provisioning_failed",
            "ProvisioningFailed",
            'failed to provision volume with StorageClass "shared-rwx": ',
        ),
        ("claim_never_bound", "ExternalProvisioning", "Waiting for a volume to be created"),
        ("claim_waits_for_pod", "WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
    ],
)
def test_a_claim_that_is_not_bound_is_told_why(scenario: str, reason: str, words: str) -> None:
    with cluster_with(scenario) as cluster:
        apply(cluster.server, wanted())
        cluster.server.wait_for(says(cluster, reason, words, "PersistentVolumeClaim"))
        if scenario == "claim_waits_for_pod":
            cluster.server.wait_for(lambda: is_up(cluster))


# ---------------------------------------------------------------- no pod


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("quota", "exceeded quota: gpu-quota, requested: requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=0, "),
        ("limit_range", "is forbidden: maximum memory usage per Container is 64Gi"),
        ("pod_security", 'is forbidden: violates PodSecurity "restricted:latest"'),
    ],
)
def test_a_pod_that_is_refused_shows_in_the_deployment_only(scenario: str, words: str) -> None:
    with cluster_with(scenario) as cluster:
        apply(cluster.server, wanted())
        cluster.server.wait_for(lambda: condition(cluster, "Deployment", "qwen-predictor", "ReplicaFailure") == "True")
        failure = condition_of(cluster.server.get("Deployment", "qwen-predictor") or {}, "ReplicaFailure")
        assert failure["reason"] == "FailedCreate"
        assert words in failure["message"]
        assert says(cluster, "FailedCreate", words, "ReplicaSet")()
        assert not pods(cluster)


def test_a_deployment_that_is_invalid_shows_as_an_event_of_the_service() -> None:
    with cluster_with() as cluster:
        apply(cluster.server, wanted("q" * 49))
        cluster.server.wait_for(
            says(cluster, "InternalError", "must be no more than 63 characters", "InferenceService")
        )


@pytest.mark.parametrize(
    ("scenario", "waits", "words"),
    [
        ("image_not_found", "ImagePullBackOff", "not found"),
        ("image_unauthorized", "ImagePullBackOff", "authorization failed"),
        ("registry_timeout", "ErrImagePull", "i/o timeout"),
        ("secret_missing", "CreateContainerConfigError", 'secret "hf-secret" not found'),
    ],
)
def test_a_container_that_does_not_start_waits_for_a_reason(scenario: str, waits: str, words: str) -> None:
    with cluster_with(scenario) as cluster:
        apply(cluster.server, wanted())

        def reached() -> bool:
            return any(row["reason"] == waits and words in row["message"] for row in state(cluster, "waiting"))

        cluster.server.wait_for(reached)


@pytest.mark.parametrize(
    ("scenario", "code", "reason", "words"),
    [
        ("oom_killed", 137, "OOMKilled", "Starting to load model Qwen/Qwen3"),
        ("crash_loop", 1, "Error", "AssertionError: flux capacitor is out of phase"),
        ("hf_gated", 1, "Error", "Access to model Qwen/Qwen3 is restricted"),
        ("hf_not_found", 1, "Error", "404 Client Error"),
        ("bad_argument", 2, "Error", "vllm: error: unrecognized arguments: --disable-log-requests"),
        ("gpu_memory", 1, "Error", "CUDA out of memory"),
        ("no_cache_blocks", 1, "Error", "No available memory for the cache blocks"),
        ("block_shape", 1, "Error", "not divisible by weight quantization block_n = 128"),
        ("no_space", 1, "Error", "No space left on device"),
    ],
)
def test_a_container_that_dies_leaves_its_last_words(scenario: str, code: int, reason: str, words: str) -> None:
    with cluster_with(scenario) as cluster:
        apply(cluster.server, wanted())
        cluster.server.wait_for(lambda: state(cluster, "terminated", "lastState"))
        died = state(cluster, "terminated", "lastState")[0]
        assert (died["exitCode"], died["reason"]) == (code, reason)
        name = next(pod for pod in pods(cluster) if has_died(pod))["metadata"]["name"]
        path = f"/api/v1/namespaces/ml/pods/{name}/log?previous=true"
        assert words in cluster.server.wait_for(lambda: ask(cluster.server, "GET", path)[1])
        cluster.server.wait_for(
            says(cluster, "BackOff", "Back-off restarting failed container kserve-container in pod")
        )
        cluster.server.wait_for(lambda: transition(cluster) == "BlockedByFailedLoad")


def test_other_ways_to_fail_are_told_by_events() -> None:
    for scenario, reason, words in (
        ("probe_kills", "Killing", "Container kserve-container failed startup probe, will be restarted"),
        ("mount_fails", "FailedMount", 'MountVolume.SetUp failed for volume "cache"'),
        ("evicted", "Evicted", "ephemeral local storage"),
    ):
        with cluster_with(scenario) as cluster:
            apply(cluster.server, wanted())
            cluster.server.wait_for(says(cluster, reason, words, "Pod"))


def test_a_secret_without_the_key_keeps_the_container_from_starting() -> None:
    with cluster_with() as cluster:
        cluster.server.change("Secret", "hf-secret", {"data": None})
        apply(cluster.server, wanted())
        words = "Error: couldn't find key HF_TOKEN in Secret ml/hf-secret"
        cluster.server.wait_for(says(cluster, "Failed", words, "Pod"))
        cluster.server.change("Secret", "hf-secret", {"data": {"HF_TOKEN": "eA=="}})
        cluster.server.wait_for(lambda: is_up(cluster))


# ---------------------------------------------------------------- KServe


def test_a_silent_kserve_says_nothing_and_a_stuck_one_lets_nothing_go() -> None:
    with cluster_with("kserve_silent") as cluster:
        apply(cluster.server, wanted())
        time.sleep(0.2)
        assert "status" not in (cluster.server.get("InferenceService", "qwen") or {})
        cluster.play("stuck", "stuck_finalizer")
        apply(cluster.server, wanted("stuck"))
        cluster.server.wait_for(lambda: pods(cluster))
        ask(cluster.server, "DELETE", f"{SERVICES}/stuck")
        time.sleep(0.2)
        assert (cluster.server.get("InferenceService", "stuck") or {})["metadata"]["deletionTimestamp"]


def test_webhooks_refuse_and_fail_in_their_own_words() -> None:
    with cluster_with() as cluster:
        code, status = apply(cluster.server, wanted("1st"))
        assert code == 403
        assert "denied the request" in status["message"]
        cluster.kserve.down = True
        code, status = apply(cluster.server, wanted())
        assert code == 500
        assert status["message"].startswith("Internal error occurred: failed calling webhook")


def test_a_service_that_is_deleted_while_it_starts_is_gone() -> None:
    with cluster_with("deleted") as cluster:
        apply(cluster.server, wanted())
        cluster.server.wait_for(lambda: cluster.server.get("InferenceService", "qwen") is None)


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_every_scenario_plays(scenario: str) -> None:
    with cluster_with(scenario, speed=2000) as cluster:
        apply(cluster.server, wanted())
        time.sleep(0.15)
