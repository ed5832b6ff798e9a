"""What the checks of a cluster look at: the cluster, and the service that is to run there."""

import dataclasses
import functools
import json
from typing import Any

from clients.errors import ApiError, ForbiddenError
from clients.serving.cluster import Cluster, Object
from clients.serving.connection import Connection
from clients.serving.kinds import KINDS
from clients.serving.manifest import inference_service
from clients.serving.spec import ServingSpec

#: Pods that hold nothing any more need not be sent.
_AT_WORK = "status.phase!=Succeeded,status.phase!=Failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A cluster and what is wanted of it.

    Attributes:
        connection: To its API server, for what `cluster` has no word for.
        cluster: The same cluster, seen from the namespace of the runs.
        spec: The service that is to run.
        service_account: Account of the pipeline's pods; "" finds it.
        in_cluster: Whether this runs in a pod of the cluster.
    """

    connection: Connection
    cluster: Cluster
    spec: ServingSpec
    service_account: str = ""
    in_cluster: bool = False

    @property
    def namespace(self) -> str:
        """Namespace of the runs."""
        return self.cluster.namespace

    @functools.cached_property
    def nodes(self) -> list[Object]:
        """The cluster's nodes; ForbiddenError where we may not look."""
        return self.cluster.list("Node")

    @functools.cached_property
    def pods(self) -> list[Object]:
        """The pods of all namespaces that hold or want resources; ForbiddenError where we may not look."""
        return self.cluster.list("Pod", fields=_AT_WORK, all_namespaces=True)

    @functools.cached_property
    def predictor(self) -> Object:
        """The pods of the service, as KServe will make them."""
        found: Object = inference_service(self.spec)["spec"]["predictor"]
        return found

    def ask(self, path: str) -> Object | None:
        """What stands at a path of the API; None for nothing.

        Raises:
            ApiError: a refusal.
        """
        answer = self.connection.send("GET", path, params={})
        if answer.status == 404:
            return None
        try:
            found: Any = json.loads(answer.text)
        except ValueError:
            found = None
        said = str(found.get("message") or "") if isinstance(found, dict) else ""
        if answer.status == 403:
            raise ForbiddenError(said or f"this account may not see {path}", status=403)
        if answer.status >= 300 or not isinstance(found, dict):
            raise ApiError(
                f"the API server answers HTTP {answer.status} for {path} {said}".strip(), status=answer.status
            )
        return found

    def serves(self, kind: str) -> bool:
        """Whether the cluster knows a kind. Its list of kinds is open to every account, unlike the definitions."""
        wanted = KINDS[kind]
        found = self.ask(f"/apis/{wanted.group}/{wanted.version}") or {}
        return any(resource.get("name") == wanted.plural for resource in found.get("resources") or [])
