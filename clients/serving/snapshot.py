"""What was seen of a service at one moment: everything that a diagnosis may look at."""

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The service, what KServe made of it, and what Kubernetes says about that. Objects are the API server's JSON.

    Attributes:
        taken_at: When it was taken; aware. The age of all evidence is counted from here.
        service: The InferenceService; None when there is none (any more).
        deployments: The Deployments that KServe made for it.
        pods: Its pods, old and new.
        events: Events about the service, its Deployments, ReplicaSets, pods and claims, in any order.
        claims: The PersistentVolumeClaims that its pods mount.
        nodes: The cluster's nodes; None when this account may not list them.
        logs: By a pod's name, the last lines of its main container's log: while that is down, of the one that died.
        died: By a pod's name, the last lines of the main container before, where that has died and another runs now.
    """

    taken_at: dt.datetime
    service: dict[str, Any] | None
    deployments: tuple[dict[str, Any], ...] = ()
    pods: tuple[dict[str, Any], ...] = ()
    events: tuple[dict[str, Any], ...] = ()
    claims: tuple[dict[str, Any], ...] = ()
    nodes: tuple[dict[str, Any], ...] | None = None
    logs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    died: Mapping[str, str] = dataclasses.field(default_factory=dict)
