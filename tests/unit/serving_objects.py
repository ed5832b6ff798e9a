"""Kubernetes objects as an API server shows them, for tests of the diagnosis."""

import datetime as dt
from typing import Any

from clients.serving.diagnose import Cause, Finding, diagnose
from clients.serving.snapshot import Snapshot

Object = dict[str, Any]

A, B = "llm-predictor-5d4-a", "llm-predictor-5d4-b"
SCHEDULER = (
    "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, 2 Insufficient nvidia.com/gpu. "
    "preemption: 0/3 nodes are available: 1 Preemption is not helpful for scheduling, 2 No preemption victims found "
    "for incoming pod."
)

#: The words of containerd about an image that the registry does not have.
NOT_FOUND = (
    'rpc error: code = NotFound desc = failed to pull and unpack image "docker.io/vllm/vllm-openai:v0.32.0": failed '
    'to resolve reference "docker.io/vllm/vllm-openai:v0.32.0": docker.io/vllm/vllm-openai:v0.32.0: not found'
)

NOW = dt.datetime(2026, 5, 4, 12, 0, 0, tzinfo=dt.UTC)


def ago(seconds: float) -> str:
    return (NOW - dt.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, status: str, *, age: float = 120, **fields: Any) -> Object:
    return {"type": kind, "status": status, "lastTransitionTime": ago(age), **fields}


def service(
    *, ready: str = "False", age: float = 600, conditions: list[Object] | None = None, **metadata: Any
) -> Object:
    return {
        "metadata": {"name": "llm", "uid": "isvc-1", "creationTimestamp": ago(age), **metadata},
        "spec": {"predictor": {"containers": [{"name": "kserve-container", "image": "vllm/vllm-openai:v0.32.0"}]}},
        "status": {"conditions": [condition("Ready", ready)] if conditions is None else conditions},
    }


def deployment(*, wanted: int = 2, conditions: list[Object] | None = None, **status: Any) -> Object:
    counts = {"replicas": wanted, "updatedReplicas": wanted, "availableReplicas": wanted, "observedGeneration": 3}
    container = {"name": "kserve-container", "image": "vllm/vllm-openai:v0.32.0"}
    return {
        "metadata": {"name": "llm-predictor", "uid": "dep-1", "generation": 3, "creationTimestamp": ago(600)},
        "spec": {"replicas": wanted, "template": {"spec": {"containers": [container]}}},
        "status": counts | {"conditions": conditions or []} | status,
    }


def pod(
    name: str = "llm-predictor-5d4-a",
    *,
    state: Object | None = None,
    last: Object | None = None,
    restarts: int = 0,
    ready: bool = False,
    node: str = "gpu-1",
    generation: str = "5d4",
    age: float = 300,
    conditions: list[Object] | None = None,
    status: Object | None = None,
    spec: Object | None = None,
    init: list[Object] | None = None,
    **metadata: Any,
) -> Object:
    """A pod of one container; by default it runs and is not ready."""
    placed = condition("PodScheduled", "True", age=age) if node else condition("PodScheduled", "False", age=age)
    container = {
        "name": "kserve-container",
        "image": "vllm/vllm-openai:v0.32.0",
        "resources": {"limits": {"nvidia.com/gpu": "8", "memory": "64Gi"}, "requests": {"nvidia.com/gpu": "8"}},
        "startupProbe": {"failureThreshold": 120, "periodSeconds": 10},
    }
    found = {
        "name": "kserve-container",
        "ready": ready,
        "restartCount": restarts,
        "state": state or {"running": {"startedAt": ago(200)}},
        "lastState": {"terminated": last} if last else {},
    }
    labels = {"pod-template-hash": generation, "app": "isvc.llm-predictor"}
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "creationTimestamp": ago(age), "labels": labels, **metadata},
        "spec": {"containers": [container], "nodeName": node, **(spec or {})},
        "status": {
            "phase": "Running" if node else "Pending",
            "conditions": conditions or [placed, condition("Ready", str(ready))],
            "containerStatuses": [found] if node else [],
            "initContainerStatuses": init or [],
            **(status or {}),
        },
    }


def waiting(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int = 1, reason: str = "Error", *, lived: float = 60, before: float = 10, message: str = "") -> Object:
    """How a container ended, `before` seconds ago."""
    times = {"startedAt": ago(before + lived), "finishedAt": ago(before)}
    return {"exitCode": code, "reason": reason, "message": message, **times}


def crashed(log: str = "", *, restarts: int = 0, **facts: Any) -> tuple[Object, dict[str, str]]:
    """A pod whose main container has just died, and its log."""
    found = pod(state={"terminated": ended(**facts)}, restarts=restarts)
    return found, {"llm-predictor-5d4-a": log}


def looping(log: str = "", *, restarts: int = 1, **facts: Any) -> tuple[Object, dict[str, str]]:
    """A pod whose main container dies again and again, and its log."""
    found = pod(state=waiting("CrashLoopBackOff", "back-off 10s restarting"), last=ended(**facts), restarts=restarts)
    return found, {"llm-predictor-5d4-a": log}


def unplaced(message: str, *, age: float = 120, reason: str = "Unschedulable", **fields: Any) -> Object:
    placed = condition("PodScheduled", "False", age=age, reason=reason, message=message)
    return pod(node="", conditions=[placed], age=age + 1, **fields)


def event(
    reason: str,
    message: str = "",
    *,
    kind: str = "Pod",
    name: str = "llm-predictor-5d4-a",
    age: float = 30,
    first: float | None = None,
    count: int = 1,
    **fields: Any,
) -> Object:
    return {
        "reason": reason,
        "message": message,
        "involvedObject": {"kind": kind, "name": name},
        "firstTimestamp": ago(age if first is None else first),
        "lastTimestamp": ago(age),
        "count": count,
        **fields,
    }


def node(
    name: str = "gpu-1", *, gpus: int = 8, product: str = "NVIDIA-H100-80GB-HBM3", taints: list[Object] | None = None
) -> Object:
    labels = {"nvidia.com/gpu.product": product} if gpus else {}
    offered = {"cpu": "64", "memory": "512Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints or []},
        "status": {"allocatable": offered},
    }


def claim(*, phase: str = "Pending", age: float = 120) -> Object:
    return {
        "metadata": {"name": "model-cache", "uid": "pvc-1", "creationTimestamp": ago(age)},
        "spec": {"accessModes": ["ReadWriteMany"]},
        "status": {"phase": phase},
    }


def find(wanted: int = 1, **seen: Any) -> Finding:
    usual: Object = {"taken_at": NOW, "service": service(), "deployments": (deployment(wanted=0),)}
    snapshot = Snapshot(**(usual | seen))
    return diagnose(snapshot, wanted_replicas=wanted)


def cause(wanted: int = 1, **seen: Any) -> Cause:
    found = find(wanted, **seen).cause
    assert found is not None
    assert found.message.isprintable()
    assert len(found.message) <= 540
    return found


def of(pods: Any, logs: Any = None, **seen: Any) -> Cause:
    pods = pods if isinstance(pods, list) else [pods]
    return cause(pods=tuple(pods), logs=logs or {}, **seen)


def quota(requested: int, used: int, limited: int) -> str:
    """A quota's refusal of a pod."""
    gpu = "requests.nvidia.com/gpu"
    return (
        f'pods "llm-predictor-5d4-a" is forbidden: exceeded quota: gpus, requested: {gpu}={requested}, '
        f"used: {gpu}={used}, limited: {gpu}={limited}"
    )
