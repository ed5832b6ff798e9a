"""The objects of a cluster with their versions, and the history that watches read."""

import copy
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from tests.servers.kubernetes.kinds import KINDS, Kind, Obj
from tests.servers.kubernetes.statuses import expired

_FIRST_VERSION = 1000


@dataclass(frozen=True)
class Change:
    """One step in the history.

    Attributes:
        before: The object as it was; None when it was made.
        after: The object as it is; None when it is gone. `version` then is that of its end.
    """

    version: int
    kind: Kind
    namespace: str
    before: Obj | None
    after: Obj | None


def now() -> str:
    """The time as Kubernetes writes it, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Storage:
    """What etcd is to a real server. Every object that goes in or out is a copy.

    Attributes:
        changed: Notified at each change; its lock guards everything here and may be held over several calls.
        version: Of the last change.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = _FIRST_VERSION
        self._objects: dict[Kind, dict[tuple[str, str], Obj]] = {kind: {} for kind in KINDS}
        self._history: list[Change] = []
        self._oldest = _FIRST_VERSION

    def read(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        with self.changed:
            return copy.deepcopy(self._objects[kind].get((namespace, name)))

    def find(self, kind: Kind, namespace: str = "") -> list[Obj]:
        """Objects of a kind by namespace and name; "" looks everywhere."""
        with self.changed:
            rows = sorted(self._objects[kind].items(), key=lambda row: row[0])
            return [copy.deepcopy(obj) for (place, _), obj in rows if namespace in ("", place)]

    def everything(self) -> list[tuple[Kind, Obj]]:
        with self.changed:
            return [(kind, copy.deepcopy(obj)) for kind, rows in self._objects.items() for obj in rows.values()]

    def peek(self, kind: Kind, namespace: str = "") -> list[Obj]:
        """As `find`, but the objects themselves, for reading only and with the lock held."""
        return [obj for (place, _), obj in self._objects[kind].items() if namespace in ("", place)]

    def insert(self, kind: Kind, obj: Obj) -> Obj:
        """Store an object that is new: uid, version, generation and time of creation are given here."""
        with self.changed:
            obj = copy.deepcopy(obj)
            meta = obj["metadata"]
            meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
            if kind.generation:
                meta["generation"] = 1
            return self._write(kind, None, obj)

    def update(self, kind: Kind, obj: Obj) -> Obj:
        """Store a new state of an object: a new version, and a new generation when more than its status changed."""
        with self.changed:
            meta = obj["metadata"]
            old = self._objects[kind][meta.get("namespace", ""), meta["name"]]
            if old == obj:
                return copy.deepcopy(old)
            obj = copy.deepcopy(obj)
            if kind.generation and _contents(old) != _contents(obj):
                obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
            return self._write(kind, old, obj)

    def remove(self, kind: Kind, namespace: str, name: str) -> Obj:
        """Take an object out and give its last state."""
        with self.changed:
            old = self._objects[kind].pop((namespace, name))
            self.version += 1
            last = copy.deepcopy(old)
            last["metadata"]["resourceVersion"] = str(self.version)
            self._note(Change(self.version, kind, namespace, old, None))
            return last

    def _write(self, kind: Kind, old: Obj | None, obj: Obj) -> Obj:
        self.version += 1
        meta = obj["metadata"]
        meta["resourceVersion"] = str(self.version)
        namespace = meta.get("namespace", "")
        self._objects[kind][namespace, meta["name"]] = obj
        self._note(Change(self.version, kind, namespace, old, obj))
        return copy.deepcopy(obj)

    def _note(self, change: Change) -> None:
        self._history.append(change)
        self.changed.notify_all()

    # ---------------------------------------------------------------- history

    def since(self, version: int) -> list[Change]:
        """What happened after a version.

        Raises:
            Refusal: 410, that is longer ago than the history goes back.
        """
        with self.changed:
            if version < self._oldest:
                raise expired(version, self._oldest)
            return [change for change in self._history if change.version > version]

    def check_age(self, version: int) -> None:
        """Raises:
        Refusal: 410, `version` is longer ago than the history goes back.
        """
        if version < self._oldest:
            raise expired(version, self._oldest)

    def forget(self) -> None:
        """Forget the history, as etcd's compaction does: every older version is too old from now on."""
        with self.changed:
            self.version += 1
            self._oldest = self.version
            self._history.clear()
            self.changed.notify_all()


def _contents(obj: Obj) -> Obj:
    return {key: value for key, value in obj.items() if key not in ("metadata", "status")}
