"""Look at a service: everything that Kubernetes says about it, in one snapshot."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from clients.errors import ApiError
from clients.events import emit
from clients.serving import times
from clients.serving.cluster import Cluster, Object
from clients.serving.evidence import is_ready, main_container
from clients.serving.labels import SERVICE_LABEL
from clients.serving.pods import pods_of
from clients.serving.snapshot import Snapshot

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Pods that are looked into at a time: those of one service fail alike.
_PODS_LOOKED_INTO = 4

#: Seconds between two looks at what changes slowly or is long.
_LOGS_EVERY_S, _NODES_EVERY_S = 8.0, 60.0

#: Seconds for which something that was refused is not asked for again.
_REFUSED_FOR_S = 120.0


class Observer:
    """Snapshots of one service. What this account may not read is left out, and said once.

    Args:
        cluster: Where it is.
        name: Of the InferenceService.
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster, self._name = cluster, name
        self._refused: dict[str, float] = {}
        self._logs: dict[str, str] = {}
        self._died: dict[str, str] = {}
        self._nodes: tuple[Object, ...] | None = None
        self._logs_at = self._nodes_at = float("-inf")

    def look(self) -> Snapshot:
        """What is to be seen now.

        Raises:
            ApiError: the API server does not answer, or refuses what the wait cannot do without.
        """
        service = self._cluster.get("InferenceService", self._name)
        deployments = self._deployments()
        pods = pods_of(self._cluster, self._name)
        claims = self._claims(pods)
        waiting = [pod for pod in pods if not is_ready(pod)]
        self._read_logs(waiting[:_PODS_LOOKED_INTO])
        return Snapshot(
            taken_at=times.now(),
            service=service,
            deployments=tuple(deployments),
            pods=tuple(pods),
            events=tuple(self._events([*deployments, *waiting[:_PODS_LOOKED_INTO], *claims])),
            claims=tuple(claims),
            nodes=self._seen_nodes(waiting),
            logs=self._logs,
            died=self._died,
        )

    def _deployments(self) -> list[Object]:
        """KServe's Deployments; the model's by its name where they carry no label."""
        labelled = self._cluster.list("Deployment", labels=f"{SERVICE_LABEL}={self._name}")
        named = None if labelled else self._cluster.get("Deployment", f"{self._name}-predictor")
        return labelled or ([] if named is None else [named])

    def _claims(self, pods: list[Object]) -> list[Object]:
        names = sorted({name for pod in pods for name in _claim_names(pod)})
        found = [self._may("PersistentVolumeClaim", self._cluster.get, "PersistentVolumeClaim", name) for name in names]
        return [claim for claim in found if claim is not None]

    def _events(self, objects: list[Object]) -> Iterable[Object]:
        """Events about some objects, the service itself and the replica sets of its deployments."""
        names = [self._name, *(each["metadata"]["name"] for each in objects)]
        for name in names:
            yield from self._may_list("Event", fields=f"involvedObject.name={name}")
        for event in self._may_list("Event", fields="involvedObject.kind=ReplicaSet"):
            about = (event.get("involvedObject") or {}).get("name") or ""
            if about.startswith(f"{self._name}-predictor-"):
                yield event

    def _seen_nodes(self, waiting: list[Object]) -> tuple[Object, ...] | None:
        unscheduled = any(not (pod.get("spec") or {}).get("nodeName") for pod in waiting)
        if unscheduled and time.monotonic() - self._nodes_at > _NODES_EVERY_S:
            self._nodes_at = time.monotonic()
            nodes = self._may_list("Node")
            self._nodes = tuple(nodes) if self._is_allowed("Node") else None
        return self._nodes

    def _read_logs(self, waiting: list[Object]) -> None:
        """Read the last lines of containers that do not serve yet: of the one that is there, and of the one before."""
        if time.monotonic() - self._logs_at < _LOGS_EVERY_S and not any(_is_down(pod) for pod in waiting):
            return
        self._logs_at = time.monotonic()
        self._logs, self._died = {}, {}
        for pod in waiting:
            name, container = pod["metadata"]["name"], main_container(pod)
            if not container or not (pod.get("spec") or {}).get("nodeName"):
                continue
            before = self._tail(name, container, previous=True) if _restarts(pod) else ""
            now = self._tail(name, container)
            if _is_down(pod):  # or was, a moment ago: what runs now may have nothing to say yet
                self._logs[name] = before or now or self._tail(name, container, previous=True)
            else:
                self._logs[name], self._died[name] = now, before

    def _tail(self, pod: str, container: str, *, previous: bool = False) -> str:
        return self._may("Pod/log", self._cluster.log, pod, container=container, previous=previous) or ""

    def _may_list(self, kind: str, *, fields: str = "") -> list[Object]:
        return self._may(kind, self._cluster.list, kind, fields=fields) or []

    def _may(self, right: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What a call returns, or None where it is not allowed."""
        if not self._is_allowed(right):
            return None
        try:
            return call(*args, **kwargs)
        except ApiError as error:
            if error.status != 403:
                raise
            if right not in self._refused and right != "Node":  # nodes are beyond every namespace's role
                emit(logger, "diagnosis.limited", reason=str(error))
            self._refused[right] = time.monotonic()
            return None

    def _is_allowed(self, right: str) -> bool:
        """False for a while after a refusal; not for ever, as a server that just started refuses too much."""
        return time.monotonic() - self._refused.get(right, float("-inf")) > _REFUSED_FOR_S


def _claim_names(pod: Object) -> Iterable[str]:
    for volume in (pod.get("spec") or {}).get("volumes") or []:
        if name := (volume.get("persistentVolumeClaim") or {}).get("claimName"):
            yield name


def _restarts(pod: Object) -> int:
    return int(_main_status(pod).get("restartCount") or 0)


def _is_down(pod: Object) -> bool:
    """Whether the main container has ended and no other runs in its place."""
    status = _main_status(pod)
    state = status.get("state") or {}
    has_died = "terminated" in state or "terminated" in (status.get("lastState") or {})
    return "running" not in state and (has_died or bool(status.get("restartCount")))


def _main_status(pod: Object) -> Object:
    main = main_container(pod)
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return next((status for status in statuses if status.get("name") == main), {})
