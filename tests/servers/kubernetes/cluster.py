"""A whole cluster: the API server with nodes, the controllers of Kubernetes, kubelets and KServe.

    with FakeCluster(scenario="happy", speed=100) as cluster:
        cluster.kubeconfig(tmp_path / "config")
        cluster.play("vllm-b", "oom_killed")        # another scenario for one service
        ...

Time in it passes `speed` times as fast as ours; timestamps in objects are real.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.servers.kubernetes.api import KubernetesServer
from tests.servers.kubernetes.claims import Claims, storage_class
from tests.servers.kubernetes.events import Clock, Recorder
from tests.servers.kubernetes.kinds import CLAIM, INFERENCE_SERVICE, NODE, POD, QUOTA, SECRET, STORAGE_CLASS, Kind, Obj
from tests.servers.kubernetes.kserve import KServe
from tests.servers.kubernetes.kubelet import STATIC, Kubelet
from tests.servers.kubernetes.lives import PodLife
from tests.servers.kubernetes.rules import quota_status
from tests.servers.kubernetes.scenarios import SCENARIOS, Scenario, Timing
from tests.servers.kubernetes.scheduler import Scheduler, gpu_node
from tests.servers.kubernetes.statuses import forbidden
from tests.servers.kubernetes.workloads import Deployments, ReplicaSets

_TICK_S = 0.01
_LOOK_S = 0.1  # a round at least so often, for what goes by time: deadlines and second tries


class FakeCluster:
    """A cluster with two nodes of 8 GPUs and one without, unless told otherwise.

    Args:
        scenario: What happens to every service that `play` names no other for.
        speed: Seconds of cluster time in one of ours.
        nodes: As `gpu_node` makes them.
        namespace: Where tests work; the Secret `hf-secret` is there.
        address: What KServe says the address of a ready service is; "" for the cluster-internal name.
        timing: How long the stages of a start take.
        settings: For `KubernetesServer`.

    Attributes:
        server: The API server; `objects` are its objects.
        kserve: The KServe stand-in, with switches of its own.
        late_s: Cluster time by which the second pod of "late_replica" is late; slow_s: how slow "slow" is.
    """

    def __init__(
        self,
        *,
        scenario: str | Scenario = "happy",
        speed: float = 100.0,
        nodes: Sequence[Obj] | None = None,
        namespace: str = "ml",
        address: str = "",
        timing: Timing | None = None,
        **settings: Any,
    ) -> None:
        self.namespace = namespace
        self.server = KubernetesServer(**{"namespaces": (namespace, "team-b"), **settings})
        self.objects = self.server.objects
        self.objects.pods_linger = True
        self.objects.admission.append(self._admit)
        self.clock = Clock(speed)
        self.recorder = Recorder(self.objects)
        self.address = address
        self.timing = timing or Timing()
        self.late_s, self.slow_s = 200.0, 700.0
        self._chosen: dict[str, Scenario] = {}
        self._loses_claims = self._loses_secrets = False
        self.kserve = KServe(self)
        self.kubelet = self.server.verbs.logs = Kubelet(self)
        parts = (self.objects, self.recorder, self.clock)
        self._steps = (
            self.kserve.step,
            Deployments(*parts).step,
            ReplicaSets(*parts).step,
            Claims(*parts).step,
            Scheduler(*parts).step,
            self.kubelet.step,
        )
        self.objects.admission.append(self.kserve.admit)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fake-cluster", daemon=True)
        self._set_up(nodes if nodes is not None else [gpu_node("gpu-0"), gpu_node("gpu-1"), gpu_node("cpu-0", gpus=0)])
        self._default = self._choose(scenario)

    def _set_up(self, nodes: Iterable[Obj]) -> None:
        for node in nodes:
            self.server.put(node)
        self.server.put(storage_class("shared-rwx"))
        secret = {"metadata": {"name": "hf-secret", "namespace": self.namespace}, "data": {"HF_TOKEN": "aGZfdG9rZW4="}}
        self.server.put({"apiVersion": "v1", "kind": "Secret", **secret})

    # ------------------------------------------------------------------- life

    def __enter__(self) -> Self:
        self.server.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self.server.__exit__(kind, error, trace)

    @property
    def url(self) -> str:
        return self.server.url

    def kubeconfig(self, path: Path, **settings: str) -> Path:
        return self.server.kubeconfig(path, **{"namespace": self.namespace, **settings})

    def _work(self) -> None:
        storage = self.objects.storage
        seen, due_s = -1, 0.0
        while not self._stopping.is_set():
            try:
                with storage.changed:
                    # While the API server is away nothing reaches it, so nothing in it changes.
                    if self.server.running and (storage.version != seen or self.clock.now_s() >= due_s):
                        seen = storage.version
                        due_s = self._step()
                    if storage.version == seen:
                        storage.changed.wait(_TICK_S)
            except Exception as failure:  # noqa: BLE001 - shown when the cluster ends
                self.server.errors.append(failure)
                return

    def _step(self) -> float:
        self.objects.collect_orphans()
        for step in self._steps:
            step()
        for quota in self.objects.storage.find(QUOTA):
            pods = self.objects.storage.peek(POD, quota["metadata"]["namespace"])
            self.objects.storage.update(QUOTA, quota | {"status": quota_status(quota, pods)})
        return min(self.kserve.due_s, self.kubelet.due_s, self.clock.now_s() + _LOOK_S * self.clock.speed)

    # -------------------------------------------------------------- scenarios

    def play(self, name: str, scenario: str | Scenario) -> None:
        """Choose what happens to one InferenceService, before or after it is made."""
        self._chosen[name] = self._choose(scenario)

    def play_all(self, scenario: str | Scenario) -> None:
        """Choose what happens to all services without one of their own; pods that live already go on as they do."""
        self._default = self._choose(scenario)

    def scenario_of(self, service: str) -> Scenario:
        return self._chosen.get(service, self._default)

    def _choose(self, scenario: str | Scenario) -> Scenario:
        found = SCENARIOS[scenario] if isinstance(scenario, str) else scenario
        if found.prepare is not None:
            found.prepare(self)
        return found

    def _admit(self, operation: str, kind: Kind, new: Obj, old: Obj | None) -> None:
        if kind is POD and operation == "CREATE":
            labels = new["metadata"].get("labels") or {}
            words = self.scenario_of(labels.get("serving.kserve.io/inferenceservice", "")).refuses_pods
            if words:
                raise forbidden(POD, new["metadata"]["name"], words)
        if kind is INFERENCE_SERVICE and operation == "CREATE" and self._loses_claims:
            for claim in self.objects.storage.find(CLAIM, new["metadata"]["namespace"]):
                self.objects.delete(CLAIM, new["metadata"]["namespace"], claim["metadata"]["name"])

    def missing_secret(self, life: PodLife) -> str:
        """What is missing of the Secrets that a pod's environment needs, in the kubelet's words; "" if nothing is."""
        for entry in life.container.get("env") or []:
            wanted = (entry.get("valueFrom") or {}).get("secretKeyRef") or {}
            if not wanted or wanted.get("optional"):
                continue
            found = self.objects.storage.read(SECRET, life.namespace, wanted["name"])
            if found is None or self._loses_secrets:
                return f'secret "{wanted["name"]}" not found'
            if wanted["key"] not in (found.get("data") or {}):
                return f"couldn't find key {wanted['key']} in Secret {life.namespace}/{wanted['name']}"
        return ""

    # ------------------------------------------------- what scenarios and tests do

    def delete_service(self, name: str, namespace: str = "") -> None:
        self.objects.delete(INFERENCE_SERVICE, namespace or self.namespace, name)

    def nodes(self) -> list[Obj]:
        return self.objects.storage.find(NODE)

    def take_all_gpus(self) -> None:
        """Fill every GPU with the pod of another team; `free_gpus` ends it."""
        for node in self.nodes():
            gpus = node["status"]["allocatable"].get("nvidia.com/gpu")
            if gpus:
                self._occupy(node["metadata"]["name"], gpus)

    def _occupy(self, node: str, gpus: str) -> None:
        box = {"name": "train", "image": "train:1", "resources": {"limits": {"nvidia.com/gpu": gpus}}}
        meta = {"name": f"training-{node}", "namespace": "team-b", "annotations": {STATIC: "true"}}
        spec = {"nodeName": node, "containers": [box]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": {"phase": "Running"}}
        self.server.put(pod)

    def free_gpus(self) -> None:
        for pod in self.objects.storage.find(POD, "team-b"):
            self.objects.delete(POD, "team-b", pod["metadata"]["name"], grace_s=0)

    def relabel_nodes(self, product: str) -> None:
        """Give every GPU node another product."""
        for node in self.nodes():
            if "nvidia.com/gpu.product" in node["metadata"]["labels"]:
                node["metadata"]["labels"]["nvidia.com/gpu.product"] = product
                self.objects.storage.update(NODE, node)

    def taint_nodes(self, key: str, value: str, effect: str = "NoSchedule") -> None:
        """Taint every GPU node."""
        for node in self.nodes():
            if "nvidia.com/gpu" in node["status"]["allocatable"]:
                node["spec"].setdefault("taints", []).append({"key": key, "value": value, "effect": effect})
                self.objects.storage.update(NODE, node)

    def take_gpus_out(self) -> None:
        """Make every node one without GPUs, labels included."""
        for node in self.nodes():
            self.objects.storage.remove(NODE, "", node["metadata"]["name"])
            self.server.put(gpu_node(node["metadata"]["name"], gpus=0))

    def remove_nodes(self) -> None:
        for node in self.nodes():
            self.objects.storage.remove(NODE, "", node["metadata"]["name"])

    def lose_claims(self) -> None:
        """Delete all claims of a namespace as soon as a service is made in it."""
        self._loses_claims = True

    def lose_secrets(self, lost: bool = True) -> None:
        """Make kubelets find no Secret, whatever the API says: somebody deleted it in between."""
        self._loses_secrets = lost
        if lost and self.objects.storage.read(SECRET, self.namespace, "hf-secret") is not None:
            self.objects.delete(SECRET, self.namespace, "hf-secret")

    def set_storage(self, behaviour: str | None) -> None:
        """Replace the storage classes: None for no class at all, or `fails`, `hangs`, `waits` (for a pod), `works`."""
        for found in self.objects.storage.find(STORAGE_CLASS):
            self.objects.storage.remove(STORAGE_CLASS, "", found["metadata"]["name"])
        if behaviour is not None:
            acts = behaviour if behaviour in ("fails", "hangs") else ""
            self.server.put(storage_class("shared-rwx", waits=behaviour == "waits", behaviour=acts))

    def set_gpu_quota(self, gpus: int) -> None:
        """Allow so many GPUs in the tests' namespace."""
        meta = {"name": "gpu-quota", "namespace": self.namespace}
        spec: Mapping[str, Any] = {"hard": {"requests.nvidia.com/gpu": str(gpus)}}
        self.server.put({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": spec})
