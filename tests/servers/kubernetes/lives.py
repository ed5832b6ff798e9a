"""The life of a pod, as its kubelet would report it: a scenario calls these one after the other."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.servers.kubernetes.kinds import POD, Obj
from tests.servers.kubernetes.storage import now
from tests.servers.kubernetes.workloads import with_condition

if TYPE_CHECKING:
    from tests.servers.kubernetes.cluster import FakeCluster

_BACKOFF_S = (10, 20, 40, 80, 160, 300)


class PodLife:
    """One pod on its node. Every method that yields gives the seconds of cluster time until it goes on.

    Attributes:
        cluster: Where it lives.
        number: Which of its service's pods it is, by age, from 0.
        logs: Lines of each run of its main container.
    """

    def __init__(self, cluster: "FakeCluster", pod: Obj, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.name: str = pod["metadata"]["name"]
        self.namespace: str = pod["metadata"]["namespace"]
        self.node: str = pod["spec"]["nodeName"]
        self.container: Obj = pod["spec"]["containers"][0]
        self.image: str = self.container.get("image", "")
        self.logs: list[list[str]] = []
        self.is_up = False
        self._state: Obj = {"waiting": {"reason": "ContainerCreating"}}
        self._last: Obj = {}
        self._last_state: Obj = {}
        self._restarts = 0
        self._ready = False
        self._began = ""
        self._status = {"startTime": now(), "hostIP": "10.10.0.4", "phase": "Pending", "qosClass": "Burstable"}

    @property
    def service(self) -> str:
        """Name of the InferenceService, "" for a pod of something else."""
        labels = self.pod["metadata"].get("labels") or {}
        return str(labels.get("serving.kserve.io/inferenceservice", ""))

    @property
    def model(self) -> str:
        """What vLLM is asked to serve, as far as its arguments say."""
        words = [str(word) for word in [*(self.container.get("command") or []), *(self.container.get("args") or [])]]
        for number, word in enumerate(words):
            if word.startswith("--model="):
                return word.partition("=")[2]
            if word in ("--model", "serve") and number + 1 < len(words):
                return words[number + 1]
        return next((word for word in words if "/" in word and not word.startswith(("-", "/"))), "some/model")

    # ---------------------------------------------------------------- stages

    def pull(self, seconds: float | None = None) -> Iterator[float]:
        """Volumes and image."""
        self.publish()
        yield self.cluster.timing.creating_s
        said = self.cluster.missing_secret(self)
        self.event("Normal", "Pulling", f'Pulling image "{self.image}"')
        taken = self.cluster.timing.pulling_s if seconds is None else seconds
        yield taken
        self.event(
            "Normal",
            "Pulled",
            f'Successfully pulled image "{self.image}" in {taken:.3f}s ({taken:.3f}s including waiting). Image size: '
            "10423187213 bytes.",
        )
        while said:
            self.wait_in("CreateContainerConfigError", said)
            self.event("Warning", "Failed", f"Error: {said}")
            yield 12.0
            said = self.cluster.missing_secret(self)

    def run(self) -> None:
        """The container starts."""
        name = self.container["name"]
        if self.logs:
            self._restarts += 1
            said = f'Container image "{self.image}" already present on machine'
            self.event("Normal", "Pulled", said)
        self.event("Normal", "Created", f"Created container: {name}")
        self.event("Normal", "Started", f"Started container {name}")
        self.logs.append([])
        self._began = now()
        self._state = {"running": {"startedAt": self._began}}
        self._status |= {"phase": "Running", "podIP": f"10.0.0.{10 + self.number}"}
        self.is_up = True
        self.publish()

    def say(self, lines: list[str], seconds: float) -> Iterator[float]:
        """Print lines, evenly over some seconds."""
        for line in lines:
            self.logs[-1].append(line)
            yield seconds / max(1, len(lines))

    def ready(self, yes: bool = True) -> None:
        self._ready = yes
        self.publish()

    def die(self, code: int, reason: str = "Error") -> None:
        """The container ends."""
        ended: Obj = {"exitCode": code, "reason": reason, "startedAt": self._began, "finishedAt": now()}
        ended["containerID"] = f"containerd://{self.uid.replace('-', '')}{len(self.logs)}"
        policy = self.container.get("terminationMessagePolicy")
        if policy == "FallbackToLogsOnError" and code:
            ended["message"] = "\n".join(self.logs[-1][-80:])[-2048:]
        self._last_state = {"terminated": ended}
        self._state = {"terminated": ended}
        self._ready = self.is_up = False
        self.publish()

    def back_off(self) -> Iterator[float]:
        """Wait in CrashLoopBackOff, longer each time."""
        wait = _BACKOFF_S[min(self._restarts, len(_BACKOFF_S) - 1)]
        name, where = self.container["name"], f"{self.name}_{self.namespace}({self.uid})"
        shown = "5m0s" if wait == 300 else f"{wait // 60}m{wait % 60}s" if wait >= 60 else f"{wait}s"
        self.event("Warning", "BackOff", f"Back-off restarting failed container {name} in pod {where}")
        self._last = self._last_state
        self.wait_in("CrashLoopBackOff", f"back-off {shown} restarting failed container={name} pod={where}")
        yield float(wait)

    def restart(self) -> None:
        """The kubelet starts a dead container again, at once."""
        self._last = self._last_state
        self.run()

    def wait_in(self, reason: str, message: str) -> None:
        """The container waits."""
        self._state = {"waiting": {"reason": reason, "message": message}}
        self.is_up = False
        self.publish()

    def evict(self, message: str) -> None:
        """The node throws the pod out; it stays as Failed."""
        self.event("Warning", "Evicted", message)
        self._status |= {"phase": "Failed", "reason": "Evicted", "message": message}
        self._state = {"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": now()}}
        self._ready = self.is_up = False
        self.publish()

    def event(self, kind: str, reason: str, message: str) -> None:
        self.cluster.recorder.add(self.pod, kind, reason, message, "kubelet", host=self.node)

    # ---------------------------------------------------------------- status

    def publish(self) -> None:
        """Write the pod's status."""
        live = self.cluster.objects.storage.read(POD, self.namespace, self.name)
        if live is None or live["metadata"]["uid"] != self.uid:
            return
        rows = [self._container_status(container) for container in self.pod["spec"]["containers"]]
        conditions = (live.get("status") or {}).get("conditions") or []
        unready = "containers with unready status: [" + " ".join(row["name"] for row in rows) + "]"
        flags = {"PodReadyToStartContainers": True, "Initialized": True, "ContainersReady": self._ready}
        for kind, yes in (flags | {"Ready": self._ready}).items():
            reason, said = ("", "") if yes else ("ContainersNotReady", unready)
            conditions = with_condition(conditions, kind, str(bool(yes)), reason, said)
        status = {**self._status, "containerStatuses": rows, "conditions": conditions}
        self.cluster.objects.storage.update(POD, live | {"status": status})

    def _container_status(self, container: Obj) -> Obj:
        status = {"name": container["name"], "image": container.get("image", ""), "imageID": "", "ready": self._ready}
        status |= {"restartCount": self._restarts, "state": self._state, "lastState": self._last}
        return status | {"started": self._ready}

    def log(self, *, previous: bool) -> list[str] | None:
        """Lines of the run that is or was last, or of the one before; None: there is none."""
        if previous and self.is_up:
            return self.logs[-2] if len(self.logs) > 1 else None
        if previous:
            return self.logs[-1] if self.logs and self._last else None
        return self.logs[-1] if self.logs else None

    @property
    def waits_because(self) -> str:
        return str((self._state.get("waiting") or {}).get("reason", "ContainerCreating"))
