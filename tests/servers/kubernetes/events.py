"""Events as the parts of a real cluster write them, and the clock that its stand-ins live by."""

import hashlib
import time

from tests.servers.kubernetes.kinds import EVENT, Obj
from tests.servers.kubernetes.objects import Objects
from tests.servers.kubernetes.storage import micro_now, now


class Clock:
    """Time of the cluster: seconds that pass `speed` times as fast. Timestamps in objects are real ones."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._start = time.monotonic()

    def now_s(self) -> float:
        return (time.monotonic() - self._start) * self.speed


class Recorder:
    """Writes events; the same one again only counts up."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def add(self, about: Obj, kind: str, reason: str, message: str, component: str, *, host: str = "") -> None:
        """An event about an object, in the form of core/v1.

        Args:
            about: The object.
            kind: `Normal` or `Warning`.
            reason: One word.
            message: As the real component words it.
            component: Who says it.
            host: Node, for a kubelet.
        """
        old = self._find(about, reason, message)
        if old is not None:
            self._store(old | {"count": old["count"] + 1, "lastTimestamp": now()})
            return
        moment = now()
        event = self._head(about, reason, message, kind)
        event |= {"firstTimestamp": moment, "lastTimestamp": moment, "count": 1, "eventTime": None}
        event["source"] = {"component": component} | ({"host": host} if host else {})
        self._create(event | {"reportingComponent": component, "reportingInstance": host})

    def add_once(self, about: Obj, kind: str, reason: str, message: str, component: str) -> None:
        """An event, unless it has been written before."""
        if self._find(about, reason, message) is None:
            self.add(about, kind, reason, message, component)

    def add_scheduling(self, about: Obj, kind: str, reason: str, message: str) -> None:
        """An event of the scheduler, in the newer API: read as core/v1 it has an eventTime and no timestamps."""
        old = self._find(about, reason, message)
        if old is not None:
            count = (old.get("series") or {"count": 1})["count"] + 1
            self._store(old | {"series": {"count": count, "lastObservedTime": micro_now()}})
            return
        event = self._head(about, reason, message, kind)
        event |= {"firstTimestamp": None, "lastTimestamp": None, "eventTime": micro_now(), "source": {}}
        event |= {"reportingComponent": "default-scheduler", "reportingInstance": "default-scheduler-control-plane-0"}
        self._create(event | {"action": "Scheduling"})

    def _head(self, about: Obj, reason: str, message: str, kind: str) -> Obj:
        meta = about["metadata"]
        mark = hashlib.sha256(f"{meta['uid']}{reason}{message}".encode()).hexdigest()[:16]
        involved = {"kind": about["kind"], "namespace": meta.get("namespace", ""), "name": meta["name"]}
        involved |= {"uid": meta["uid"], "apiVersion": about["apiVersion"], "resourceVersion": meta["resourceVersion"]}
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{mark}", "namespace": meta.get("namespace") or "default"},
            "involvedObject": involved,
            "reason": reason,
            "message": message,
            "type": kind,
        }

    def _find(self, about: Obj, reason: str, message: str) -> Obj | None:
        meta = about["metadata"]
        for event in self._objects.storage.peek(EVENT, meta.get("namespace") or "default"):
            same = (event["involvedObject"]["uid"], event["reason"], event["message"])
            if same == (meta["uid"], reason, message):
                return event
        return None

    def _create(self, event: Obj) -> None:
        self._objects.create(EVENT, event["metadata"]["namespace"], event)

    def _store(self, event: Obj) -> None:
        self._objects.storage.update(EVENT, event)
