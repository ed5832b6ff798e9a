"""A Kubernetes cluster: objects as plain dictionaries in and out, refusals as errors that say what to do."""

import contextlib
import json
from typing import Any, Self

from clients.errors import ApiError, ConflictError, ForbiddenError, MissingKindError
from clients.serving.connection import Answer, Connection, find_config
from clients.serving.kinds import KINDS, Kind
from clients.serving.labels import FIELD_MANAGER

#: A Kubernetes object as the API's JSON.
Object = dict[str, Any]

_PAGE = 500
_LONGEST_MESSAGE = 500

#: A 403 with these words is about what was asked for, not about a right that is missing.
_REFUSED_FOR_ITS_CONTENT = ("exceeded quota", "violates PodSecurity", "denied the request")

_APPLY = "application/apply-patch+yaml"  # JSON is YAML
_MERGE = "application/merge-patch+json"


class Cluster:
    """What this package does with a cluster, seen from one namespace. A context manager: leaving it hangs up.

    Args:
        connection: To its API server.
        namespace: Where things are done unless a call names another.
    """

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self.namespace = namespace
        self.server = connection.server

    @classmethod
    def connect(cls, *, kubeconfig: str = "", context: str = "", namespace: str = "") -> Self:
        """The cluster that kubectl would talk to; in a pod, the cluster of the pod.

        Args:
            kubeconfig: What KUBECONFIG says; "" for none.
            context: Context of the kubeconfig; "" for its current one.
            namespace: "" takes the context's, or the pod's.

        Raises:
            SettingsError: no cluster is known, or its credentials cannot be used.
        """
        config, in_cluster = find_config(kubeconfig, context)
        return cls(Connection(config, in_cluster=in_cluster), namespace or config.namespace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, kind: str, name: str, *, namespace: str = "") -> Object | None:
        """One object, or None when there is none of that name.

        Args:
            kind: Key of KINDS.
            name: Of the object.
            namespace: "" for the cluster's own.

        Raises:
            ApiError: as all calls: ForbiddenError, MissingKindError, UnreachableApiError and others.
        """
        answer = self._connection.send("GET", self._path(kind, namespace, name), params={})
        if answer.status == 404 and _is_about(answer, name):
            return None
        return self._object(answer, kind, "get")

    def list(
        self, kind: str, *, labels: str = "", fields: str = "", namespace: str = "", all_namespaces: bool = False
    ) -> list[Object]:
        """Objects of a kind, whole pages of them until there are no more.

        Args:
            kind: Key of KINDS.
            labels: Label selector.
            fields: Field selector.
            namespace: "" for the cluster's own.
            all_namespaces: Whether to look everywhere.
        """
        path = KINDS[kind].path("") if all_namespaces else self._path(kind, namespace)
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        params = {name: value for name, value in selectors.items() if value} | {"limit": str(_PAGE)}
        found: list[Object] = []
        while True:
            answer = self._connection.send("GET", path, params=params)
            if answer.status == 410 and "continue" in params:  # the page's version is too old by now: begin anew
                found.clear()
                del params["continue"]
                continue
            page = self._object(answer, kind, "list")
            found += page.get("items") or []
            params["continue"] = (page.get("metadata") or {}).get("continue") or ""
            if not params["continue"]:
                return found

    def create(self, kind: str, manifest: Object) -> Object:
        """Make an object that is not there yet.

        Raises:
            ConflictError: it is there.
        """
        params = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        path = self._path(kind, _namespace(manifest))
        answer = self._connection.send(
            "POST", path, params=params, body=json.dumps(manifest).encode(), content_type="application/json"
        )
        return self._object(answer, kind, "create")

    def apply(self, kind: str, manifest: Object, *, force: bool = False, dry_run: bool = False) -> Object:
        """Server-side apply: make the object, or change the fields of ours that differ.

        Args:
            kind: Key of KINDS.
            manifest: The fields that we want to own.
            force: Whether to take fields that somebody else owns.
            dry_run: Whether only to ask what would come of it.

        Raises:
            ConflictError: somebody else owns a field; the message says who, and which.
        """
        params = {"fieldManager": FIELD_MANAGER, "force": str(force).lower()} | ({"dryRun": "All"} if dry_run else {})
        path = self._path(kind, _namespace(manifest), manifest["metadata"]["name"])
        answer = self._connection.send(
            "PATCH", path, params=params, body=json.dumps(manifest).encode(), content_type=_APPLY
        )
        return self._object(answer, kind, "patch")

    def merge(self, kind: str, name: str, patch: Object, *, namespace: str = "") -> Object:
        """Change some fields of an object.

        Args:
            kind: Key of KINDS.
            name: Its name.
            patch: The fields; None as a value removes one.
            namespace: "" for the cluster's own.

        Raises:
            ConflictError: `metadata.resourceVersion` is in the patch, and the object has changed since.
        """
        answer = self._connection.send(
            "PATCH",
            self._path(kind, namespace, name),
            params={"fieldManager": FIELD_MANAGER},
            body=json.dumps(patch).encode(),
            content_type=_MERGE,
        )
        return self._object(answer, kind, "patch")

    def delete(self, kind: str, name: str, *, uid: str, resource_version: str = "", namespace: str = "") -> None:
        """Delete the very object that was looked at; one that is gone already is fine.

        Args:
            kind: Key of KINDS.
            name: Its name.
            uid: Its uid: a successor of the same name is not touched.
            resource_version: If given, it must not have changed since.
            namespace: "" for the cluster's own.

        Raises:
            ConflictError: it is another object, or it has changed.
        """
        conditions = {"uid": uid} | ({"resourceVersion": resource_version} if resource_version else {})
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions}
        answer = self._connection.send(
            "DELETE",
            self._path(kind, namespace, name),
            params={"propagationPolicy": "Background"},
            body=json.dumps(body).encode(),
            content_type="application/json",
        )
        if not (answer.status == 404 and _is_about(answer, name)):
            self._object(answer, kind, "delete")

    def log(self, pod: str, *, container: str, previous: bool = False, lines: int = 60) -> str:
        """The last lines of a container's log; "" when there is none (yet).

        Args:
            pod: Its name.
            container: Of the pod.
            previous: The log of the container that died before this one.
            lines: Most lines; 64 KiB at the most.

        Raises:
            ApiError: it may not be read.
        """
        params = {"container": container, "tailLines": str(lines), "limitBytes": "65536"}
        if previous:
            params["previous"] = "true"
        answer = self._connection.send("GET", KINDS["Pod"].path(self.namespace, pod, "log"), params=params)
        if answer.status in (400, 404):  # the container has not started, or its predecessor's log is gone
            return ""
        if answer.status >= 300:
            raise _error(answer, KINDS["Pod"], "get", self.server, subresource="log")
        return answer.text

    def allowed(self, kind: str, verb: str, *, subresource: str = "", namespace: str = "") -> bool:
        """Whether this account may do something here. True where the cluster does not tell.

        Args:
            kind: Key of KINDS.
            verb: Such as `get` or `create`.
            subresource: Such as `log`; "" for the object itself.
            namespace: "" for the cluster's own.
        """
        wanted = KINDS[kind]
        attributes = {"group": wanted.group, "resource": wanted.plural, "verb": verb, "subresource": subresource}
        if wanted.namespaced:
            attributes["namespace"] = namespace or self.namespace
        told = {name: value for name, value in attributes.items() if value}
        return self.review("SelfSubjectAccessReview", {"resourceAttributes": told}) is not False

    def review(self, kind: str, spec: Object) -> bool | None:
        """Ask whether an account may do something; None where the cluster does not tell.

        Args:
            kind: `SelfSubjectAccessReview`, or `SubjectAccessReview` for another account.
            spec: The question, as that kind's spec.
        """
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        path = f"/apis/authorization.k8s.io/v1/{kind.lower()}s"
        answer = self._connection.send(
            "POST", path, params={}, body=json.dumps(body).encode(), content_type="application/json"
        )
        return bool((_json(answer).get("status") or {}).get("allowed")) if answer.status < 300 else None

    def version(self) -> str:
        """The API server's version, such as `v1.33.2`.

        Raises:
            ApiError: something else answers there.
        """
        answer = self._connection.send("GET", "/version", params={})
        found = _json(answer)
        if answer.status >= 300 or "gitVersion" not in found:
            raise ApiError(
                f"{self.server} is not a Kubernetes API server (HTTP {answer.status}): check the kubeconfig",
                status=answer.status,
            )
        return str(found["gitVersion"])

    def _path(self, kind: str, namespace: str = "", name: str = "") -> str:
        return KINDS[kind].path(namespace or self.namespace, name)

    def _object(self, answer: Answer, kind: str, verb: str) -> Object:
        """The object in an answer.

        Raises:
            ApiError: it is a refusal.
        """
        if answer.status >= 300:
            raise _error(answer, KINDS[kind], verb, self.server)
        found = _json(answer)
        if not found:
            raise ApiError(f"{self.server} answered {verb} {KINDS[kind].plural} with something that is no object")
        return found


def _namespace(manifest: Object) -> str:
    return str(manifest["metadata"].get("namespace") or "")


def _json(answer: Answer) -> Object:
    with contextlib.suppress(ValueError):
        found = json.loads(answer.text)
        if isinstance(found, dict):
            return found
    return {}


def _is_about(answer: Answer, name: str) -> bool:
    """Whether a 404 is about the object itself, not about its kind or namespace."""
    details = _json(answer).get("details") or {}
    return details.get("name") == name and details.get("kind") != "namespaces"


def _error(answer: Answer, kind: Kind, verb: str, server: str, *, subresource: str = "") -> Exception:
    """What a refusal means, and what to do about it."""
    status = _json(answer)
    said = " ".join(str(status.get("message") or answer.text or "no words").split())[:_LONGEST_MESSAGE].rstrip(".")
    facts: dict[str, Any] = {"status": answer.status, "reason": str(status.get("reason") or "")}
    if answer.status == 401:
        return ApiError(f"{server} does not know these credentials ({said}): log in again", **facts)
    if answer.status == 403 and not any(words in said for words in _REFUSED_FOR_ITS_CONTENT):
        verbs = ("create", "patch") if verb == "patch" else (verb,)
        rule = kind.rule(*verbs, subresource=subresource)
        return ForbiddenError(f"{said}. Apply kserve/rbac.yaml, or add to the account's Role: {rule}", **facts)
    if answer.status == 404 and not (status.get("details") or {}).get("name"):
        bringer = kind.brought_by or "a newer Kubernetes"
        return MissingKindError(
            f"the cluster knows no {kind.plural}.{kind.group} {kind.version}: {bringer} is not installed. "
            "Check the prerequisites with: python -m pipelines.doctor",
            **facts,
        )
    if answer.status == 409:
        return ConflictError(_conflict(said, status), **facts)
    return ApiError(f"the API server refuses to {verb} {kind.plural} (HTTP {answer.status}): {said}", **facts)


def _conflict(said: str, status: Object) -> str:
    """A conflict in words: who owns which field."""
    causes = [cause for cause in (status.get("details") or {}).get("causes") or [] if cause.get("field")]
    if not causes:
        return said
    owned = "; ".join(f"{cause['field']} ({cause.get('message') or 'owned by another'})" for cause in causes[:5])
    return (
        f"fields that we would set belong to somebody else: {owned}. Leave the object to its owner and use another "
        "service name, or have the owner give the fields up"
    )
