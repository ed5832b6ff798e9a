"""Refusals in the words of a real API server."""

from typing import Any

from tests.servers.kubernetes.kinds import Kind, Obj

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}

_MESSAGES = {
    401: "Unauthorized",
    403: 'forbidden: User "system:anonymous" cannot do that',
    404: "the server could not find the requested resource",
    409: "Operation cannot be fulfilled: the object has been modified; please apply your changes to the latest version "
    "and try again",
    410: "The resourceVersion for the provided watch is too old.",
    429: "Too many requests, please try again later.",
    500: "Internal error occurred: etcdserver: request timed out",
    503: "the server is currently unable to handle the request",
    504: "Timeout: request did not complete within the allotted duration",
}


class Refusal(Exception):  # noqa: N818 - the server's answer, not a fault of the stand-in
    """An answer that is not the one asked for.

    Attributes:
        code: HTTP status.
        status: The body; None for the plain text of a path that does not exist.
    """

    def __init__(self, code: int, status: Obj | None, *, retry_after: int | None = None) -> None:
        super().__init__((status or {}).get("message", "404 page not found"))
        self.code = code
        self.status = status
        self.retry_after = retry_after


def refusal(
    code: int,
    message: str = "",
    *,
    reason: str | None = None,
    details: Obj | None = None,
    retry_after: int | None = None,
) -> Refusal:
    """A refusal with the body that goes with `code`; `reason` "" leaves the field out, as a bare 500 does."""
    status: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    status["message"] = message or _MESSAGES.get(code, "")
    reason = _REASONS.get(code, "") if reason is None else reason
    if reason:
        status["reason"] = reason
    if retry_after is not None:
        details = {**(details or {}), "retryAfterSeconds": retry_after}
    if details:
        status["details"] = details
    return Refusal(code, status | {"code": code}, retry_after=retry_after)


def no_such_path() -> Refusal:
    return Refusal(404, None)


def _about(kind: Kind, name: str) -> Obj:
    return {key: value for key, value in {"name": name, "group": kind.group, "kind": kind.plural}.items() if value}


def not_found(kind: Kind, name: str) -> Refusal:
    return refusal(404, f'{kind.resource} "{name}" not found', details=_about(kind, name))


def already_exists(kind: Kind, name: str) -> Refusal:
    message = f'{kind.resource} "{name}" already exists'
    return refusal(409, message, reason="AlreadyExists", details=_about(kind, name))


def modified(kind: Kind, name: str, why: str = "") -> Refusal:
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {kind.resource} "{name}": {why}'
    return refusal(409, message, details=_about(kind, name))


def invalid(kind: Kind, name: str, problems: list[tuple[str, str, str]]) -> Refusal:
    """422 for (field, reason such as `FieldValueInvalid`, message) each."""
    causes = [{"reason": reason, "message": said, "field": field} for field, reason, said in problems]
    lines = [f"{cause['field']}: {cause['message']}" for cause in causes]
    listed = lines[0] if len(lines) == 1 else f"[{', '.join(lines)}]"
    details = {"name": name, "group": kind.group, "kind": kind.kind, "causes": causes}
    return refusal(422, f'{kind.qualified} "{name}" is invalid: {listed}', details=details)


def forbidden(kind: Kind, name: str, why: str) -> Refusal:
    named = f'{kind.resource} "{name}"' if name else kind.resource
    return refusal(403, f"{named} is forbidden: {why}", details=_about(kind, name))


def untyped(kind: Kind, obj: Obj, problems: list[str]) -> Refusal:
    """What server-side apply answers to a field that the schema does not know: a 500 without a reason."""
    meta = obj.get("metadata") or {}
    where = f"{meta.get('namespace', '')}/{meta.get('name', '')}; {kind.api_version}, Kind={kind.kind}"
    said = problems[0] if len(problems) == 1 else "errors:\n" + "\n".join(f"  {problem}" for problem in problems)
    return refusal(500, f"failed to create typed patch object ({where}): {said}", reason="")


def expired(wanted: int, oldest: int) -> Refusal:
    return refusal(410, f"too old resource version: {wanted} ({oldest})")
