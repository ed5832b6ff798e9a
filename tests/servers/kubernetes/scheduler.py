"""The scheduler: places pods by what nodes have, and says why not in the real one's words."""

from collections import Counter
from decimal import Decimal

from tests.servers.kubernetes.events import Clock, Recorder
from tests.servers.kubernetes.kinds import CLAIM, NODE, POD, STORAGE_CLASS, Obj
from tests.servers.kubernetes.objects import Objects
from tests.servers.kubernetes.rules import amount, requests_of
from tests.servers.kubernetes.workloads import with_condition

_AGAIN_S = 60.0  # a pod that does not fit is tried, and told of, again after so long, or when something changes


def gpu_node(
    name: str,
    *,
    gpus: int = 8,
    product: str = "NVIDIA-H100-80GB-HBM3",
    taints: tuple[Obj, ...] = (),
    unschedulable: bool = False,
) -> Obj:
    """A node with GPUs as the device plugin and GPU feature discovery show it; 0 GPUs: one without either."""
    room = {"cpu": "192", "memory": "2000Gi", "ephemeral-storage": "3000Gi", "pods": "110"}
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    if gpus:
        room["nvidia.com/gpu"] = str(gpus)
        labels |= {
            "nvidia.com/gpu.product": product,
            "nvidia.com/gpu.present": "true",
            "nvidia.com/gpu.count": str(gpus),
        }
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}
    spec: Obj = {"taints": list(taints)} if taints else {}
    if unschedulable:
        spec["unschedulable"] = True
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
        "status": {"capacity": room, "allocatable": room, "conditions": [ready]},
    }


class Scheduler:
    """Gives pods a node."""

    def __init__(self, objects: Objects, recorder: Recorder, clock: Clock) -> None:
        self._objects = objects
        self._recorder = recorder
        self._clock = clock
        self._told: dict[str, tuple[str, float]] = {}

    def step(self) -> None:
        for pod in self._objects.storage.find(POD):
            if not pod["spec"].get("nodeName") and not pod["metadata"].get("deletionTimestamp"):
                self._place(pod)

    def _place(self, pod: Obj) -> None:
        nodes = self._objects.storage.find(NODE)
        blocked = self._volumes_block(pod)
        reasons = {node["metadata"]["name"]: self._why_not(pod, node) for node in nodes} if not blocked else {}
        fitting = [node for node in nodes if not blocked and not reasons[node["metadata"]["name"]]]
        if fitting:
            self._bind(pod, min(fitting, key=lambda node: (len(self._pods_on(node)), node["metadata"]["name"])))
        else:
            self._tell(pod, _message(nodes, blocked, reasons))

    def _bind(self, pod: Obj, node: Obj) -> None:
        meta, place = pod["metadata"], node["metadata"]["name"]
        self._recorder.add_scheduling(
            pod, "Normal", "Scheduled", f"Successfully assigned {meta['namespace']}/{meta['name']} to {place}"
        )
        pod["spec"]["nodeName"] = place
        self._set_scheduled(pod, "True", "", "")

    def _tell(self, pod: Obj, message: str) -> None:
        last, at = self._told.get(pod["metadata"]["uid"], ("", 0.0))
        if last == message and self._clock.now_s() - at < _AGAIN_S:
            return
        self._told[pod["metadata"]["uid"]] = (message, self._clock.now_s())
        self._recorder.add_scheduling(pod, "Warning", "FailedScheduling", message)
        self._set_scheduled(pod, "False", "Unschedulable", message)

    def _set_scheduled(self, pod: Obj, status: str, reason: str, message: str) -> None:
        state = dict(pod.get("status") or {})
        state["conditions"] = with_condition(state.get("conditions") or [], "PodScheduled", status, reason, message)
        self._objects.storage.update(POD, pod | {"status": state})

    # ---------------------------------------------------------------- reasons

    def _volumes_block(self, pod: Obj) -> str:
        """Why no node at all can take the pod; "" if its claims are fine."""
        for volume in pod["spec"].get("volumes") or []:
            name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if not name:
                continue
            claim = self._objects.storage.read(CLAIM, pod["metadata"]["namespace"], name)
            if claim is None:
                return f'persistentvolumeclaim "{name}" not found'
            if claim["metadata"].get("deletionTimestamp"):
                return f'persistentvolumeclaim "{name}" is being deleted'
            if (claim.get("status") or {}).get("phase") != "Bound" and not self._waits_for_pod(claim):
                return "pod has unbound immediate PersistentVolumeClaims"
        return ""

    def _waits_for_pod(self, claim: Obj) -> bool:
        found = self._objects.storage.read(STORAGE_CLASS, "", str(claim["spec"].get("storageClassName") or ""))
        return (found or {}).get("volumeBindingMode") == "WaitForFirstConsumer"

    def _pods_on(self, node: Obj) -> list[Obj]:
        name = node["metadata"]["name"]
        return [
            pod
            for pod in self._objects.storage.peek(POD)
            if pod["spec"].get("nodeName") == name
            and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        ]

    def _why_not(self, pod: Obj, node: Obj) -> list[str]:
        """Why a node cannot take a pod: the first of the scheduler's checks that fails, in its order."""
        spec = pod["spec"]
        if node["spec"].get("unschedulable"):
            return ["node(s) were unschedulable"]
        for taint in node["spec"].get("taints") or []:
            if taint["effect"] != "PreferNoSchedule" and not _tolerated(taint, spec.get("tolerations") or []):
                return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"]
        if not _selected(spec, node):
            return ["node(s) didn't match Pod's node affinity/selector"]
        on_node = self._pods_on(node)
        short = _lacking(spec, node, on_node)
        if short:
            return [f"Insufficient {name}" for name in short]
        return ["node(s) didn't match pod anti-affinity rules"] if _kept_apart(pod, on_node) else []


def _message(nodes: list[Obj], blocked: str, reasons: dict[str, list[str]]) -> str:
    total = len(nodes)
    if not total:
        return "no nodes available to schedule pods"
    helpless = f"preemption: 0/{total} nodes are available: "
    if blocked:
        return f"0/{total} nodes are available: {blocked}. {helpless}{total} Preemption is not helpful for scheduling."
    counted = Counter(reason for found in reasons.values() for reason in found)
    listed = ", ".join(sorted(f"{count} {reason}" for reason, count in counted.items()))
    full = sum(
        all("Insufficient" in reason or "anti-affinity" in reason for reason in found) for found in reasons.values()
    )
    ends = [f"{total - full} Preemption is not helpful for scheduling"] if total - full else []
    ends += [f"{full} No preemption victims found for incoming pod"] if full else []
    return f"0/{total} nodes are available: {listed}. {helpless}{', '.join(sorted(ends))}."


def _tolerated(taint: Obj, tolerations: list[Obj]) -> bool:
    for one in tolerations:
        key = one.get("key") in (None, "", taint["key"])
        value = one.get("operator") == "Exists" or one.get("value", "") == taint.get("value", "")
        if key and value and one.get("effect") in (None, "", taint["effect"]):
            return True
    return False


def _selected(spec: Obj, node: Obj) -> bool:
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    needed = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = needed.get("nodeSelectorTerms") or []
    return not terms or any(
        all(_expression(labels, row) for row in term.get("matchExpressions") or []) for term in terms
    )


def _expression(labels: Obj, row: Obj) -> bool:
    key, values = row["key"], row.get("values") or []
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }.get(row["operator"], False)


def _lacking(spec: Obj, node: Obj, pods: list[Obj]) -> list[str]:
    room = node["status"]["allocatable"]
    used: dict[str, Decimal] = {}
    for pod in pods:
        for name, value in requests_of(pod["spec"]).items():
            used[name] = used.get(name, Decimal(0)) + value
    asked = requests_of(spec)
    return [
        name
        for name, value in sorted(asked.items())
        if value > 0 and used.get(name, Decimal(0)) + value > amount(room.get(name, "0"))
    ]


def _kept_apart(pod: Obj, on_node: list[Obj]) -> bool:
    """Whether a required anti-affinity keeps the pod from a node's pods; any topology key is taken for the node's."""
    apart = (pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}
    for term in apart.get("requiredDuringSchedulingIgnoredDuringExecution") or []:
        wanted = (term.get("labelSelector") or {}).get("matchLabels") or {}
        rows = (term.get("labelSelector") or {}).get("matchExpressions") or []
        for other in on_node:
            labels = other["metadata"].get("labels") or {}
            near = other["metadata"]["namespace"] == pod["metadata"]["namespace"]
            same = all(labels.get(key) == value for key, value in wanted.items())
            if near and same and all(_expression(labels, row) for row in rows):
                return True
    return False
