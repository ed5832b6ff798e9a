"""What the verbs of the API do to objects. The HTTP server and the controllers both go through here."""

import copy
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

from tests.servers.kubernetes import apply as applying
from tests.servers.kubernetes.fieldsets import SYSTEM_FIELDS
from tests.servers.kubernetes.kinds import INFERENCE_SERVICE, KINDS, NAMESPACE, POD, QUOTA, Kind, Obj
from tests.servers.kubernetes.rules import check, check_change, fill_in, quota_refusal, unknown_fields
from tests.servers.kubernetes.schema_words import is_unknown, is_untyped, worded
from tests.servers.kubernetes.statuses import (
    Refusal,
    already_exists,
    invalid,
    modified,
    not_found,
    refusal,
    untyped,
)
from tests.servers.kubernetes.storage import Storage

#: Sees each object before it is stored: operation, kind, new state, old one. Refuses by raising, may change the new.
Admission = Callable[[str, Kind, Obj, Obj | None], None]

Validator = Callable[[Obj], list[str]]
Propagation = Literal["Background", "Foreground", "Orphan"]


class Objects:
    """Create, update, apply and delete, with the server's checks.

    Attributes:
        validator: Tells what is wrong with a custom object by its schema; None checks nothing.
        admission: Asked in this order.
        pods_linger: Whether a deleted pod that has a node waits for its kubelet.
    """

    def __init__(self, storage: Storage, validator: Validator | None = None) -> None:
        self.storage = storage
        self.validator = validator
        self.admission: list[Admission] = []
        self.pods_linger = False

    # ------------------------------------------------------------------- read

    def get(self, kind: Kind, namespace: str, name: str) -> Obj:
        """Raises:
        Refusal: 404.
        """
        found = self.storage.read(kind, namespace, name)
        if found is None:
            raise not_found(kind, name)
        return found

    # ------------------------------------------------------------------ write

    def create(
        self, kind: Kind, namespace: str, obj: Obj, *, manager: str = "", strict: bool = True, dry_run: bool = False
    ) -> tuple[Obj, list[str]]:
        """A new object, and warnings about fields that were dropped because the schema does not know them."""
        obj = _clean(kind, namespace, obj)
        meta = obj["metadata"]
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + secrets.token_hex(3)[:5]
        warnings = self._check_schema(kind, obj, strict=strict)
        if kind.status and kind is not POD:
            obj.pop("status", None)
        with self.storage.changed:
            return self._insert(kind, obj, manager, "Update", dry_run=dry_run), warnings

    def update(
        self, kind: Kind, namespace: str, obj: Obj, *, manager: str = "", subresource: str = "", dry_run: bool = False
    ) -> Obj:
        """A new state; the resourceVersion must be the live one where it is given. A status goes its own way."""
        name = obj["metadata"].get("name", "")
        with self.storage.changed:
            old = self.get(kind, namespace, name)
            version = obj["metadata"].get("resourceVersion")
            if version and version != old["metadata"]["resourceVersion"]:
                raise modified(kind, name)
            if obj["metadata"].get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
                raise modified(kind, name, "the UID in the precondition does not match the UID in record")
            new = _clean(kind, namespace, obj)
            if not subresource:
                self._check_schema(kind, new, strict=True)
            return self._replace(kind, old, new, manager, subresource, dry_run=dry_run)

    def merge(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        patch: Obj,
        *,
        manager: str = "",
        subresource: str = "",
        dry_run: bool = False,
    ) -> Obj:
        """A merge patch."""
        with self.storage.changed:
            old = self.get(kind, namespace, name)
            new = applying.merge_patch(old, patch)
            return self.update(kind, namespace, new, manager=manager, subresource=subresource, dry_run=dry_run)

    def apply(
        self, kind: Kind, namespace: str, obj: Obj, *, manager: str, force: bool = False, dry_run: bool = False
    ) -> tuple[Obj, bool]:
        """Server-side apply: the object, and whether it is new."""
        patch = _clean(kind, namespace, obj, applied=True)
        name = patch["metadata"]["name"]
        self._check_typed(kind, patch)
        with self.storage.changed:
            live = self.storage.read(kind, namespace, name)
            version = patch["metadata"].pop("resourceVersion", None)
            if live is not None and version not in (None, live["metadata"]["resourceVersion"]):
                raise modified(kind, name)
            merged = applying.apply(kind, live, patch, manager, force=force)
            if live is None:
                return self._insert(kind, merged, "", "", dry_run=dry_run), True
            return self._store(kind, live, merged, dry_run=dry_run), False

    def _insert(self, kind: Kind, obj: Obj, manager: str, operation: str, *, dry_run: bool) -> Obj:
        namespace, name = obj["metadata"].get("namespace", ""), obj["metadata"].get("name", "")
        check(kind, obj)
        if kind.namespaced and self.storage.read(NAMESPACE, "", namespace) is None:
            raise not_found(NAMESPACE, namespace)
        fill_in(kind, obj)
        for ask in self.admission:
            ask("CREATE", kind, obj, None)
        if self.storage.read(kind, namespace, name) is not None:
            raise already_exists(kind, name)
        if kind is POD:
            over = quota_refusal(obj, self.storage.peek(QUOTA, namespace), self.storage.peek(POD, namespace))
            if over is not None:
                raise over
        if manager:
            applying.note_update(kind, None, obj, manager)
        return obj if dry_run else self.storage.insert(kind, obj)

    def _replace(self, kind: Kind, old: Obj, new: Obj, manager: str, subresource: str, *, dry_run: bool) -> Obj:
        if kind.status:
            chosen = old if subresource == "status" else new
            other = new if subresource == "status" else old
            new = {key: value for key, value in chosen.items() if key != "status"}
            if "status" in other:
                new["status"] = other["status"]
        new["metadata"] = dict(new["metadata"])
        for key in ("uid", "resourceVersion", "creationTimestamp", "generation", "deletionTimestamp", "managedFields"):
            new["metadata"].pop(key, None)
            if key in old["metadata"]:
                new["metadata"][key] = old["metadata"][key]
        if manager and new != old:
            applying.note_update(kind, old, new, manager, subresource)
        return self._store(kind, old, new, dry_run=dry_run)

    def _store(self, kind: Kind, old: Obj, new: Obj, *, dry_run: bool) -> Obj:
        if new == old:
            return old
        check(kind, new)
        fill_in(kind, new)
        check_change(kind, old, new)
        for ask in self.admission:
            ask("UPDATE", kind, new, old)
        if dry_run:
            return new
        stored = self.storage.update(kind, new)
        if stored["metadata"].get("deletionTimestamp") and not stored["metadata"].get("finalizers") and kind is not POD:
            self._remove(kind, stored)
        return stored

    # ----------------------------------------------------------------- delete

    def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        version: str | None = None,
        propagation: Propagation = "Background",
        grace_s: float | None = None,
        dry_run: bool = False,
    ) -> Obj | None:
        """Delete; the object if it stays for now, None if it is gone.

        Raises:
            Refusal: 404, or 409 when it is not the object of the preconditions.
        """
        with self.storage.changed:
            live = self.get(kind, namespace, name)
            meta: Obj = live["metadata"]
            self._check_preconditions(kind, meta, uid, version)
            if dry_run:
                return live
            if propagation == "Foreground":
                self._add_finalizer(live, "foregroundDeletion")
            elif propagation == "Orphan":
                self._orphan(meta["uid"])
            waits = kind is POD and self.pods_linger and bool(live["spec"].get("nodeName")) and grace_s != 0
            if not meta.get("finalizers") and not waits:
                self._remove(kind, live)
                return None
            if not meta.get("deletionTimestamp"):
                grace = int(live["spec"].get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s)
                self._mark(kind, live, grace if waits else 0)
            if propagation == "Foreground":
                self._collect(meta["uid"])
                self.end_foreground()
            return self.storage.read(kind, namespace, name)

    @staticmethod
    def _check_preconditions(kind: Kind, meta: Obj, uid: str | None, version: str | None) -> None:
        checks = (
            ("UID", uid, meta["uid"], "might have been deleted and then recreated"),
            ("ResourceVersion", version, meta["resourceVersion"], "might have been modified"),
        )
        for what, wanted, found, why in checks:
            if wanted is not None and wanted != found:
                said = f"the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). "
                raise modified(kind, meta["name"], f"{said}The object {why}")

    def _mark(self, kind: Kind, live: Obj, grace: int) -> None:
        meta = live["metadata"]
        when = datetime.now(UTC) + timedelta(seconds=grace)
        meta["deletionTimestamp"] = when.strftime("%Y-%m-%dT%H:%M:%SZ")
        meta["deletionGracePeriodSeconds"] = grace
        if kind.generation:
            meta["generation"] = meta.get("generation", 0) + 1
        self.storage.update(kind, live)

    @staticmethod
    def _add_finalizer(live: Obj, name: str) -> None:
        found = live["metadata"].setdefault("finalizers", [])
        if name not in found:
            found.append(name)

    def finish(self, kind: Kind, namespace: str, name: str) -> None:
        """Take out an object whose grace is over, as a kubelet does with a pod; one that is gone is fine."""
        with self.storage.changed:
            live = self.storage.read(kind, namespace, name)
            if live is not None and not live["metadata"].get("finalizers"):
                self._remove(kind, live)

    def _remove(self, kind: Kind, live: Obj) -> None:
        meta = live["metadata"]
        self.storage.remove(kind, meta.get("namespace", ""), meta["name"])
        self._collect(meta["uid"])
        self.end_foreground()

    def _collect(self, uid: str) -> None:
        """Delete what only this owner held."""
        alive = {obj["metadata"]["uid"] for kind in KINDS for obj in self.storage.peek(kind)} - {uid}
        for kind, obj in self.storage.everything():
            owners = obj["metadata"].get("ownerReferences") or []
            if not any(owner["uid"] == uid for owner in owners) or any(owner["uid"] in alive for owner in owners):
                continue
            namespace, name = obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
            if self.storage.read(kind, namespace, name) is not None:
                self.delete(kind, namespace, name)

    def collect_orphans(self) -> None:
        """Delete what names owners of which none is there: the garbage collector's round."""
        with self.storage.changed:
            alive = {obj["metadata"]["uid"] for kind in KINDS for obj in self.storage.peek(kind)}
            for kind in KINDS:
                for obj in self.storage.peek(kind):
                    meta = obj["metadata"]
                    owners = [owner["uid"] for owner in meta.get("ownerReferences") or []]
                    if owners and not alive & set(owners) and not meta.get("deletionTimestamp"):
                        self.delete(kind, meta.get("namespace", ""), meta["name"])

    def _orphan(self, uid: str) -> None:
        for kind, obj in self.storage.everything():
            owners = obj["metadata"].get("ownerReferences") or []
            if any(owner["uid"] == uid for owner in owners):
                obj["metadata"]["ownerReferences"] = [owner for owner in owners if owner["uid"] != uid]
                self.storage.update(kind, obj)

    def end_foreground(self) -> None:
        """Let go of owners that waited for their dependents, where none is left."""
        owners = {owner["uid"] for _, obj in self.storage.everything() for owner in _owners(obj)}
        for kind, obj in self.storage.everything():
            meta = obj["metadata"]
            if "foregroundDeletion" in (meta.get("finalizers") or []) and meta["uid"] not in owners:
                meta["finalizers"].remove("foregroundDeletion")
                live = self.storage.update(kind, obj)
                if not meta["finalizers"]:
                    self._remove(kind, live)

    # ----------------------------------------------------------------- schema

    def _problems(self, kind: Kind, obj: Obj) -> list[str]:
        obj = {key: value for key, value in obj.items() if key != "status"}
        if not kind.brought_by:
            return unknown_fields(kind, obj)
        if self.validator is None:
            return []
        obj = copy.deepcopy(obj)
        for field in SYSTEM_FIELDS - {"name", "namespace"}:
            obj["metadata"].pop(field, None)
        return worded(self.validator(obj), loose=kind is not INFERENCE_SERVICE)

    def _check_typed(self, kind: Kind, patch: Obj) -> None:
        problems = self._problems(kind, patch)
        wrong = [problem for problem in problems if is_untyped(problem)]
        if wrong:
            raise untyped(kind, patch, wrong)
        self._refuse_values(kind, patch, problems)

    def _check_schema(self, kind: Kind, obj: Obj, *, strict: bool) -> list[str]:
        """Warnings about unknown fields, which are dropped.

        Raises:
            Refusal: 400 for unknown fields where they are not allowed, 422 for wrong values.
        """
        problems = self._problems(kind, obj)
        unknown = [problem for problem in problems if is_unknown(problem)]
        self._refuse_values(kind, obj, [problem for problem in problems if problem not in unknown])
        fields = [problem.split(": ")[0].lstrip(".") for problem in unknown]
        if unknown and strict:
            said = ", ".join(f'unknown field "{field}"' for field in fields)
            start = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
            raise refusal(400, f"{start}strict decoding error: {said}")
        for field in fields:
            _prune(obj, field)
        return [f'unknown field "{field}"' for field in fields]

    def _refuse_values(self, kind: Kind, obj: Obj, problems: list[str]) -> None:
        if problems:
            rows = [problem.partition(": ") for problem in problems]
            causes = [(field.lstrip("."), "FieldValueInvalid", said or field) for field, _, said in rows]
            raise invalid(kind, obj["metadata"].get("name", ""), causes)


def _owners(obj: Obj) -> list[Obj]:
    owners: list[Obj] = obj["metadata"].get("ownerReferences") or []
    return owners


def _clean(kind: Kind, namespace: str, obj: Any, *, applied: bool = False) -> Obj:
    """A copy with the address that the URL gives it.

    Raises:
        Refusal: 400, the object is not of this kind or namespace.
    """
    if not isinstance(obj, dict) or not isinstance(obj.get("metadata", {}), dict):
        raise refusal(400, "the object provided is unrecognized (must be of type Object)")
    obj = copy.deepcopy(obj)
    said = (obj.setdefault("apiVersion", kind.api_version), obj.setdefault("kind", kind.kind))
    if said != (kind.api_version, kind.kind):
        raise refusal(400, f"the API version in the data ({said[0]}) does not match the expected ({kind.api_version})")
    meta = obj.setdefault("metadata", {})
    if kind.namespaced and meta.setdefault("namespace", namespace) != namespace:
        raise refusal(
            400,
            f"the namespace of the provided object does not match the namespace sent on the request "
            f"({meta['namespace']} vs {namespace})",
        )
    if applied and meta.get("managedFields"):
        raise refusal(400, "metadata.managedFields must be nil")
    for key in ("creationTimestamp", "deletionTimestamp", "generation", "uid"):
        if applied or key != "uid":
            meta.pop(key, None)
    return cast(Obj, obj)


def _prune(obj: Any, path: str) -> None:
    *way, last = path.replace("[", ".").replace("]", "").split(".")
    for step in way:
        try:
            obj = obj[int(step)] if isinstance(obj, list) else obj.get(step)
        except (AttributeError, IndexError, ValueError):
            return
    if isinstance(obj, dict):
        obj.pop(last, None)


__all__ = ["Admission", "Objects", "Propagation", "Refusal", "Validator"]
