"""The stream of a watch."""

import time
from collections.abc import Callable, Iterator

from tests.servers.kubernetes.kinds import Obj
from tests.servers.kubernetes.routes import Route
from tests.servers.kubernetes.selectors import matches
from tests.servers.kubernetes.statuses import Refusal
from tests.servers.kubernetes.storage import Change, Storage

_LOOK_S = 0.1  # how often a quiet watch looks whether its client is still there


def events(storage: Storage, route: Route, alive: Callable[[], bool]) -> Iterator[Obj]:
    """Events until the time of the watch is over or nobody listens.

    Without a version, or from "0", it begins with what is there. A version that is too old ends it with an ERROR.
    """
    deadline = time.monotonic() + float(route.query.get("timeoutSeconds") or 1800)
    with storage.changed:
        asked = route.query.get("resourceVersion", "")
        seen = storage.version if asked in ("", "0") else int(asked)
        present = storage.find(route.kind, route.namespace) if asked in ("", "0") else []
    yield from ({"type": "ADDED", "object": obj} for obj in present if _fits(route, obj))
    while time.monotonic() < deadline and alive():
        try:
            changes = _wait(storage, seen, min(_LOOK_S, deadline - time.monotonic()))
        except Refusal as gone:
            yield {"type": "ERROR", "object": gone.status}
            return
        for change in changes:
            seen = change.version
            event = _event(route, change)
            if event is not None:
                yield event


def _wait(storage: Storage, seen: int, longest_s: float) -> list[Change]:
    with storage.changed:
        changes = storage.since(seen)
        if not changes:
            storage.changed.wait(max(0.0, longest_s))
            changes = storage.since(seen)
        return changes


def _event(route: Route, change: Change) -> Obj | None:
    """What a change is to this watch: an object that no longer passes its selectors is deleted, as far as it sees."""
    if change.kind is not route.kind or route.namespace not in ("", change.namespace):
        return None
    before = change.before is not None and _fits(route, change.before)
    after = change.after is not None and _fits(route, change.after)
    if after:
        return {"type": "MODIFIED" if before else "ADDED", "object": change.after}
    if before and change.before is not None:
        meta = change.before["metadata"] | {"resourceVersion": str(change.version)}
        return {"type": "DELETED", "object": change.before | {"metadata": meta}}
    return None


def _fits(route: Route, obj: Obj) -> bool:
    return matches(route.kind, obj, route.query.get("labelSelector", ""), route.query.get("fieldSelector", ""))
