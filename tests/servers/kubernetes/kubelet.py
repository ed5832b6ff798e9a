"""The kubelets of all nodes: they let pods live as their scenario says, end them, and have their logs."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.servers.kubernetes.kinds import POD, Obj
from tests.servers.kubernetes.lives import PodLife
from tests.servers.kubernetes.statuses import refusal
from tests.servers.kubernetes.verbs import Logs

if TYPE_CHECKING:
    from tests.servers.kubernetes.cluster import FakeCluster

#: Annotation of pods that only take room: no kubelet touches them.
STATIC = "stand-in/static"


class Kubelet(Logs):
    """Advances the lives of pods that have a node.

    Attributes:
        due_s: Cluster time at which the next of them goes on.
    """

    def __init__(self, cluster: "FakeCluster") -> None:
        self._cluster = cluster
        self._lives: dict[str, PodLife] = {}
        self._scripts: dict[str, tuple[Iterator[float], float]] = {}
        self._ending: dict[str, float] = {}
        self._born: dict[str, int] = {}
        self.due_s = math.inf

    def step(self) -> None:
        self.due_s = math.inf
        pods = [pod for pod in self._cluster.objects.storage.find(POD) if pod["spec"].get("nodeName")]
        for pod in sorted(pods, key=lambda pod: int(pod["metadata"]["resourceVersion"])):
            if STATIC in (pod["metadata"].get("annotations") or {}):
                if pod["metadata"].get("deletionTimestamp"):
                    self._cluster.objects.finish(POD, pod["metadata"]["namespace"], pod["metadata"]["name"])
            elif pod["metadata"].get("deletionTimestamp"):
                self._end(pod)
            else:
                self._advance(pod)

    def life(self, name: str) -> PodLife | None:
        """The life of a pod by its name."""
        return next((life for life in self._lives.values() if life.name == name), None)

    def _advance(self, pod: Obj) -> None:
        uid, now_s = pod["metadata"]["uid"], self._cluster.clock.now_s()
        if uid not in self._scripts:
            service = (pod["metadata"].get("labels") or {}).get("serving.kserve.io/inferenceservice", "")
            number = self._born.get(service, 0)
            self._born[service] = number + 1
            life = self._lives[uid] = PodLife(self._cluster, pod, number)
            self._scripts[uid] = (self._cluster.scenario_of(service).life(life), now_s)
        script, due = self._scripts[uid]
        while due <= now_s:
            due += next(script, math.inf)
        self._scripts[uid] = (script, due)
        self.due_s = min(self.due_s, due)

    def _end(self, pod: Obj) -> None:
        meta, now_s = pod["metadata"], self._cluster.clock.now_s()
        life = self._lives.get(meta["uid"])
        if meta["uid"] not in self._ending:
            if life is not None and life.is_up:
                life.event("Normal", "Killing", f"Stopping container {life.container['name']}")
                life.ready(False)
            grace = min(float(meta.get("deletionGracePeriodSeconds") or 0), self._cluster.timing.ending_s)
            self._ending[meta["uid"]] = now_s + grace
            self._scripts[meta["uid"]] = (iter(()), math.inf)
        if now_s >= self._ending[meta["uid"]]:
            self._cluster.objects.finish(POD, meta["namespace"], meta["name"])
        else:
            self.due_s = min(self.due_s, self._ending[meta["uid"]])

    def read(self, pod: Obj, container: str, *, previous: bool) -> str:
        name = pod["metadata"]["name"]
        life = self._lives.get(pod["metadata"]["uid"])
        lines = life.log(previous=previous) if life is not None else None
        if lines is not None:
            return "".join(f"{line}\n" for line in lines)
        if previous:
            raise refusal(400, f'previous terminated container "{container}" in pod "{name}" not found')
        why = life.waits_because if life is not None else "ContainerCreating"
        raise refusal(400, f'container "{container}" in pod "{name}" is waiting to start: {why}')
