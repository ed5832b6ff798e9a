"""Server-side apply and merge patches, with the record of who manages which field."""

import copy
import json
from typing import Any

from tests.servers.kubernetes.fieldsets import (
    Path,
    from_fields,
    is_atomic,
    is_set,
    item_step,
    keys_of,
    paths_of,
    shown,
    to_fields,
)
from tests.servers.kubernetes.kinds import Kind, Obj
from tests.servers.kubernetes.statuses import Refusal, refusal
from tests.servers.kubernetes.storage import now


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes, lists are replaced."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


# ---------------------------------------------------------------- ownership


def entry(obj: Obj, manager: str, operation: str, subresource: str = "") -> Obj | None:
    """The entry of one manager in `managedFields`."""
    wanted = (manager, operation, subresource)
    entries: list[Obj] = obj["metadata"].get("managedFields") or []
    for found in entries:
        if (found["manager"], found["operation"], found.get("subresource", "")) == wanted:
            return found
    return None


def owned(obj: Obj, manager: str, operation: str, subresource: str = "") -> set[Path]:
    found = entry(obj, manager, operation, subresource)
    return from_fields(found["fieldsV1"]) if found else set()


def _record(obj: Obj, kind: Kind, manager: str, operation: str, paths: set[Path], subresource: str = "") -> None:
    """Say that a manager owns exactly `paths`."""
    found = entry(obj, manager, operation, subresource)
    fields = to_fields(paths)
    if found is not None and found["fieldsV1"] == fields:
        return
    entries = [other for other in obj["metadata"].get("managedFields") or [] if other is not found]
    if paths:
        new: Obj = {"manager": manager, "operation": operation, "apiVersion": kind.api_version, "time": now()}
        new |= {"fieldsType": "FieldsV1", "fieldsV1": fields}
        entries.append(new | ({"subresource": subresource} if subresource else {}))
    obj["metadata"]["managedFields"] = entries


def _take(obj: Obj, paths: set[Path], keep: Obj | None) -> None:
    """Take fields from every manager but the one of the entry `keep`."""
    for other in list(obj["metadata"].get("managedFields") or []):
        if other is keep:
            continue
        left = from_fields(other["fieldsV1"]) - paths
        if left:
            other["fieldsV1"] = to_fields(left)
        else:
            obj["metadata"]["managedFields"].remove(other)


def note_update(kind: Kind, old: Obj | None, new: Obj, manager: str, subresource: str = "") -> None:
    """Record in `new` that a plain write by `manager` made it from `old`: what changed is the manager's from now on."""
    if old is not None:
        new["metadata"]["managedFields"] = copy.deepcopy(old["metadata"].get("managedFields") or [])
    without = frozenset({"status"}) if kind.status and not subresource else frozenset()
    before = paths_of(old, without=without) if old is not None else {}
    after = paths_of(new, without=without)
    changed = {path for path, value in after.items() if path not in before or before[path] != value}
    _take(new, changed, entry(new, manager, "Update", subresource))
    _take(new, set(before) - set(after), None)
    mine = owned(new, manager, "Update", subresource)
    if changed - mine:
        _record(new, kind, manager, "Update", mine | changed, subresource)


# -------------------------------------------------------------------- apply


def apply(kind: Kind, live: Obj | None, patch: Obj, manager: str, *, force: bool) -> Obj:
    """What comes of applying `patch` to `live`; the same object as `live` if nothing changes.

    Raises:
        Refusal: 409, another manager owns a field that would change.
    """
    patch = {key: value for key, value in patch.items() if not (key == "status" and kind.status)}
    patch["metadata"] = {key: value for key, value in patch["metadata"].items() if key != "managedFields"}
    wanted = paths_of(patch)
    base: Obj = copy.deepcopy(live) if live is not None else {}
    mine = owned(base, manager, "Apply") if live is not None else set()
    conflicts = _conflicts(base, wanted, manager) if live is not None else {}
    if conflicts and not force:
        raise _conflict(conflicts)
    merged: Obj = _merge(base, patch, "")
    if live is not None:
        meta = live["metadata"]
        merged["metadata"] |= {key: meta[key] for key in ("name", "uid", "resourceVersion") if key in meta}
        _take(merged, {path for _, path in conflicts}, entry(merged, manager, "Apply"))
        _drop(merged, _given_up(mine - set(wanted), _owned_by_others(merged, manager)))
    _record(merged, kind, manager, "Apply", set(wanted))
    return live if live is not None and live == merged else merged


def _conflicts(live: Obj, wanted: dict[Path, Any], manager: str) -> dict[tuple[int, Path], str]:
    """Fields that the patch would change and that somebody else owns, by entry and path, with that manager's name."""
    present = paths_of(live)
    found: dict[tuple[int, Path], str] = {}
    for number, other in enumerate(live["metadata"].get("managedFields") or []):
        if (other["manager"], other["operation"]) == (manager, "Apply"):
            continue
        for path in sorted(from_fields(other["fieldsV1"])):
            if path in wanted and path in present and wanted[path] != present[path]:
                found[number, path] = _manager_shown(other)
    return found


def _manager_shown(other: Obj) -> str:
    name = f'"{other["manager"]}"'
    if other.get("subresource"):
        name += f' with subresource "{other["subresource"]}"'
    if other["operation"] == "Update":
        name += f" using {other['apiVersion']} at {other['time']}"
    return name


def _conflict(conflicts: dict[tuple[int, Path], str]) -> Refusal:
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {name}", "field": shown(path)}
        for (_, path), name in conflicts.items()
    ]
    if len(causes) == 1:
        message = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        by_manager: dict[str, list[str]] = {}
        for (_, path), name in conflicts.items():
            by_manager.setdefault(name, []).append(f"- {shown(path)}")
        listed = [f"conflicts with {name}:\n" + "\n".join(rows) for name, rows in sorted(by_manager.items())]
        message = f"Apply failed with {len(causes)} conflicts: " + "\n".join(listed)
    return refusal(409, message, details={"causes": causes})


def _owned_by_others(obj: Obj, manager: str) -> set[Path]:
    found: set[Path] = set()
    for other in obj["metadata"].get("managedFields") or []:
        if (other["manager"], other["operation"]) != (manager, "Apply"):
            found |= from_fields(other["fieldsV1"])
    return found


def _given_up(dropped: set[Path], others: set[Path]) -> set[Path]:
    """The fields that go away with a manager; an item of a list stays while anything in it is somebody else's."""
    held = {path[:length] for path in others for length in range(1, len(path))}
    return {path for path in dropped - others if not (path[-1] == "." and path[:-1] in held)}


def _merge(live: Any, patch: Any, name: str) -> Any:
    if is_atomic(name):
        return copy.deepcopy(patch)
    if isinstance(patch, dict) and isinstance(live, dict):
        result = dict(live)
        for key, value in patch.items():
            if value is not None:
                result[key] = _merge(live.get(key), value, key)
        return result
    if isinstance(patch, list) and is_set(name):
        return [*(live or []), *(item for item in patch if item not in (live or []))]
    keys = keys_of(name, patch)
    if keys is not None and isinstance(live, list):
        mine = {item_step(item, keys): item for item in live}
        new = {item_step(item, keys): item for item in patch}
        merged = [_merge(item, new[step], "") if step in new else item for step, item in mine.items()]
        return merged + [_merge({}, item, "") for step, item in new.items() if step not in mine]
    if isinstance(patch, dict):
        return _merge({}, patch, name)
    return copy.deepcopy(patch)


def _drop(obj: Obj, paths: set[Path]) -> None:
    """Take fields out of an object, and maps that are empty without them."""
    for path in sorted(paths, key=len, reverse=True):
        _drop_one(obj, path)


def _drop_one(node: Any, path: Path) -> None:
    step, rest = path[0], path[1:]
    kind, _, name = step.partition(":")
    if kind != "f" or not isinstance(node, dict) or name not in node:
        return
    inner = node[name]
    if not rest:
        del node[name]
    elif isinstance(inner, list):
        _drop_item(inner, name, rest)
        if not inner:
            del node[name]
    else:
        _drop_one(inner, rest)
        if inner == {}:
            del node[name]


def _drop_item(items: list[Any], name: str, path: Path) -> None:
    step, rest = path[0], path[1:]
    if step.startswith("v:"):
        items[:] = [item for item in items if step != "v:" + json.dumps(item)]
        return
    keys = keys_of(name, items) or ()
    for item in list(items):
        if item_step(item, keys) != step:
            continue
        if rest in ((), (".",)):
            items.remove(item)
        else:
            _drop_one(item, rest)
