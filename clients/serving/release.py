"""Give a service back: take off this run's hold, and when nobody else needs it, delete or stop it, and see it gone."""

import dataclasses
import logging
import time
from typing import Any

from clients.errors import ApiError, ServingError
from clients.events import emit
from clients.serving import lease
from clients.serving.cluster import Cluster, Object
from clients.serving.labels import AFTER_RUN, CREATED_BY, STOP, WOKEN_BY
from clients.serving.pods import pods_of

logger = logging.getLogger(__name__)

#: Seconds for which a release tries again while the API server does not answer: GPUs are held meanwhile.
_PATIENCE_S = 900.0

_POLL_S = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Released:
    """What became of a service.

    Attributes:
        name: Of the InferenceService.
        action: `deleted`, `stopped`, `kept`, `in_use` (another run goes on with it) or `absent` (none held by this
            run).
        detail: Who goes on with it, or why it was kept; "" otherwise.
    """

    name: str
    action: str
    detail: str = ""


def release(cluster: Cluster, name: str, *, run: str, gone_s: float = 300.0) -> Released:
    """Take off a run's hold on a service, and release the service when no other run holds it.

    Args:
        cluster: Where.
        name: The InferenceService.
        run: The run that needs it no more. A service that it does not hold is not touched.
        gone_s: Seconds for which the end of its pods is waited for.

    Raises:
        ServingError: it could not be released, or is not gone in time; the message says what still holds GPUs.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return _release(cluster, name, run, gone_s)
        except ApiError as error:
            if error.status not in (0, 401, 409, 410, 429) and error.status < 500:
                raise
            if time.monotonic() > deadline:
                raise ServingError(
                    f"InferenceService {cluster.namespace}/{name} could not be released and holds its GPUs: {error}"
                ) from error
            emit(logger, "release.retried", service=name, reason=str(error))
        time.sleep(_POLL_S)


def _release(cluster: Cluster, name: str, run: str, gone_s: float) -> Released:
    live = cluster.get("InferenceService", name)
    if live is None or not _is_held(live, run):
        return Released(name=name, action="absent")
    if not live["metadata"].get("deletionTimestamp"):
        others = lease.living(cluster, live, without=run)
        if others:
            _let_go(cluster, live, run)
            return Released(name=name, action="in_use", detail=f"run {others[0].run}")
    return let_end(cluster, live, run=run, gone_s=gone_s)


def let_end(cluster: Cluster, live: Object, *, run: str, gone_s: float) -> Released:
    """End a service that no run needs as its maker chose, and wait until its pods are gone.

    Args:
        cluster: Where.
        live: The InferenceService as it was looked at: if it has changed since, ConflictError.
        run: The run whose hold is taken off, or "" for none.
        gone_s: Seconds for which the end of its pods is waited for.
    """
    name, metadata = live["metadata"]["name"], live["metadata"]
    action = _action(live)
    if action == "keep":
        _let_go(cluster, live, run)
        return Released(name=name, action="kept", detail="as chosen" if AFTER_RUN in lease.annotations(live) else "")
    if action == "stop":
        _let_go(cluster, live, run, {STOP: "true", WOKEN_BY: None})
    elif not metadata.get("deletionTimestamp"):
        cluster.delete(
            "InferenceService",
            name,
            uid=metadata["uid"],
            resource_version=metadata["resourceVersion"],
            namespace=metadata["namespace"],
        )
    emit(logger, "service.ending", service=name, action=action)
    _see_gone(cluster, live, stays=action == "stop", gone_s=gone_s)
    return Released(name=name, action="stopped" if action == "stop" else "deleted")


def _is_held(live: Object, run: str) -> bool:
    found = lease.annotations(live)
    return lease.key(run) in found or found.get(CREATED_BY) == run


def _action(live: Object) -> str:
    """What becomes of a service that nobody needs: its maker's choice; one we only woke is put to sleep again."""
    found = lease.annotations(live)
    if CREATED_BY in found:
        return found.get(AFTER_RUN, "delete")
    return "stop" if WOKEN_BY in found else "keep"


def _let_go(cluster: Cluster, live: Object, run: str, further: dict[str, Any] | None = None) -> None:
    """Take off the run's hold, provided that the service is as it was looked at."""
    metadata = live["metadata"]
    gone = {lease.key(run): None} if run else {lease.key(each.run): None for each in lease.holds(live)}
    patch = {
        "metadata": {"resourceVersion": metadata["resourceVersion"], "annotations": {**gone, **(further or {})}},
    }
    cluster.merge("InferenceService", metadata["name"], patch, namespace=metadata["namespace"])


def _see_gone(cluster: Cluster, live: Object, *, stays: bool, gone_s: float) -> None:
    """Wait until the object (unless it stays) and every pod of it are gone.

    Raises:
        ServingError: not in time; with the finalizers and pods that remain.
    """
    name, namespace, uid = (live["metadata"][key] for key in ("name", "namespace", "uid"))
    deadline = time.monotonic() + gone_s
    while True:
        now = cluster.get("InferenceService", name, namespace=namespace)
        ours = now if now is not None and now["metadata"]["uid"] == uid else None
        pods = _pods(cluster, name, namespace) if ours is now else []  # a successor's pods are not our business
        if (stays or ours is None) and not pods:
            return
        if time.monotonic() > deadline:
            raise ServingError(_remains(f"{namespace}/{name}", None if stays else ours, pods, gone_s))
        time.sleep(_POLL_S)


def _pods(cluster: Cluster, name: str, namespace: str) -> list[Object]:
    pods = pods_of(cluster, name, namespace=namespace)
    return [pod for pod in pods if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]


def _remains(where: str, live: Object | None, pods: list[Object], gone_s: float) -> str:
    names = ", ".join(pod["metadata"]["name"] for pod in pods[:4]) or "none"
    message = f"InferenceService {where} is not gone after {gone_s:g} s; pods that still hold GPUs: {names}."
    if live is None:
        return f"{message} See: kubectl describe pod {names.partition(',')[0]}"
    held_by = ", ".join(live["metadata"].get("finalizers") or []) or "none"
    return (
        f"{message} Its finalizers: {held_by}. See whether KServe's controller runs (kubectl -n kserve get pods); "
        "it takes the finalizer off when it does"
    )
