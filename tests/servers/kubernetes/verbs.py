"""What the server answers to a request for objects."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any, cast

import yaml

from tests.servers.kubernetes.access import Access, Account, allowed, refuse, review
from tests.servers.kubernetes.kinds import POD, REVIEW, Kind, Obj
from tests.servers.kubernetes.objects import Objects, Propagation
from tests.servers.kubernetes.routes import Route
from tests.servers.kubernetes.selectors import matches
from tests.servers.kubernetes.statuses import not_found, refusal

_APPLY = ("application/apply-patch+yaml", "application/apply-patch+cbor")
_MERGE = ("application/merge-patch+json", "application/strategic-merge-patch+json")


@dataclass(kw_only=True)
class Call:
    """A request with what came along."""

    route: Route
    account: Account
    body: bytes = b""
    content_type: str = ""
    user_agent: str = ""

    @property
    def manager(self) -> str:
        """Who is said to write: named, or the first word of the client's name."""
        return self.route.query.get("fieldManager") or self.user_agent.partition("/")[0] or "unknown"


@dataclass(kw_only=True)
class Reply:
    """An answer: JSON, or text for a log."""

    body: Obj | str
    code: int = 200
    warnings: list[str] = field(default_factory=list)


class Logs:
    """Where the logs of pods are asked for; a kubelet replaces this."""

    def read(self, pod: Obj, container: str, *, previous: bool) -> str:
        """The log of one container.

        Raises:
            Refusal: 400, there is none.
        """
        name = pod["metadata"]["name"]
        raise refusal(400, f'container "{container}" in pod "{name}" is waiting to start: ContainerCreating')


class Verbs:
    """Answers calls from the objects.

    Attributes:
        logs: The kubelets' logs.
    """

    def __init__(self, objects: Objects, access: Access) -> None:
        self._objects = objects
        self._access = access
        self.logs: Logs = Logs()

    def authorize(self, call: Call, verb: str = "") -> None:
        """Raises:
        Refusal: 403.
        """
        if call.route.kind is REVIEW:
            return
        attempt = call.route.attempt
        if verb:
            attempt = type(attempt)(**{**attempt.__dict__, "verb": verb})
        if not allowed(call.account, attempt):
            raise refuse(call.account, call.route.kind, attempt)

    def answer(self, call: Call) -> Reply:
        """Raises:
        Refusal: whatever the server would say.
        """
        self.authorize(call)
        _refuse_binary(call.content_type)
        route = call.route
        if route.kind is REVIEW:
            return Reply(body=review(call.account, _json(call.body)), code=201)
        if route.subresource not in ("", "status", "log") or (route.subresource == "log" and route.kind is not POD):
            raise not_found(route.kind, route.name)
        return cast(Reply, getattr(self, f"_{route.verb}")(call))

    # ------------------------------------------------------------------- read

    def _get(self, call: Call) -> Reply:
        route = call.route
        found = self._objects.get(route.kind, route.namespace, route.name)
        return Reply(body=self._log(found, route)) if route.subresource == "log" else Reply(body=found)

    def _log(self, pod: Obj, route: Route) -> str:
        names = [container["name"] for container in pod["spec"].get("containers") or []]
        name, container = pod["metadata"]["name"], route.query.get("container", "")
        if not container and len(names) > 1:
            listed = " ".join(names)
            raise refusal(400, f"a container name must be specified for pod {name}, choose one of: [{listed}]")
        if container and container not in names:
            raise refusal(400, f"container {container} is not valid for pod {name}")
        if not pod["spec"].get("nodeName"):
            raise refusal(400, f"pod {name} does not have a host assigned")
        text = self.logs.read(pod, container or names[0], previous=route.flag("previous"))
        lines = text.splitlines(keepends=True)
        if "tailLines" in route.query:
            tail = int(route.query["tailLines"])
            lines = lines[-tail:] if tail else []
        return "".join(lines)[: int(route.query.get("limitBytes") or 10**9)]

    def _list(self, call: Call) -> Reply:
        route, storage = call.route, self._objects.storage
        with storage.changed:
            version = storage.version
            rows = [obj for obj in storage.find(route.kind, route.namespace) if _selected(route, obj)]
        start, version = self._page_start(route, version)
        size = int(route.query.get("limit") or 0) or len(rows)
        page, left = rows[start : start + size], len(rows) - start - size
        meta: Obj = {"resourceVersion": str(version)}
        if left > 0:
            token = json.dumps({"v": version, "start": start + size}).encode()
            meta |= {"continue": base64.urlsafe_b64encode(token).decode(), "remainingItemCount": left}
        named = () if route.kind.brought_by else ("apiVersion", "kind")  # items of core lists do not repeat them
        items = [{key: value for key, value in obj.items() if key not in named} for obj in page]
        return Reply(body=list_of(route.kind, meta, items))

    def _page_start(self, route: Route, version: int) -> tuple[int, int]:
        token = route.query.get("continue")
        if not token:
            return 0, version
        read = json.loads(base64.urlsafe_b64decode(token))
        self._objects.storage.check_age(read["v"])
        return read["start"], read["v"]

    # ------------------------------------------------------------------ write

    def _create(self, call: Call) -> Reply:
        route = call.route
        validation = route.query.get("fieldValidation", "Warn")
        made, warnings = self._objects.create(
            route.kind,
            route.namespace,
            _json(call.body),
            manager=call.manager,
            strict=validation == "Strict",
            dry_run=route.dry_run,
        )
        return Reply(body=made, code=201, warnings=warnings if validation == "Warn" else [])

    def _update(self, call: Call) -> Reply:
        route, body = call.route, _json(call.body)
        if (body.get("metadata") or {}).get("name") != route.name:
            raise refusal(400, "the name of the object does not match the name on the URL")
        found = self._objects.update(
            route.kind,
            route.namespace,
            body,
            manager=call.manager,
            subresource=route.subresource,
            dry_run=route.dry_run,
        )
        return Reply(body=found)

    def _patch(self, call: Call) -> Reply:
        if call.content_type in _APPLY:
            return self._apply(call)
        if call.content_type not in _MERGE:
            said = (
                f"the body of the request was in an unknown format - accepted media types include: {', '.join(_MERGE)}"
            )
            raise refusal(415, said)
        route = call.route
        found = self._objects.merge(
            route.kind,
            route.namespace,
            route.name,
            _json(call.body),
            manager=call.manager,
            subresource=route.subresource,
            dry_run=route.dry_run,
        )
        return Reply(body=found)

    def _apply(self, call: Call) -> Reply:
        route = call.route
        if not route.query.get("fieldManager"):
            said = "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value: is required for apply patch"
            raise refusal(422, said)
        body = _yaml(call.body)
        if not isinstance(body, dict) or (body.get("metadata") or {}).get("name") != route.name:
            raise refusal(400, "the name of the object does not match the name on the URL")
        if body.get("apiVersion") is None or body.get("kind") is None:
            raise refusal(400, "failed to create typed patch object: invalid object type: /, Kind=")
        storage = self._objects.storage
        with storage.changed:
            if storage.read(route.kind, route.namespace, route.name) is None:
                self.authorize(call, "create")  # an apply that makes the object needs both rights
            found, made = self._objects.apply(
                route.kind,
                route.namespace,
                body,
                manager=route.query["fieldManager"],
                force=route.flag("force"),
                dry_run=route.dry_run,
            )
        return Reply(body=found, code=201 if made else 200)

    # ----------------------------------------------------------------- delete

    def _delete(self, call: Call) -> Reply:
        route = call.route
        options = _json(call.body) if call.body else {}
        wanted = options.get("preconditions") or {}
        grace = route.query.get("gracePeriodSeconds", options.get("gracePeriodSeconds"))
        storage = self._objects.storage
        with storage.changed:
            live = self._objects.get(route.kind, route.namespace, route.name)
            stays = self._objects.delete(
                route.kind,
                route.namespace,
                route.name,
                uid=wanted.get("uid"),
                version=wanted.get("resourceVersion"),
                propagation=_propagation(route, options),
                grace_s=None if grace is None else float(grace),
                dry_run=route.dry_run or options.get("dryRun") == ["All"],
            )
        if stays is not None:
            return Reply(body=stays)
        details = {"name": route.name, "group": route.kind.group, "kind": route.kind.plural}
        details["uid"] = live["metadata"]["uid"]
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return Reply(body=status | {"details": {key: value for key, value in details.items() if value}})

    def _deletecollection(self, call: Call) -> Reply:
        route, storage = call.route, self._objects.storage
        with storage.changed:
            rows = [obj for obj in storage.find(route.kind, route.namespace) if _selected(route, obj)]
            for obj in rows:
                self._objects.delete(route.kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        return Reply(body=list_of(route.kind, {"resourceVersion": str(storage.version)}, rows))


def list_of(kind: Kind, meta: Obj, items: list[Obj]) -> Obj:
    return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": meta, "items": items}


def _selected(route: Route, obj: Obj) -> bool:
    return matches(route.kind, obj, route.query.get("labelSelector", ""), route.query.get("fieldSelector", ""))


def _propagation(route: Route, options: Obj) -> Propagation:
    asked = route.query.get("propagationPolicy") or options.get("propagationPolicy") or "Background"
    if asked not in ("Background", "Foreground", "Orphan"):
        said = 'supported values: "Background", "Foreground", "Orphan"'
        raise refusal(422, f'DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Unsupported value: {said}')
    return cast(Propagation, asked)


def _refuse_binary(content_type: str) -> None:
    if "protobuf" in content_type or "cbor" in content_type:
        raise refusal(415, "the body of the request was in an unknown format - accepted media types: application/json")


def _json(body: bytes) -> Obj:
    found = _yaml(body)
    if not isinstance(found, dict):
        raise refusal(400, "the object provided is unrecognized (must be of type Object): couldn't get version/kind")
    return cast(Obj, found)


def _yaml(body: bytes) -> Any:
    """JSON first: it is YAML, and far quicker to read as itself."""
    try:
        return json.loads(body or b"null")
    except ValueError:
        pass
    try:
        return yaml.safe_load(body)
    except yaml.YAMLError as error:
        raise refusal(400, f"error decoding YAML: {error}") from error
