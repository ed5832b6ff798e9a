"""Why a pod gets no node, from the scheduler's words and, where we may see them, the nodes."""

import dataclasses
import math
import re

from clients.serving.causes import Cause
from clients.serving.evidence import (
    Evidence,
    Object,
    condition,
    first_seen,
    mapping,
    name_of,
    objects,
    quoted,
    text,
)
from clients.serving.labels import GPU_PRODUCT
from clients.serving.quantity import number

#: Seconds until a missing claim is taken for good.
_CLAIM_S = 30

#: Seconds that an autoscaler gets to announce a node, with and without sight of the nodes.
_PATIENCE_S = {True: 30, False: 60}

#: Seconds for which an announced node keeps the hope up.
_ANNOUNCED_S = 900

#: Taken for an amount that a node does not tell.
_UNKNOWN = 1e18


def unschedulable(pod: Object, evidence: Evidence, wanted: int) -> Cause | None:
    """Why a pod has no node; None when it has one, or nobody has said anything yet.

    Args:
        pod: The pod.
        evidence: Everything seen.
        wanted: Replicas that are to run at the same time.
    """
    placed = condition(pod, "PodScheduled")
    if text(pod, "spec", "nodeName") or placed.get("status") == "True":
        return None
    if text(placed, "reason") == "SchedulingGated":
        gates = ", ".join(text(gate, "name") for gate in objects(pod, "spec", "schedulingGates"))
        facts = f"pod {name_of(pod)} waits until its scheduling gates are lifted ({quoted(gates)}), as a queue does"
        return Cause(kind="unschedulable", message=facts, fatal=False)
    failed = [one for one in evidence.about("Pod", pod, "FailedScheduling") if "available" in one.message]
    said = text(placed, "message") or (failed[0].message if failed else "")
    if not said:
        return None
    created = mapping(pod, "metadata").get("creationTimestamp")
    age = evidence.age(placed.get("lastTransitionTime"), first_seen(failed), created)
    return _claim(pod, said, age) or _no_node(pod, said, age, evidence, wanted)


def _claim(pod: Object, said: str, age: float) -> Cause | None:
    """The claims for storage that keep a pod from being placed."""
    if found := re.search(r'persistentvolumeclaim "([^"]{1,253})" (not found|is being deleted)', said):
        facts = f"pod {name_of(pod)} cannot be placed: claim {quoted(found[1])} {found[2]}"
        message = f"{facts}. Create it (kserve/vllm/pvc-model.yaml)"
        return Cause(kind="claim_missing", message=message, fatal=age >= _CLAIM_S)
    if "unbound immediate PersistentVolumeClaims" in said:
        message = f"pod {name_of(pod)} waits for a claim that has no volume yet (kubectl describe pvc)"
        return Cause(kind="claim_pending", message=message, fatal=False)
    return None


@dataclasses.dataclass(frozen=True)
class _Verdict:
    """The scheduler's words: of how many nodes, what rules them out, and whether emptying them would help none."""

    nodes: int
    reasons: tuple[tuple[int, str], ...]
    hopeless: bool

    def lacking(self) -> list[str]:
        """The resources that are too scarce, special ones first."""
        found = [reason.split()[1].rstrip(".") for _, reason in self.reasons if re.match(r"Insufficient \S", reason)]
        return sorted(found, key=lambda name: "/" not in name)


def _verdict(said: str) -> _Verdict:
    head, _, preemption = said[:4000].partition("preemption:")
    counted = re.search(r"(\d{1,6})/(\d{1,6}) nodes are available:?\s*(.*)", head, re.DOTALL)
    body = (counted[3] if counted else head).strip().rstrip(".")
    parts = [re.match(r"(\d{1,6}) (.*)", part, re.DOTALL) for part in re.split(r",\s+(?=\d)", body)]
    nodes = int(counted[2]) if counted else 0
    reasons = tuple((int(part[1]), part[2]) for part in parts if part) or ((nodes, body),)
    fixed = [count for count, reason in reasons if _is_fixed(reason)]
    helpless = re.search(r"(\d{1,6}) Preemption is not helpful", preemption)
    # Kubernetes 1.34 and later also say so of a node that would be too small if it were empty.
    beyond = helpless is not None and int(helpless[1]) >= nodes and all(
        _is_fixed(reason) or reason.startswith("Insufficient") for _, reason in reasons
    )  # fmt: skip
    empty = "no nodes available to schedule" in head
    return _Verdict(nodes, reasons, hopeless=empty or (bool(nodes) and (sum(fixed) >= nodes or beyond)))


def _is_fixed(reason: str) -> bool:
    """Whether a reason stays while the cluster stays: labels and lasting taints, not load, state or volumes."""
    labels = re.search(r"affinity/selector|didn't match (?:node selector|Pod's node affinity)", reason)
    return bool(labels) or ("taint" in reason and not re.search(r"\{node\.[\w.]*kubernetes\.io/", reason))


def _no_node(pod: Object, said: str, age: float, evidence: Evidence, wanted: int) -> Cause:
    verdict, nodes = _verdict(said), evidence.snapshot.nodes
    room = None if nodes is None else _Room(pod, objects(nodes), wanted, next(iter(verdict.lacking()), ""))
    never = room.never() if room else ("no node can take it" if verdict.hopeless else "")
    scaler = evidence.about("Pod", pod, "TriggeredScaleUp", "NotTriggerScaleUp", "Nominated")[:1]
    coming = any(one.reason != "NotTriggerScaleUp" and evidence.age(one.last) < _ANNOUNCED_S for one in scaler)
    refused = any(one.reason == "NotTriggerScaleUp" for one in scaler)
    selector = ", ".join(f"{key}={value}" for key, value in mapping(pod, "spec", "nodeSelector").items())
    why = ", ".join(_in_words(count, reason, selector) for count, reason in verdict.reasons[:5])
    facts = [f"pod {name_of(pod)} has no node: {quoted(f'of {verdict.nodes} nodes {why}' if verdict.nodes else why)}"]
    facts += [room.facts()] if room and room.facts() and (never or verdict.lacking()) else []
    facts += [f"It can never be placed: {never}"] if never and not coming else []
    if coming:
        facts.append("The autoscaler is adding a node")
    elif never:
        facts.append((room.mend() if room else "") or _mend(verdict))
    else:
        facts.append(_busy(pod, verdict, evidence))
    certain = refused or age >= _PATIENCE_S[room is not None]
    return Cause(kind="unschedulable", message=". ".join(facts), fatal=bool(never) and not coming and certain)


def _in_words(count: int, reason: str, selector: str) -> str:
    if found := re.match(r"Insufficient (\S+)", reason):
        return f"{count} with too little free {found[1]}"
    if found := re.search(r"taints?\s*(?:\(s\) )?(\{[^}]*\})", reason):
        return f"{count} with the taint {found[1]}"
    if "taint" in reason:
        return f"{count} with a taint that it does not tolerate"
    if "volume node affinity" in reason:
        return f"{count} out of reach of its volume"
    if "anti-affinity" in reason:
        return f"{count} with a replica already (anti-affinity)"
    if "affinity/selector" in reason or "node selector" in reason or "node affinity" in reason:
        return f"{count} without the labels asked for" + (f" ({selector})" if selector else "")
    if "unschedulable" in reason:
        return f"{count} cordoned"
    return f"{count} {reason}" if count else reason


def _mend(verdict: _Verdict) -> str:
    """What to do when only the scheduler's words are known."""
    words = " ".join(reason for _, reason in verdict.reasons)
    mends = ["ask for fewer GPUs or less memory a replica"] if "Insufficient" in words else []
    mends += ["choose a node selector that exists"] if "affinity" in words else []
    mends += ["add a toleration for the taint"] if "taint" in words else []
    return "Mend: " + ", ".join([*mends, "or add a node"])


def _busy(pod: Object, verdict: _Verdict, evidence: Evidence) -> str:
    """Who could make room."""
    own = text(pod, "metadata", "labels", "pod-template-hash")
    others = [
        other for other in objects(evidence.snapshot.pods)
        if text(other, "spec", "nodeName") and text(other, "metadata", "labels", "pod-template-hash") != own
    ]  # fmt: skip
    if others:
        return f"Older pods of this service hold their GPUs ({name_of(others[0])}): use deploymentStrategy Recreate"
    if any("unschedulable" in reason for _, reason in verdict.reasons) and not verdict.lacking():
        return "Uncordon a node (kubectl uncordon)"
    if any("volume node affinity" in reason for _, reason in verdict.reasons):
        return "Use a volume that every GPU node reaches (ReadWriteMany)"
    if not verdict.lacking():
        return "It waits until a node becomes ready or free, or is added"
    what = "GPUs" if any("gpu" in name for name in verdict.lacking()) else verdict.lacking()[0]
    return f"It waits for {what}: stop another service or job that holds them, or add a node"


class _Room:
    """What the nodes could take if nothing else ran on them."""

    def __init__(self, pod: Object, nodes: list[Object], wanted: int, lacking: str) -> None:
        self._pod, self._nodes, self._wanted = pod, nodes, wanted
        self._asked = _requests(pod)
        special = (name for name in self._asked if "/" in name)
        self._scarce = lacking or next(special, "")
        self._labelled = [node for node in nodes if _labels_match(pod, node)]
        self._open = [node for node in self._labelled if not _barring(pod, node)]

    def never(self) -> str:
        """Why not all replicas can ever be placed on these nodes; "" when they may."""
        if not self._nodes:
            return "the cluster has no nodes"
        if not self._labelled:
            return "no node has the labels asked for"
        if not self._open:
            return "no node with these labels is without a taint that it does not tolerate"
        places = sum(self._places(node) for node in self._open)
        if not places:
            return "no node that it may use is large enough, even when empty"
        if places < self._wanted:
            return f"there is room for {places} of {self._wanted} replicas, even when nothing else runs"
        return ""

    def facts(self) -> str:
        """What the nodes offer."""
        if not self._scarce:
            return ""
        sizes = [_amount(mapping(node, "status", "allocatable").get(self._scarce)) for node in self._nodes]
        offering = [size for size in sizes if size > 0]
        asked = _shown(self._scarce, self._asked.get(self._scarce, 0))
        most = f", {_shown(self._scarce, max(offering))} at most" if offering else ""
        found = sorted({text(node, "metadata", "labels", GPU_PRODUCT) for node in self._nodes} - {""})
        products = f" (gpu.product {quoted(', '.join(found[:4]))})" if found else ""
        return f"It asks for {asked} {self._scarce}; {len(offering)} of {len(sizes)} nodes offer it{most}{products}"

    def mend(self) -> str:
        """What to do when it never fits."""
        if self._nodes and not self._labelled:
            return "Choose a node selector that exists, or label a node"
        if self._labelled and not self._open:
            return f"Add a toleration for {quoted(_barring(self._pod, self._labelled[0]), 80)}"
        if "nvidia.com" in self._scarce and not any(_most(node, self._scarce) for node in self._nodes):
            return "Install the NVIDIA device plugin, or add a GPU node"
        return "Ask for fewer GPUs per replica or fewer replicas, or add nodes"

    def _places(self, node: Object) -> int:
        counts = [_most(node, name) // need for name, need in self._asked.items() if need > 0]
        return int(min([*counts, 1 if _alone(self._pod) else self._wanted]))


def _alone(pod: Object) -> bool:
    """Whether a pod never shares a node with one like it."""
    labels = mapping(pod, "metadata", "labels")
    for term in objects(pod, "spec", "affinity", "podAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"):
        wanted = mapping(term, "labelSelector", "matchLabels")
        plain = wanted and not objects(term, "labelSelector", "matchExpressions")
        if term.get("topologyKey") == "kubernetes.io/hostname" and plain and wanted.items() <= labels.items():
            return True
    return False


def _requests(pod: Object) -> dict[str, float]:
    """What a pod asks of one node, per resource."""
    asked: dict[str, float] = {}
    for one in objects(pod, "spec", "containers"):
        for name, quantity in (mapping(one, "resources", "limits") | mapping(one, "resources", "requests")).items():
            asked[name] = asked.get(name, 0) + _amount(quantity)
    return asked


def _amount(quantity: object) -> float:
    value = number(quantity)
    return value if math.isfinite(value) and 0 <= value < _UNKNOWN else 0.0


def _most(node: Object, name: str) -> float:
    """What a node can offer of a resource: of devices also those that are ill now and may be mended."""
    offered, built_in = mapping(node, "status", "allocatable"), mapping(node, "status", "capacity")
    if "/" in name:
        return max(_amount(offered.get(name)), _amount(built_in.get(name)))
    return _amount(offered[name]) if name in offered else _UNKNOWN


def _shown(name: str, value: float) -> str:
    return f"{value / 2**30:.4g}Gi" if name in ("memory", "ephemeral-storage") else f"{value:.4g}"


def _labels_match(pod: Object, node: Object) -> bool:
    """Whether a node has the labels that a pod demands. What we do not understand is taken as met."""
    labels = mapping(node, "metadata", "labels")
    if any(labels.get(key) != value for key, value in mapping(pod, "spec", "nodeSelector").items()):
        return False
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = objects(pod, "spec", "affinity", "nodeAffinity", required, "nodeSelectorTerms")
    return not terms or any(all(_holds(rule, labels) for rule in objects(term, "matchExpressions")) for term in terms)


def _holds(rule: Object, labels: Object) -> bool:
    key, values = text(rule, "key"), rule.get("values")
    values = values if isinstance(values, list) else []
    match rule.get("operator"):
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    return True


def _barring(pod: Object, node: Object) -> str:
    """The first lasting taint of a node that a pod does not tolerate; "" when there is none."""
    for taint in objects(node, "spec", "taints"):
        key, effect = text(taint, "key"), text(taint, "effect")
        passing = re.match(r"node\.[\w.]*kubernetes\.io/|ToBeDeleted|DeletionCandidate", key)
        if passing or effect not in ("NoSchedule", "NoExecute"):
            continue
        if not any(tolerates(one, taint) for one in objects(pod, "spec", "tolerations")):
            value = text(taint, "value")
            return f"{key}={value}:{effect}" if value else f"{key}:{effect}"
    return ""


def tolerates(toleration: Object, taint: Object) -> bool:
    """Whether a toleration of a pod is about a taint of a node, as the scheduler compares them."""
    if text(toleration, "effect") not in ("", text(taint, "effect")):
        return False
    if text(toleration, "operator") == "Exists":
        return text(toleration, "key") in ("", text(taint, "key"))
    return (text(toleration, "key"), text(toleration, "value")) == (text(taint, "key"), text(taint, "value"))
