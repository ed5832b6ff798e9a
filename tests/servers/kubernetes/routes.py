"""What a request asks for: its path and query, read."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.servers.kubernetes.access import Attempt
from tests.servers.kubernetes.kinds import Kind, kind_at
from tests.servers.kubernetes.statuses import no_such_path, refusal

_PATH = re.compile(
    r"^/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?/?$"
)
_NAMESPACE = re.compile(r"^/api/v1/namespaces(?:/(?P<name>[^/]+))?(?:/(?P<sub>status|finalize))?/?$")


@dataclass(frozen=True, kw_only=True)
class Route:
    """One request for objects.

    Attributes:
        verb: As in RBAC: get, list, watch, create, update, patch, delete, deletecollection.
    """

    verb: str
    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    query: dict[str, str] = field(default_factory=dict)

    @property
    def attempt(self) -> Attempt:
        return Attempt(
            verb=self.verb,
            group=self.kind.group,
            resource=self.kind.plural,
            subresource=self.subresource,
            namespace=self.namespace,
            name=self.name,
        )

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("true", "1")

    @property
    def dry_run(self) -> bool:
        return self.query.get("dryRun") == "All"


def read_route(method: str, target: str, served: Callable[[Kind], bool]) -> Route:
    """The request behind a method and a path with its query.

    Raises:
        Refusal: 404 for a path that is none of the server's, 405 for a method that a path does not take.
    """
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if match := _NAMESPACE.match(parts.path):
        group, version, plural, namespace = "", "v1", "namespaces", ""
    elif match := _PATH.match(parts.path):
        group, version = match["group"] or "", match["version"]
        plural, namespace = match["plural"], match["namespace"] or ""
    else:
        raise no_such_path()
    kind = kind_at(group, version, plural)
    if kind is None or not served(kind) or (namespace and not kind.namespaced):
        raise no_such_path()
    name = unquote(match["name"] or "")
    verb = _verb(method, name, query.get("watch", "").lower() in ("true", "1"))
    if verb == "create" and kind.namespaced and not namespace:
        raise refusal(405, "the server does not allow this method on the requested resource")
    return Route(
        verb=verb, kind=kind, namespace=unquote(namespace), name=name, subresource=match["sub"] or "", query=query
    )


def _verb(method: str, name: str, watch: bool) -> str:
    of_one = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    of_all = {"GET": "watch" if watch else "list", "POST": "create", "DELETE": "deletecollection"}
    verb = (of_one if name else of_all).get("GET" if method == "HEAD" else method)
    if verb is None:
        raise refusal(405, "the server does not allow this method on the requested resource")
    return verb
