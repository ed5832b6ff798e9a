"""Sets of fields, as `managedFields` keeps them: which list is a map by which keys, and what differs between objects.

A path is a tuple of steps as `fieldsV1` writes them: `f:spec`, `k:{"name":"x"}`, `v:"x"`, and `.` for an item itself.
"""

import json
from collections.abc import Iterator
from typing import Any

Path = tuple[str, ...]

#: Lists that are maps, by the name of their field: the keys, with the default of one that may be missing.
LIST_KEYS: dict[str, tuple[tuple[str, Any], ...]] = {
    "containers": (("name", None),),
    "initContainers": (("name", None),),
    "env": (("name", None),),
    "volumes": (("name", None),),
    "volumeMounts": (("mountPath", None),),
    "conditions": (("type", None),),
    "ownerReferences": (("uid", None),),
    "imagePullSecrets": (("name", None),),
    "topologySpreadConstraints": (("topologyKey", None), ("whenUnsatisfiable", None)),
}
_CONTAINER_PORTS = (("containerPort", None), ("protocol", "TCP"))
_SERVICE_PORTS = (("port", None), ("protocol", "TCP"))
_SETS = frozenset({"finalizers"})
_ATOMIC = frozenset({"nodeSelector", "selector", "labelSelector", "matchLabels", "secretKeyRef", "fieldRef"})

#: Metadata that the server gives, or that is the object's address.
SYSTEM_FIELDS = frozenset(
    {"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"}
    | {"deletionGracePeriodSeconds", "managedFields", "selfLink"}
)


def keys_of(name: str, items: Any) -> tuple[tuple[str, Any], ...] | None:
    """The keys by which a list is a map; None: it is not, and changes as a whole."""
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return None
    if name == "ports":
        return _CONTAINER_PORTS if any("containerPort" in item for item in items) else _SERVICE_PORTS
    return LIST_KEYS.get(name)


def item_step(item: dict[str, Any], keys: tuple[tuple[str, Any], ...]) -> str:
    chosen = {key: item.get(key, default) for key, default in keys}
    return "k:" + json.dumps(chosen, separators=(",", ":"), ensure_ascii=False)


def is_set(name: str) -> bool:
    return name in _SETS


def is_atomic(name: str) -> bool:
    return name in _ATOMIC


def paths_of(obj: dict[str, Any], *, without: frozenset[str] = frozenset()) -> dict[Path, Any]:
    """The fields that an object sets, each with its value."""
    found: dict[Path, Any] = {}
    for name, value in obj.items():
        if name in ("apiVersion", "kind") or name in without:
            continue
        if name == "metadata":
            value = {key: inner for key, inner in value.items() if key not in SYSTEM_FIELDS}
            if not value:
                continue
        found |= dict(_walk((f"f:{name}",), name, value))
    return found


def _walk(path: Path, name: str, value: Any) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict) and value and name not in _ATOMIC:
        for key, inner in value.items():
            yield from _walk((*path, f"f:{key}"), key, inner)
        return
    if isinstance(value, list) and is_set(name):
        for item in value:
            yield (*path, "v:" + json.dumps(item)), item
        return
    keys = keys_of(name, value)
    if keys is None or not value:
        yield path, value
        return
    for item in value:
        step = item_step(item, keys)
        yield (*path, step, "."), True
        for key, inner in item.items():
            yield from _walk((*path, step, f"f:{key}"), key, inner)


def to_fields(paths: set[Path]) -> dict[str, Any]:
    """Paths as `fieldsV1`."""
    tree: dict[str, Any] = {}
    for path in sorted(paths):
        node = tree
        for step in path:
            node = node.setdefault(step, {})
    return tree


def from_fields(tree: dict[str, Any]) -> set[Path]:
    """`fieldsV1` as paths."""
    found: set[Path] = set()

    def walk(node: dict[str, Any], path: Path) -> None:
        if not node and path:
            found.add(path)
        for step, inner in node.items():
            walk(inner, (*path, step))

    walk(tree, ())
    return found


def shown(path: Path) -> str:
    """A path as messages write it: `.spec.containers[name="x"].image`."""
    text = ""
    for step in path:
        kind, _, rest = step.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            chosen = json.loads(rest)
            text += "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in chosen.items()) + "]"
        elif kind == "v":
            text += f"[={rest}]"
    return text
