"""What a snapshot means: how far the service is, whether it serves, and what stands in its way."""

import dataclasses
from collections.abc import Iterator

from clients.serving.admission import refusals
from clients.serving.causes import Cause
from clients.serving.claims import claim_pending
from clients.serving.containers import container_causes, failed_pods, pod_causes
from clients.serving.evidence import (
    QUOTE,
    Evidence,
    Object,
    at,
    condition,
    is_ready,
    name_of,
    objects,
    quoted,
    text,
    whole,
)
from clients.serving.kserve import controller_causes, deadline_causes, service_causes
from clients.serving.labels import STOP
from clients.serving.scheduling import unschedulable
from clients.serving.snapshot import Snapshot
from clients.serving.stages import STAGES, pod_stage

__all__ = ["Cause", "Finding", "diagnose"]

#: Seconds for which an old pod counts as left after the moment at which it is to be killed at last.
_GONE_AFTER_S = 60

#: A message holds two quotations and the words around them.
_LONGEST = 3 * QUOTE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What a snapshot means.

    Attributes:
        stage: How far the slowest pod is; one of STAGES.
        ready: All wanted replicas serve what was applied, and nothing older does.
        pods_ready: Pods that serve what was applied last.
        detail: One line for people.
        cause: The most important thing in the way, fatal ones first.
    """

    stage: str
    ready: bool
    pods_ready: int
    detail: str
    cause: Cause | None


def diagnose(snapshot: Snapshot, *, wanted_replicas: int) -> Finding:
    """Tell what a snapshot means. Nothing but the snapshot is looked at; odd objects in it are no error.

    Args:
        snapshot: What was seen.
        wanted_replicas: Replicas that have to serve.
    """
    evidence = Evidence(snapshot)
    pods, old = _generations(evidence)
    serving = sum(map(is_ready, pods))
    seen = serving >= wanted_replicas or (not pods and bool(evidence.snapshot.deployments))
    ready = _is_settled(evidence, wanted_replicas) and not old and seen
    stage, words = ("serving", "") if ready else _slowest(pods, wanted_replicas, evidence)
    if serving >= wanted_replicas and not ready:
        words = f"older pods are still there ({len(old)})" if old else _lagging(evidence)
    detail = f"{serving} of {wanted_replicas} pods ready" + (f"; {words}" if words else "")
    cause = None if ready else _most_important(pods, evidence, wanted_replicas)
    return Finding(stage=stage, ready=ready, pods_ready=serving, detail=quoted(detail, _LONGEST), cause=cause)


def _generations(evidence: Evidence) -> tuple[list[Object], list[Object]]:
    """The pods of the newest ReplicaSet that are not on their way out, and those of others that are still there."""
    alive = [
        pod for pod in objects(evidence.snapshot.pods) if text(pod, "status", "phase") not in ("Failed", "Succeeded")
    ]
    staying = [pod for pod in alive if not at(pod, "metadata", "deletionTimestamp")]
    newest = min(staying, key=lambda pod: evidence.age(at(pod, "metadata", "creationTimestamp")), default={})
    now = [pod for pod in staying if _generation(pod) == _generation(newest)]
    old = [
        pod for pod in alive if (not newest or _generation(pod) != _generation(newest))
        and evidence.age(at(pod, "metadata", "deletionTimestamp")) < _GONE_AFTER_S
    ]  # fmt: skip
    return now, old


def _generation(pod: Object) -> str:
    return text(pod, "metadata", "labels", "pod-template-hash")


def _is_settled(evidence: Evidence, wanted: int) -> bool:
    """Whether KServe calls the service ready and its Deployment says the same of what is wanted now.

    Ready alone may be left over from an earlier specification: its observedGeneration is the Deployment's.
    """
    service = evidence.snapshot.service
    if not isinstance(service, dict) or at(service, "metadata", "deletionTimestamp"):
        return False
    if text(service, "metadata", "annotations", STOP).lower() == "true":
        return False
    deployments = objects(evidence.snapshot.deployments)
    main = _main(deployments)
    if condition(service, "Ready").get("status") != "True":
        return False
    if not main:  # another kind of workload: then its pods alone must do
        return True
    current = _carries(main, service) and whole(main, "spec", "replicas") == wanted
    return current and all(map(_is_rolled_out, deployments))


def _main(deployments: list[Object]) -> Object:
    """The Deployment of the model; a service may have others, for a transformer or workers."""
    named = [one for one in deployments if text(one, "metadata", "name").endswith("-predictor")]
    return next(iter(named or deployments), {})


def _is_rolled_out(deployment: Object) -> bool:
    wanted = whole(deployment, "spec", "replicas")
    counts = (whole(deployment, "status", each) for each in ("updatedReplicas", "availableReplicas", "replicas"))
    current = whole(deployment, "status", "observedGeneration") >= whole(deployment, "metadata", "generation")
    return current and all(count == wanted for count in counts)


def _carries(deployment: Object, service: Object) -> bool:
    """Whether a Deployment was made from the service as it is now, as far as its containers tell."""
    made = {text(one, "name"): one for one in objects(deployment, "spec", "template", "spec", "containers")}
    for asked in objects(service, "spec", "predictor", "containers"):
        found = made.get(text(asked, "name") or "kserve-container", {})
        for field in ("image", "command", "args"):
            if field in asked and field in found and "{{" not in str(asked[field]) and found[field] != asked[field]:
                return False
    return True


def _slowest(pods: list[Object], wanted: int, evidence: Evidence) -> tuple[str, str]:
    """The stage of the slowest pod, and that pod in words."""
    if len(pods) < wanted or not pods:
        return "created", f"{max(wanted - len(pods), 0)} not created yet"
    stages = [(STAGES.index(stage), words, name_of(pod)) for pod in pods for stage, words in [pod_stage(pod, evidence)]]
    rank, words, name = min(stages, key=lambda one: one[0])
    return STAGES[rank], f"{name} {words}"


def _lagging(evidence: Evidence) -> str:
    """What is still missing when all pods are ready."""
    service = evidence.snapshot.service or {}
    missing = [one for one in objects(service, "status", "conditions") if one.get("status") == "False"]
    named = ", ".join(text(one, "type") for one in missing if one.get("type") != "Stopped")
    return "waiting for KServe" + (f" ({named})" if named else "")


def _most_important(pods: list[Object], evidence: Evidence, wanted: int) -> Cause | None:
    """The first fatal cause, else the first: they come in the order in which they explain each other."""
    found = list(_causes(pods, evidence, wanted))
    cause = next((one for one in found if one.fatal), next(iter(found), None))
    return dataclasses.replace(cause, message=quoted(cause.message, _LONGEST)) if cause else None


def _causes(pods: list[Object], evidence: Evidence, wanted: int) -> Iterator[Cause]:
    snapshot = evidence.snapshot
    service, deployments = (
        snapshot.service if isinstance(snapshot.service, dict) else None,
        objects(snapshot.deployments),
    )
    yield from service_causes(service, evidence)
    for deployment in deployments:
        yield from refusals(deployment, evidence, wanted if deployment is _main(deployments) else 1)
    waiting = [pod for pod in pods if not is_ready(pod)]
    if waiting:
        yield from filter(None, (claim_pending(claim, evidence) for claim in objects(snapshot.claims)))
    yield from filter(None, (unschedulable(pod, evidence, wanted) for pod in waiting))
    for pod in waiting:
        yield from container_causes(pod, evidence)
        yield from pod_causes(pod, evidence)
    if len(pods) < wanted or waiting:
        yield from failed_pods(objects(snapshot.pods), evidence)
    if service is not None:
        yield from controller_causes(service, evidence, pods_waiting=bool(waiting))
    yield from deadline_causes(deployments)
