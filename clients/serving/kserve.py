"""What KServe itself says about a service, or fails to say."""

import re
from collections.abc import Iterator

from clients.serving import times
from clients.serving.causes import Cause
from clients.serving.evidence import Evidence, Object, at, condition, mapping, name_of, objects, quoted, text
from clients.serving.labels import STOP

#: Seconds that KServe gets to react to what was applied.
_REACTION_S = 30

#: An error that the controller has not repeated for so many seconds is over.
_NEWS_S = 600

#: Errors of the controller that come back as long as the specification stays.
_FINAL = re.compile(
    r"is invalid|admission webhook .* denied|forbidden|field is immutable|no runtime found|NoSupportingRuntime"
)

#: Reasons of conditions that pods and Deployments tell more exactly.
_OF_PODS = ("ProgressDeadlineExceeded", "MinimumReplicasUnavailable", "ModelLoadFailed", "Stopped")


def service_causes(service: Object | None, evidence: Evidence) -> Iterator[Cause]:
    """Why a service cannot work at all, whatever its pods do."""
    if service is None:
        yield Cause(
            kind="deleted", message="the InferenceService is gone: somebody deleted it. Deploy it again", fatal=True
        )
        return
    where = f"InferenceService {name_of(service)}"
    if at(service, "metadata", "deletionTimestamp"):
        yield Cause(kind="deleted", message=f"{where} is being deleted by somebody. Deploy it again", fatal=True)
    if text(service, "metadata", "annotations", STOP).lower() == "true":
        message = f"{where} was stopped by somebody: its annotation {STOP} is true. Remove it to start it again"
        yield Cause(kind="stopped", message=message, fatal=True)


def controller_causes(service: Object, evidence: Evidence, *, pods_waiting: bool) -> Iterator[Cause]:
    """What KServe reports as wrong with a service, or that it reports nothing.

    Args:
        service: The InferenceService.
        evidence: Everything seen.
        pods_waiting: Whether pods are on their way: then conditions only repeat that they are not ready.
    """
    where, changed = f"InferenceService {name_of(service)}", _changed(service, evidence)
    if not objects(service, "status", "conditions") and changed >= _REACTION_S:
        message = f"{where} has had no status for {_REACTION_S} s or more: is KServe's controller running?"
        yield Cause(kind="kserve_silent", message=f"{message} (kubectl -n kserve get pods)", fatal=False)
    failure = mapping(service, "status", "modelStatus", "lastFailureInfo")
    state = text(service, "status", "modelStatus", "transitionStatus")
    if state == "InvalidSpec":
        said = quoted(text(failure, "message") or text(failure, "reason") or state)
        message = f"{where}: KServe refuses the specification: {said}. Correct it"
        yield Cause(kind="kserve_error", message=message, fatal=changed >= _REACTION_S)
    for told in evidence.about("InferenceService", service, "InternalError", "UpdateFailed", "ReconcileFailed")[:1]:
        if evidence.age(told.last) < min(changed, _NEWS_S) and "object has been modified" not in told.message:
            final = bool(_FINAL.search(told.message)) and evidence.age(told.first) >= _REACTION_S
            message = f"{where}: KServe cannot set it up: {quoted(told.message)}. Correct what it names"
            yield Cause(kind="kserve_error", message=message, fatal=final)
    for one in objects(service, "status", "conditions"):
        said = text(one, "message")
        about_pods = pods_waiting or text(one, "reason") in _OF_PODS
        lasts = evidence.age(one.get("lastTransitionTime")) >= _REACTION_S
        if one.get("status") == "False" and said and lasts and not about_pods:
            message = f"{where}: {quoted(text(one, 'type'), 40)} is False: {quoted(said)}. See kubectl describe isvc"
            yield Cause(kind="kserve_error", message=message, fatal=False)


def deadline_causes(deployments: list[Object]) -> Iterator[Cause]:
    """A Deployment that Kubernetes has stopped expecting; it may become ready all the same."""
    for deployment in deployments:
        if text(condition(deployment, "Progressing"), "reason") == "ProgressDeadlineExceeded":
            message = (
                f"Deployment {name_of(deployment)} is past its progress deadline of 10 minutes, which ends nothing: "
                "its pods may still become ready. See kubectl describe pod"
            )
            yield Cause(kind="progress_deadline", message=message, fatal=False)


def _changed(service: Object, evidence: Evidence) -> float:
    """Seconds since anybody changed what the service is to be."""
    edits = [one.get("time") for one in objects(service, "metadata", "managedFields") if not one.get("subresource")]
    moments = [moment for moment in map(times.read, filter(None, edits)) if moment is not None]
    return evidence.age(max(moments, default=None), at(service, "metadata", "creationTimestamp"))
