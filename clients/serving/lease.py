"""Who needs a service: one annotation per run, with the time until which the run counts as alive unseen.

A run writes its hold when it deploys and takes it off when it releases. What no run holds any more is released by
whoever notices: the last run, or the sweep. A hold ends by itself, so that a run that died cannot keep a GPU.
"""

import dataclasses
import datetime as dt
import re
from typing import Any

from clients.errors import ApiError, ConflictError
from clients.serving import times
from clients.serving.cluster import Cluster, Object
from clients.serving.labels import HOLDER_PREFIX, RUN_LABEL

#: A run whose pods have all ended this long ago is over, whatever its hold says: between two steps there are seconds
#: without a pod, never minutes.
GRACE_S = 600.0

_RUN_OVER = frozenset({"Succeeded", "Failed", "Error"})


@dataclasses.dataclass(frozen=True)
class Hold:
    """One run's claim on a service.

    Attributes:
        run: The run.
        until: When it ends by itself.
    """

    run: str
    until: dt.datetime


def name_for_run(run: str) -> str:
    """The name of the service that a run makes for itself: a name of its own, as Ready may be left over from another.

    Args:
        run: The run's id; Kubeflow's are UUIDs, of which 12 digits tell runs apart.
    """
    short = re.sub(r"[^a-z0-9]", "", run.lower())[:12]
    return f"vllm-{short or 'run'}"


def annotations(live: Object) -> dict[str, str]:
    """An object's annotations."""
    return (live.get("metadata") or {}).get("annotations") or {}


def holds(live: Object) -> list[Hold]:
    """The holds on a service; one whose time cannot be read has ended."""
    ended = dt.datetime.fromtimestamp(0, dt.UTC)
    return [
        Hold(name.removeprefix(HOLDER_PREFIX), times.read(until) or ended)
        for name, until in sorted(annotations(live).items())
        if name.startswith(HOLDER_PREFIX)
    ]


def key(run: str) -> str:
    """The annotation of a run's hold. An annotation's name has at most 63 characters after its prefix."""
    return HOLDER_PREFIX + run[:63]


def hold(cluster: Cluster, name: str, run: str, *, lease_s: float) -> None:
    """Write a run's hold, or lengthen it.

    Args:
        cluster: Where.
        name: The InferenceService.
        run: The run.
        lease_s: Seconds from now after which the hold ends by itself.
    """
    cluster.merge("InferenceService", name, hold_patch(run, lease_s=lease_s))


def hold_patch(run: str, *, lease_s: float) -> dict[str, Any]:
    """The merge patch that writes a run's hold."""
    until = times.now() + dt.timedelta(seconds=lease_s)
    return {"metadata": {"annotations": {key(run): times.write(until)}}}


def living(cluster: Cluster, live: Object, *, without: str = "") -> list[Hold]:
    """The holds of runs that still need the service.

    Args:
        cluster: Where.
        live: The InferenceService.
        without: A run that does not count: the one that asks.
    """
    namespace = live["metadata"]["namespace"]
    return [found for found in holds(live) if found.run != without[:63] and is_alive(cluster, found, namespace)]


def is_alive(cluster: Cluster, found: Hold, namespace: str) -> bool:
    """Whether a run still needs what it holds.

    Its workflow and its pods tell; where there are none, as for a run on a laptop, the end of the hold decides.

    Args:
        cluster: Where to look.
        found: What the run holds.
        namespace: Of the service.
    """
    seen = is_seen(cluster, found, namespace)
    return found.until > times.now() if seen is None else seen


def is_seen(cluster: Cluster, found: Hold, namespace: str) -> bool | None:
    """Whether a run's workflow or pods are at work; None when there are none to be seen.

    Args:
        cluster: Where to look.
        found: What the run holds.
        namespace: Of the service.
    """
    seen = _workflow_is_alive(cluster, found.run, namespace)
    return _pods_are_alive(cluster, found.run, namespace) if seen is None else seen


def _workflow_is_alive(cluster: Cluster, run: str, namespace: str) -> bool | None:
    """What the run's workflow says; None when there is none, or we may not look."""
    phases = [
        (workflow.get("status") or {}).get("phase", "") for workflow in _of_run(cluster, "Workflow", run, namespace)
    ]
    return any(phase not in _RUN_OVER for phase in phases) if phases else None


def _pods_are_alive(cluster: Cluster, run: str, namespace: str) -> bool | None:
    """What the run's pods say; None when there are none."""
    pods = _of_run(cluster, "Pod", run, namespace)
    if not pods:
        return None
    if any((pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed") for pod in pods):
        return True
    ended = [moment for pod in pods if (moment := _ended(pod)) is not None]
    return bool(ended) and times.now() - max(ended) < dt.timedelta(seconds=GRACE_S)


def _of_run(cluster: Cluster, kind: str, run: str, namespace: str) -> list[Object]:
    if not run.replace("-", "").isalnum():
        return []  # no label value; such a run is nobody's
    try:
        return cluster.list(kind, labels=f"{RUN_LABEL}={run}", namespace=namespace)
    except ConflictError:
        raise
    except ApiError as error:
        if error.status in (403, 404):
            return []
        raise


def _ended(pod: Object) -> dt.datetime | None:
    statuses: list[dict[str, Any]] = (pod.get("status") or {}).get("containerStatuses") or []
    ends = [times.read(((status.get("state") or {}).get("terminated") or {}).get("finishedAt")) for status in statuses]
    return max((moment for moment in ends if moment is not None), default=None)
