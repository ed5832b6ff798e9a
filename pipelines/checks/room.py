"""What nodes offer, what pods take of it, and how many replicas go into the rest: pure."""

import dataclasses
import math
from collections.abc import Iterable

from clients.serving.cluster import Object
from clients.serving.evidence import condition, mapping, name_of, objects, text
from clients.serving.labels import GPU_PRODUCT
from clients.serving.manifest import GPU
from clients.serving.quantity import number
from clients.serving.scheduling import tolerates

#: Amounts by the name of the resource, in its base unit.
Amounts = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What one replica asks of its node, and how many there are to be.

    Attributes:
        replicas: How many.
        amounts: What each takes.
        selector: Labels that its node must have.
        tolerations: Taints that it does not mind.
        alone: Whether no two of them may share a node.
    """

    replicas: int
    amounts: Amounts
    selector: dict[str, str]
    tolerations: list[Object]
    alone: bool

    @classmethod
    def by(cls, predictor: Object, replicas: int) -> "Wanted":
        """What the pods of an InferenceService's predictor ask for."""
        required = "requiredDuringSchedulingIgnoredDuringExecution"
        return cls(
            replicas=replicas,
            amounts=requests(predictor),
            selector={key: str(value) for key, value in mapping(predictor, "nodeSelector").items()},
            tolerations=objects(predictor, "tolerations"),
            alone=bool(objects(predictor, "affinity", "podAntiAffinity", required)),
        )

    def places(self, offered: Amounts) -> int:
        """How many replicas go into what a node offers."""
        counts = [int(offered.get(name, 0) // amount) for name, amount in self.amounts.items() if amount > 0]
        return max(0, min([*counts, *([1] if self.alone else [self.replicas])]))

    def lacking(self, offered: Amounts) -> list[str]:
        """The resources of which a node offers too little for one replica."""
        return [name for name, amount in self.amounts.items() if offered.get(name, 0) < amount]


def requests(pod_spec: Object) -> Amounts:
    """What a pod takes of its node: its containers together, or its largest init container if that is more."""
    together: Amounts = {}
    for container in objects(pod_spec, "containers"):
        _add(together, _asked(container))
    first: Amounts = {}
    for container in objects(pod_spec, "initContainers"):
        if container.get("restartPolicy") == "Always":  # a sidecar stays
            _add(together, _asked(container))
        else:
            first = {name: max(first.get(name, 0), amount) for name, amount in (first | _asked(container)).items()}
    found = {name: max(together.get(name, 0), first.get(name, 0)) for name in together | first}
    _add(found, _amounts(mapping(pod_spec, "overhead")))
    return found


def _asked(container: Object) -> Amounts:
    resources = mapping(container, "resources")
    return _amounts(mapping(resources, "limits") | mapping(resources, "requests"))


def _amounts(quantities: Object) -> Amounts:
    return {name: _amount(quantity) for name, quantity in quantities.items()}


def _amount(quantity: object) -> float:
    value = number(quantity)
    return value if math.isfinite(value) and value > 0 else 0.0


def _add(to: Amounts, more: Amounts) -> None:
    for name, amount in more.items():
        to[name] = to.get(name, 0) + amount


class Node:
    """A node, and what is left of it.

    Args:
        node: As the API has it.
        pods: Those that run on it; none are known to.
    """

    def __init__(self, node: Object, pods: Iterable[Object] = ()) -> None:
        self._node = node
        self.name = name_of(node)
        self.product = text(node, "metadata", "labels", GPU_PRODUCT)
        self.offered = _amounts(mapping(node, "status", "allocatable"))
        self.gpus = int(self.offered.get(GPU, 0))
        taken: Amounts = {"pods": 0}
        for pod in pods:
            _add(taken, requests(mapping(pod, "spec")))
            taken["pods"] += 1
        self.free = {name: max(0.0, amount - taken.get(name, 0)) for name, amount in self.offered.items()}
        self.free_gpus = int(self.free.get(GPU, 0))

    @property
    def looks_nvidia(self) -> bool:
        """Whether its labels tell of NVIDIA GPUs, which it may not offer yet."""
        labels = mapping(self._node, "metadata", "labels")
        ours = ("nvidia.com/gpu.present", GPU_PRODUCT, "nvidia.com/gpu.count", "nvidia.com/gpu.deploy")
        clouds = ("cloud.google.com/gke-accelerator", "k8s.amazonaws.com/accelerator", "accelerator")
        pci = any(key.startswith("feature.node.kubernetes.io/pci-") and "10de" in key for key in labels)
        named = any("nvidia" in str(labels.get(key, "")).lower() for key in clouds)
        return pci or named or any(key.startswith(ours) for key in labels)

    def lacks_labels(self, wanted: Wanted) -> bool:
        """Whether its labels rule it out."""
        labels = mapping(self._node, "metadata", "labels")
        return any(labels.get(key) != value for key, value in wanted.selector.items())

    def taint(self, wanted: Wanted) -> Object | None:
        """The first taint of somebody's choice that is not tolerated."""
        for taint in objects(self._node, "spec", "taints"):
            passing = text(taint, "key").startswith(("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/"))
            if passing or text(taint, "effect") not in ("NoSchedule", "NoExecute"):
                continue
            if not any(tolerates(one, taint) for one in wanted.tolerations):
                return taint
        return None

    @property
    def away(self) -> str:
        """Why it takes no pods just now: `cordoned`, `not ready`; "" when it does."""
        if mapping(self._node, "spec").get("unschedulable"):
            return "cordoned"
        return "" if condition(self._node, "Ready").get("status", "True") == "True" else "not ready"


def nodes_of(nodes: list[Object], pods: list[Object]) -> list[Node]:
    """The nodes, each with the pods that run on it."""
    by_node: dict[str, list[Object]] = {}
    for pod in pods:
        by_node.setdefault(text(pod, "spec", "nodeName"), []).append(pod)
    return [Node(node, by_node.get(text(node, "metadata", "name"), ())) for node in nodes]


def holders(pods: list[Object]) -> list[tuple[str, int]]:
    """Which pods hold GPUs, the greatest first, as `namespace/name` and how many."""
    held = [
        (f"{text(pod, 'metadata', 'namespace')}/{name_of(pod)}", int(requests(mapping(pod, "spec")).get(GPU, 0)))
        for pod in pods
        if text(pod, "spec", "nodeName")
    ]
    return sorted((one for one in held if one[1]), key=lambda one: (-one[1], one[0]))
