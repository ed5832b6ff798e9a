"""A snapshot of a service becomes its stage and its readiness, whatever its objects look like."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.serving.diagnose import Finding, diagnose
from clients.serving.snapshot import Snapshot
from clients.serving.stages import STAGES
from tests.unit.serving_objects import (
    NOT_FOUND,
    NOW,
    SCHEDULER,
    A,
    B,
    ago,
    cause,
    claim,
    condition,
    crashed,
    deployment,
    event,
    find,
    looping,
    node,
    of,
    pod,
    quota,
    service,
    unplaced,
    waiting,
)


def serving(**fields: Any) -> list[dict[str, Any]]:
    return [pod(A, ready=True, **fields), pod(B, ready=True, **fields)]


class TestReady:
    def test_all_wanted_replicas_of_the_current_deployment_serve(self) -> None:
        found = find(2, service=service(ready="True"), deployments=(deployment(),), pods=tuple(serving()))
        assert found == Finding(stage="serving", ready=True, pods_ready=2, detail="2 of 2 pods ready", cause=None)

    @pytest.mark.parametrize(
        "status",
        [
            {"updatedReplicas": 1},
            {"availableReplicas": 1},
            {"observedGeneration": 2},
            {"replicas": 3},
            {"availableReplicas": None},
        ],
    )
    def test_ready_left_over_from_an_earlier_specification_is_not_enough(self, status: dict[str, Any]) -> None:
        deployments = (deployment(**status),)
        assert not find(2, service=service(ready="True"), deployments=deployments, pods=tuple(serving())).ready

    @pytest.mark.parametrize("wanted", [1, 3])
    def test_another_number_of_replicas_is_not_what_was_wanted(self, wanted: int) -> None:
        assert not find(wanted, service=service(ready="True"), deployments=(deployment(),), pods=tuple(serving())).ready

    def test_a_deployment_of_another_image_is_still_the_one_before(self) -> None:
        old = deployment()
        old["spec"]["template"]["spec"]["containers"][0]["image"] = "vllm/vllm-openai:v0.31.0"
        found = find(2, service=service(ready="True"), deployments=(old,), pods=tuple(serving()))
        assert not found.ready
        assert "waiting for KServe" in found.detail

    def test_old_pods_have_to_be_gone(self) -> None:
        old = pod("llm-predictor-777-z", generation="777", age=9000, ready=True)
        found = find(2, service=service(ready="True"), deployments=(deployment(),), pods=(*serving(), old))
        assert not found.ready
        assert "older pods are still there (1)" in found.detail

    def test_an_old_pod_on_a_lost_node_does_not_hold_it_up_for_ever(self) -> None:
        lost = pod("llm-predictor-777-z", generation="777", age=9000, deletionTimestamp=ago(61))
        assert find(2, service=service(ready="True"), deployments=(deployment(),), pods=(*serving(), lost)).ready
        leaving = pod("llm-predictor-777-z", generation="777", age=9000, deletionTimestamp=ago(59))
        assert not find(2, service=service(ready="True"), deployments=(deployment(),), pods=(*serving(), leaving)).ready

    def test_evicted_pods_are_no_old_pods(self) -> None:
        dead = pod("llm-predictor-777-z", generation="777", age=100, status={"phase": "Failed", "reason": "Evicted"})
        assert find(2, service=service(ready="True"), deployments=(deployment(),), pods=(*serving(), dead)).ready

    def test_kserve_may_lag(self) -> None:
        conditions = [condition("IngressReady", "False"), condition("Ready", "False")]
        found = find(2, service=service(conditions=conditions), deployments=(deployment(),), pods=tuple(serving()))
        assert (found.ready, found.pods_ready) == (False, 2)
        assert found.detail == "2 of 2 pods ready; waiting for KServe (IngressReady, Ready)"
        assert found.cause is None

    def test_a_transformer_has_to_be_rolled_out_too(self) -> None:
        other = deployment(wanted=1, availableReplicas=0)
        other["metadata"]["name"] = "llm-transformer"
        seen: dict[str, Any] = {"service": service(ready="True"), "pods": tuple(serving())}
        assert not find(2, deployments=(other, deployment()), **seen).ready


class TestStages:
    @pytest.mark.parametrize(
        ("log", "stage", "words"),
        [
            ("INFO 05-06 [api_server.py:1] vLLM API server version 0.32.0", "starting", "starting vLLM"),
            ("Fetching 14 files:  29%|##  | 4/14 [00:01<00:02]", "downloading", "29 %"),
            (
                "model-00003-of-00007.safetensors:  45%|###   | 2.1G/4.9G [01:02<01:10]",
                "downloading",
                "file 3 of 7 at 45 %",
            ),
            ("INFO [gpu_model_runner.py:1] Starting to load model Qwen/Qwen3-30B", "downloading", "about to load it"),
            (
                "Loading safetensors checkpoint shards:  45% Completed | 5/9 [00:13<00:11]",
                "loading",
                "loading weights, 45 %",
            ),
            (
                "Loading safetensors checkpoint shards:   0% Completed | 0/9 [00:00<?]",
                "loading",
                "loading weights, 0 %",
            ),
            ("INFO [gpu_model_runner.py:4879] Model loading took 12.66 GiB memory", "loading", "100 %"),
            ("INFO [backends.py:1128] Dynamo bytecode transform time: 3.54 s", "compiling", "compiling"),
            ("Capturing CUDA graphs (decode, FULL):  32%|###  | 11/35 [00:01<00:02]", "compiling", "32 %"),
            ("INFO:     Application startup complete.", "serving", "not ready yet"),
        ],
    )
    def test_the_log_tells_how_far_a_pod_is(self, log: str, stage: str, words: str) -> None:
        found = find(pods=(pod(),), logs={A: "INFO before\n" + log + "\nsomething else\n"})
        assert found.stage == stage
        assert f"{A} " in found.detail
        assert words in found.detail

    def test_progress_bars_write_over_their_line(self) -> None:
        bar = "\r".join(f"Loading safetensors checkpoint shards: {n:3}% Completed | x" for n in (10, 20, 30))
        assert "30 %" in find(pods=(pod(),), logs={A: bar}).detail

    def test_the_slowest_pod_counts(self) -> None:
        found = find(
            2, pods=(pod(A, ready=True), pod(B)), logs={B: "Loading safetensors checkpoint shards: 45% Completed"}
        )
        assert found.stage == "loading"
        assert found.detail == f"1 of 2 pods ready; {B} loading weights, 45 %"

    def test_a_pod_that_is_missing_is_the_slowest(self) -> None:
        found = find(2, pods=(pod(A, ready=True),))
        assert (found.stage, found.detail) == ("created", "1 of 2 pods ready; 1 not created yet")

    def test_a_pod_without_a_node_is_being_scheduled(self) -> None:
        assert find(pods=(pod(node=""),)).stage == "scheduling"

    def test_pulling_is_known_from_events(self) -> None:
        seen = pod(state=waiting("ContainerCreating"))
        found = find(pods=(seen,), events=(event("Pulling", age=95),))
        assert (found.stage, found.cause) == ("pulling", None)
        assert "pulling its image for 95 s" in found.detail
        assert find(pods=(seen,), events=(event("Pulling", age=95), event("Pulled", age=5))).stage == "starting"

    def test_an_init_container_that_runs_is_named(self) -> None:
        init = [{"name": "storage-initializer", "state": {"running": {}}}]
        found = find(pods=(pod(state=waiting("PodInitializing"), init=init),))
        assert found.stage == "downloading"
        assert "storage-initializer" in found.detail

    def test_stages_are_in_their_order(self) -> None:
        assert STAGES[0] == "created"
        assert STAGES[-1] == "serving"


class TestEvidence:
    def test_one_pod_is_well_and_one_is_stuck(self) -> None:
        broken = pod(B, state=waiting("ImagePullBackOff", NOT_FOUND))
        found = find(2, pods=(pod(A, ready=True), broken))
        assert found.pods_ready == 1
        assert found.cause is not None
        assert f"pod {B}" in found.cause.message

    def test_what_is_fatal_comes_first(self) -> None:
        stuck = unplaced("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", name=B)
        dead, logs = crashed("vllm: error: unrecognized arguments: --x")
        assert cause(2, pods=(stuck, dead), logs=logs).kind == "bad_argument"

    def test_events_of_a_predecessor_of_the_same_name_do_not_count(self) -> None:
        seen = pod(state=waiting("ContainerCreating"), age=50)
        before = event("FailedMount", "x", age=400)
        other = event("FailedMount", "x", age=10, involvedObject={"kind": "Pod", "name": A, "uid": "another"})
        assert find(pods=(seen,), events=(before, other)).cause is None

    def test_series_and_newer_times_are_read(self) -> None:
        about = {"kind": "Pod", "name": A}
        series = {
            "reason": "Failed",
            "note": 'Failed to pull image "vllm/vllm-openai:v0.32.0": not found',
            "regarding": about,
            "eventTime": "2026-05-04T11:59:50.123456Z",
            "series": {"count": 2, "lastObservedTime": "2026-05-04T11:59:59.000000Z"},
        }
        found = of(pod(state=waiting("ImagePullBackOff")), events=(series,))
        assert found.fatal

    def test_pods_on_their_way_out_are_no_evidence(self) -> None:
        leaving = pod(state=waiting("ImagePullBackOff", NOT_FOUND), deletionTimestamp=ago(1))
        assert find(pods=(leaving, pod(B))).cause is None


KEYS = [
    "metadata", "spec",
    "status", "name", "uid", "creationTimestamp", "conditions", "type", "message", "reason", "state",
    "waiting", "terminated", "containers", "containerStatuses", "initContainerStatuses", "resources", "limits",
    "lastState", "restartCount", "nodeName", "labels", "predictor", "replicas", "involvedObject", "kind", "modelStatus",
    "managedFields", "time", "annotations", "allocatable", "taints", "key", "nodeSelector", "affinity", "tolerations",
    "count", "series",
]  # fmt: skip

odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([ago(10), "True", "False", "Pending", A, SCHEDULER, "8", "nan", "1e999", "CrashLoopBackOff"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            KEYS
        ),
        inner,
        max_size=5,
    ),
    max_leaves=25,
)  # fmt: skip
some = st.lists(odd, max_size=3).map(tuple)


def broken(data: st.DataObject, found: Any) -> Any:
    """An object of which some parts have been taken away or replaced."""
    if isinstance(found, dict):
        return {
            key: data.draw(odd) if data.draw(st.integers(0, 15)) == 0 else broken(data, value)
            for key, value in found.items()
            if data.draw(st.integers(0, 15))
        }
    return [broken(data, each) for each in found] if isinstance(found, list) else found


def check(finding: Finding) -> None:
    assert finding.stage in STAGES
    for line in (finding.detail, finding.cause.message if finding.cause else ""):
        assert line.isprintable()
        assert len(line) <= 540


@given(odd, some, some, some, some, st.none() | some, st.dictionaries(st.just(A), st.text() | st.none()))
def test_whatever_the_objects_are_there_is_a_finding(
    isvc: Any, deployments: Any, pods: Any, events: Any, claims: Any, nodes: Any, logs: Any
) -> None:
    snapshot = Snapshot(
        taken_at=NOW,
        service=isvc,
        deployments=deployments,
        pods=pods,
        events=events,
        claims=claims,
        nodes=nodes,
        logs=logs,
    )
    check(diagnose(snapshot, wanted_replicas=2))


@settings(deadline=None)
@given(st.data())
def test_objects_with_parts_missing_or_strange_still_give_a_finding(data: st.DataObject) -> None:
    dead, logs = looping("TypeError: odd", code=137, reason="OOMKilled")
    failed = condition("ReplicaFailure", "True", message=quota(8, 0, 4))
    snapshot = Snapshot(
        taken_at=NOW,
        service=broken(data, service()),
        deployments=(broken(data, deployment(conditions=[failed])),),
        pods=tuple(broken(data, each) for each in (dead, unplaced(SCHEDULER, name=B), pod("c"))),
        events=tuple(broken(data, each) for each in (event("Pulling"), event("FailedScheduling", SCHEDULER, name=B))),
        claims=(broken(data, claim()),),
        nodes=(broken(data, node(taints=[{"key": "a", "effect": "NoSchedule"}])),),
        logs=logs,
    )
    check(diagnose(snapshot, wanted_replicas=2))
