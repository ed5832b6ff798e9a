"""The deployment and replica set controllers: rollouts by the rules of the real ones."""

import hashlib
import json
import math

from tests.servers.kubernetes.events import Clock, Recorder
from tests.servers.kubernetes.kinds import DEPLOYMENT, POD, REPLICA_SET, Obj
from tests.servers.kubernetes.objects import Objects
from tests.servers.kubernetes.statuses import Refusal
from tests.servers.kubernetes.storage import now

_RETRY_S = (5.0, 300.0)  # after a pod was refused: at first, doubled each time, and at most


def condition_of(obj: Obj, kind: str) -> Obj:
    """A condition of an object; {} if it has none of that kind."""
    found = (obj.get("status") or {}).get("conditions") or []
    return next((row for row in found if row["type"] == kind), {})


def is_ready(pod: Obj) -> bool:
    return condition_of(pod, "Ready").get("status") == "True" and not pod["metadata"].get("deletionTimestamp")


def owned_by(rows: list[Obj], uid: str) -> list[Obj]:
    return [row for row in rows if any(o["uid"] == uid for o in row["metadata"].get("ownerReferences") or [])]


def owner_reference(obj: Obj) -> Obj:
    meta = obj["metadata"]
    reference = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": meta["name"], "uid": meta["uid"]}
    return reference | {"controller": True, "blockOwnerDeletion": True}


def with_condition(conditions: list[Obj], kind: str, status: str, reason: str, message: str) -> list[Obj]:
    """Conditions with one of them set; its time of transition moves only when its status does."""
    old = next((row for row in conditions if row["type"] == kind), None)
    if old is not None and (old["status"], old["reason"], old["message"]) == (status, reason, message):
        return conditions
    moment = now()
    crossed = moment if old is None or old["status"] != status else old["lastTransitionTime"]
    new = {"type": kind, "status": status, "lastUpdateTime": moment, "lastTransitionTime": crossed}
    return [row for row in conditions if row is not old] + [new | {"reason": reason, "message": message}]


class ReplicaSets:
    """Makes and deletes pods until there are as many as a replica set wants."""

    def __init__(self, objects: Objects, recorder: Recorder, clock: Clock) -> None:
        self._objects = objects
        self._recorder = recorder
        self._clock = clock
        self._retry_at: dict[str, float] = {}
        self._pause_s: dict[str, float] = {}

    def step(self) -> None:
        for found in self._objects.storage.find(REPLICA_SET):
            if not found["metadata"].get("deletionTimestamp"):
                self._sync(found)

    def _sync(self, found: Obj) -> None:
        meta = found["metadata"]
        pods = owned_by(self._objects.storage.find(POD, meta["namespace"]), meta["uid"])
        alive = [pod for pod in pods if _counts(pod)]
        failure = self._fill(found, found["spec"]["replicas"] - len(alive))
        for pod in sorted(alive, key=is_ready)[: max(0, len(alive) - found["spec"]["replicas"])]:
            name = pod["metadata"]["name"]
            self._objects.delete(POD, meta["namespace"], name)
            self._recorder.add(found, "Normal", "SuccessfulDelete", f"Deleted pod: {name}", "replicaset-controller")
        self._report(found, failure)

    def _fill(self, found: Obj, missing: int) -> str | None:
        """Make pods; the words of a refusal, "" for none, None to leave what was said."""
        uid = found["metadata"]["uid"]
        if missing <= 0:
            return ""
        if self._clock.now_s() < self._retry_at.get(uid, 0.0):
            return None
        for _ in range(missing):
            try:
                self._create(found)
            except Refusal as refused:
                pause = self._pause_s.get(uid, _RETRY_S[0])
                self._retry_at[uid] = self._clock.now_s() + pause
                self._pause_s[uid] = min(2 * pause, _RETRY_S[1])
                said = str(refused)
                self._recorder.add(found, "Warning", "FailedCreate", f"Error creating: {said}", "replicaset-controller")
                return said
        return ""

    def _create(self, found: Obj) -> None:
        template, meta = found["spec"]["template"], found["metadata"]
        pod_meta = {**template["metadata"], "generateName": f"{meta['name']}-", "namespace": meta["namespace"]}
        pod_meta["ownerReferences"] = [owner_reference(found)]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": pod_meta, "spec": template["spec"]}
        made, _ = self._objects.create(POD, meta["namespace"], pod)
        self._recorder.add(
            found, "Normal", "SuccessfulCreate", f"Created pod: {made['metadata']['name']}", "replicaset-controller"
        )

    def _report(self, found: Obj, failure: str | None) -> None:
        meta = found["metadata"]
        pods = owned_by(self._objects.storage.find(POD, meta["namespace"]), meta["uid"])
        alive = [pod for pod in pods if _counts(pod)]
        ready = sum(is_ready(pod) for pod in alive)
        conditions = (found.get("status") or {}).get("conditions") or []
        if failure:
            conditions = with_condition(conditions, "ReplicaFailure", "True", "FailedCreate", failure)
        elif failure == "":
            conditions = [row for row in conditions if row["type"] != "ReplicaFailure"]
        status: Obj = {"replicas": len(alive), "readyReplicas": ready, "availableReplicas": ready}
        status |= {"observedGeneration": meta["generation"], "conditions": conditions}
        current = self._objects.storage.read(REPLICA_SET, meta["namespace"], meta["name"])
        if current is not None:
            self._objects.storage.update(REPLICA_SET, current | {"status": status})


class Deployments:
    """Rolls out templates: Recreate and RollingUpdate, progress and its deadline."""

    def __init__(self, objects: Objects, recorder: Recorder, clock: Clock) -> None:
        self._objects = objects
        self._recorder = recorder
        self._clock = clock
        self._progress: dict[str, tuple[object, float]] = {}

    def step(self) -> None:
        for found in self._objects.storage.find(DEPLOYMENT):
            if not found["metadata"].get("deletionTimestamp"):
                self._sync(found)

    def _sync(self, found: Obj) -> None:
        meta = found["metadata"]
        mark = template_hash(found["spec"]["template"])
        sets = owned_by(self._objects.storage.find(REPLICA_SET, meta["namespace"]), meta["uid"])
        new = next((row for row in sets if row["metadata"]["labels"]["pod-template-hash"] == mark), None)
        old = [row for row in sets if row is not new]
        if found["spec"]["strategy"]["type"] == "Recreate":
            new = self._recreate(found, mark, new, old)
        else:
            new = self._roll(found, mark, new, old)
        self._report(found, new, old)

    # ---------------------------------------------------------------- rollout

    def _recreate(self, found: Obj, mark: str, new: Obj | None, old: list[Obj]) -> Obj | None:
        for row in old:
            self._scale(found, row, 0)
        pods = self._objects.storage.find(POD, found["metadata"]["namespace"])
        if any(owned_by(pods, row["metadata"]["uid"]) for row in old):
            return new
        new = new or self._make_set(found, mark)
        return self._scale(found, new, found["spec"]["replicas"])

    def _roll(self, found: Obj, mark: str, new: Obj | None, old: list[Obj]) -> Obj:
        wanted = found["spec"]["replicas"]
        surge, unavailable = rolling_limits(found)
        new = new or self._make_set(found, mark)
        total = sum(row["spec"]["replicas"] for row in [new, *old])
        more = min(wanted + surge - total, wanted - new["spec"]["replicas"])
        if more > 0:
            return self._scale(found, new, new["spec"]["replicas"] + more)
        if new["spec"]["replicas"] > wanted:
            return self._scale(found, new, wanted)
        self._shrink_old(found, new, old, wanted - unavailable)
        return new

    def _shrink_old(self, found: Obj, new: Obj, old: list[Obj], least: int) -> None:
        total = sum(row["spec"]["replicas"] for row in [new, *old])
        room = total - least - (new["spec"]["replicas"] - _available(new))
        for row in old:  # first those that serve nobody
            drop = min(room, row["spec"]["replicas"] - _available(row))
            if drop > 0:
                room -= drop
                self._scale(found, row, row["spec"]["replicas"] - drop)
        spare = min(room, sum(_available(row) for row in [new, *old]) - least)
        for row in old:
            drop = min(spare, row["spec"]["replicas"])
            if drop > 0:
                spare -= drop
                self._scale(found, row, row["spec"]["replicas"] - drop)

    def _make_set(self, found: Obj, mark: str) -> Obj:
        meta, template = found["metadata"], found["spec"]["template"]
        labels = {**(template["metadata"].get("labels") or {}), "pod-template-hash": mark}
        body = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{meta['name']}-{mark}",
                "namespace": meta["namespace"],
                "labels": labels,
                "ownerReferences": [owner_reference(found)],
            },
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {**found["spec"]["selector"]["matchLabels"], "pod-template-hash": mark}},
                "template": {**template, "metadata": {**template["metadata"], "labels": labels}},
            },
        }
        made, _ = self._objects.create(REPLICA_SET, meta["namespace"], body)
        return made

    def _scale(self, found: Obj, row: Obj, replicas: int) -> Obj:
        before = row["spec"]["replicas"]
        if before == replicas:
            return row
        row["spec"]["replicas"] = replicas
        way = "up" if replicas > before else "down"
        said = f"Scaled {way} replica set {row['metadata']['name']} from {before} to {replicas}"
        self._recorder.add(found, "Normal", "ScalingReplicaSet", said, "deployment-controller")
        stored = self._objects.storage.update(REPLICA_SET, row)
        row["metadata"] = stored["metadata"]
        return row

    # ----------------------------------------------------------------- status

    def _report(self, found: Obj, new: Obj | None, old: list[Obj]) -> None:
        rows = [*([new] if new is not None else []), *old]
        meta, wanted = found["metadata"], found["spec"]["replicas"]
        counts = {key: sum((row.get("status") or {}).get(key, 0) for row in rows) for key in _COUNTS}
        updated = ((new or {}).get("status") or {}).get("replicas", 0)
        status: Obj = {"observedGeneration": meta["generation"]} | {key: n for key, n in counts.items() if n}
        if updated:
            status["updatedReplicas"] = updated
        if wanted > counts["availableReplicas"]:
            status["unavailableReplicas"] = max(wanted, counts["replicas"]) - counts["availableReplicas"]
        conditions = (found.get("status") or {}).get("conditions") or []
        conditions = self._availability(found, conditions, counts["availableReplicas"])
        conditions = self._progressing(found, conditions, new, (updated, counts))
        failed = next((row for row in map(_failure, rows) if row), None)
        conditions = [row for row in conditions if row["type"] != "ReplicaFailure" or failed]
        if failed:
            conditions = with_condition(conditions, "ReplicaFailure", "True", failed["reason"], failed["message"])
        status["conditions"] = conditions
        self._objects.storage.update(DEPLOYMENT, found | {"status": status})

    @staticmethod
    def _availability(found: Obj, conditions: list[Obj], available: int) -> list[Obj]:
        recreate = found["spec"]["strategy"]["type"] == "Recreate"
        least = found["spec"]["replicas"] - (0 if recreate else rolling_limits(found)[1])
        if available >= least:
            said = "Deployment has minimum availability."
            return with_condition(conditions, "Available", "True", "MinimumReplicasAvailable", said)
        said = "Deployment does not have minimum availability."
        return with_condition(conditions, "Available", "False", "MinimumReplicasUnavailable", said)

    def _progressing(
        self, found: Obj, conditions: list[Obj], new: Obj | None, seen: tuple[int, dict[str, int]]
    ) -> list[Obj]:
        updated, counts = seen
        wanted, uid = found["spec"]["replicas"], found["metadata"]["uid"]
        name = new["metadata"]["name"] if new is not None else found["metadata"]["name"]
        mark = (name, updated, tuple(counts.values()))
        if self._progress.get(uid, (None,))[0] != mark:
            self._progress[uid] = (mark, self._clock.now_s())
        if updated == wanted == counts["replicas"] == counts["availableReplicas"]:
            said = f'ReplicaSet "{name}" has successfully progressed.'
            return with_condition(conditions, "Progressing", "True", "NewReplicaSetAvailable", said)
        last = next((row for row in conditions if row["type"] == "Progressing"), {})
        if last.get("reason") == "NewReplicaSetAvailable" and f'"{name}"' in last["message"]:
            return conditions  # a rollout that was complete stays so when a pod dies later
        idle_s = self._clock.now_s() - self._progress[uid][1]
        if idle_s > found["spec"]["progressDeadlineSeconds"]:
            said = f'ReplicaSet "{name}" has timed out progressing.'
            return with_condition(conditions, "Progressing", "False", "ProgressDeadlineExceeded", said)
        said = f'ReplicaSet "{name}" is progressing.'
        return with_condition(conditions, "Progressing", "True", "ReplicaSetUpdated", said)


_COUNTS = ("replicas", "readyReplicas", "availableReplicas")


def template_hash(template: Obj) -> str:
    text = json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def rolling_limits(found: Obj) -> tuple[int, int]:
    """maxSurge and maxUnavailable in pods: the first rounded up, the second down, and not both 0."""
    rolling, wanted = found["spec"]["strategy"].get("rollingUpdate") or {}, found["spec"]["replicas"]
    surge = _share(rolling.get("maxSurge", "25%"), wanted, up=True)
    unavailable = _share(rolling.get("maxUnavailable", "25%"), wanted, up=False)
    return surge, unavailable or (0 if surge else 1)


def _share(value: object, wanted: int, *, up: bool) -> int:
    if isinstance(value, int):
        return value
    part = float(str(value).removesuffix("%")) * wanted / 100
    return math.ceil(part) if up else math.floor(part)


def _available(row: Obj) -> int:
    found: int = (row.get("status") or {}).get("availableReplicas", 0)
    return found


def _failure(row: Obj) -> Obj:
    return condition_of(row, "ReplicaFailure")


def _counts(pod: Obj) -> bool:
    """Whether a pod is one of those that a replica set wants: not on its way out, not over."""
    over = (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")
    return not over and not pod["metadata"].get("deletionTimestamp")
