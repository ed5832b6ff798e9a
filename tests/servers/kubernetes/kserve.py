"""A stand-in for the KServe controller in Standard mode: its Deployment, its Service, its words about them."""

import copy
import re
from typing import TYPE_CHECKING, Any

from tests.servers.kubernetes.kinds import DEPLOYMENT, INFERENCE_SERVICE, POD, SERVICE, Kind, Obj
from tests.servers.kubernetes.statuses import Refusal, refusal
from tests.servers.kubernetes.storage import now
from tests.servers.kubernetes.workloads import condition_of, is_ready, owner_reference, template_hash

if TYPE_CHECKING:
    from tests.servers.kubernetes.cluster import FakeCluster

FINALIZER = "inferenceservice.finalizers"
_LABEL = "serving.kserve.io/inferenceservice"
_MODE = "serving.kserve.io/deploymentMode"
_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
_HOOK = "inferenceservice.kserve-webhook-server"

#: Fields of a predictor that are not of a pod.
_OWN = frozenset(
    {"minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "containerConcurrency", "timeout"}
    | {
        "canaryTrafficPercent",
        "logger",
        "batcher",
        "labels",
        "annotations",
        "deploymentStrategy",
        "model",
        "workerSpec",
    }
    | {"autoScaling"}
)
_HPA_AFTER_S = 15.0


class KServe:
    """Reconciles InferenceServices.

    Attributes:
        down: Neither the controller nor its webhooks answer.
        lag_s: Seconds of cluster time until a new or changed spec is looked at; the old status stands until then.
        quiet_until_ready: No status before the first pod serves, as some versions have it.
        follows_progress: Ready is unknown while a rollout is under way, as the newest version has it; else Ready stays.
    """

    def __init__(self, cluster: "FakeCluster") -> None:
        self._cluster = cluster
        self._objects = cluster.objects
        self.down = False
        self.lag_s = 0.5
        self.quiet_until_ready = False
        self.follows_progress = False
        self._seen: dict[str, tuple[int, float]] = {}
        self._since: dict[str, float] = {}
        self.due_s = float("inf")

    def step(self) -> None:
        self.due_s = float("inf")
        if self.down:
            return
        for service in self._objects.storage.find(INFERENCE_SERVICE):
            conduct = self._cluster.scenario_of(service["metadata"]["name"]).kserve
            if conduct == "silent":
                continue
            if service["metadata"].get("deletionTimestamp"):
                if conduct != "stuck":
                    self._let_go(service)
            elif self._looked_at(service):
                self._reconcile(service)

    # ---------------------------------------------------------------- webhooks

    def admit(self, operation: str, kind: Kind, new: Obj, old: Obj | None) -> None:
        """The defaulting and the validating webhook.

        Raises:
            Refusal: 403 for what the validation refuses; 500 while the webhooks are down.
        """
        if kind is not INFERENCE_SERVICE or (new.get("spec") == (old or {}).get("spec") and not _moved(new, old)):
            return
        if self.down:
            raise refusal(
                500,
                f'Internal error occurred: failed calling webhook "{_HOOK}.defaulter": failed to call webhook: Post '
                '"https://kserve-webhook-server-service.kserve.svc:443/mutate-serving-kserve-io-v1beta1-inferenceservice'
                '?timeout=10s": no endpoints available for service "kserve-webhook-server-service"',
                details={"causes": [{"message": f'failed calling webhook "{_HOOK}.defaulter"'}]},
            )
        why = _refused(new, old)
        if why:
            raise refusal(403, f'admission webhook "{_HOOK}.validator" denied the request: {why}', reason="Forbidden")
        for container in (new["spec"].get("predictor") or {}).get("containers") or []:
            resources = container.setdefault("resources", {})
            for part in ("limits", "requests"):
                found = resources.setdefault(part, {})
                found.setdefault("cpu", "1")
                found.setdefault("memory", "2Gi")

    # -------------------------------------------------------------- reconcile

    def _looked_at(self, service: Obj) -> bool:
        meta, now_s = service["metadata"], self._cluster.clock.now_s()
        stopped = (meta.get("annotations") or {}).get("serving.kserve.io/stop")
        mark = hash((meta["generation"], stopped))
        if self._seen.get(meta["uid"], (0, 0.0))[0] != mark:
            self._seen[meta["uid"]] = (mark, now_s + self.lag_s)
        due = self._seen[meta["uid"]][1]
        if now_s < due:
            self.due_s = min(self.due_s, due)
        return now_s >= due

    def _let_go(self, service: Obj) -> None:
        meta = service["metadata"]
        if FINALIZER in (meta.get("finalizers") or []):
            meta["finalizers"] = [name for name in meta["finalizers"] if name != FINALIZER]
            self._objects.update(INFERENCE_SERVICE, meta["namespace"], service, manager="manager")

    def _reconcile(self, service: Obj) -> None:
        meta = service["metadata"]
        if FINALIZER not in (meta.get("finalizers") or []):
            meta.setdefault("finalizers", []).append(FINALIZER)
            service = self._objects.update(INFERENCE_SERVICE, meta["namespace"], service, manager="manager")
        if _mode(service) != "Standard":
            said = "It is not possible to use Serverless deployment mode when Knative Services are not available"
            self._tell_once(service, "ServerlessModeRejected", said)
            return
        if (meta.get("annotations") or {}).get("serving.kserve.io/stop") == "true":
            self._stop(service)
            return
        try:
            deployment = self._deploy(service)
        except Refusal as refused:
            self._tell_once(service, "InternalError", f"fails to reconcile predictor: {refused}")
            return
        self._report(service, deployment)

    def _tell_once(self, service: Obj, reason: str, said: str) -> None:
        self._cluster.recorder.add_once(service, "Warning", reason, said, "v1beta1Controllers")

    def _deploy(self, service: Obj) -> Obj:
        namespace = service["metadata"]["namespace"]
        wanted = deployment_for(service)
        uid, now_s = service["metadata"]["uid"], self._cluster.clock.now_s()
        if _autoscaler(service) != "none":
            first = self._since.setdefault(uid, now_s)
            if now_s - first < _HPA_AFTER_S:
                wanted["spec"]["replicas"] = 1
                self.due_s = min(self.due_s, first + _HPA_AFTER_S)
        live = self._objects.storage.read(DEPLOYMENT, namespace, wanted["metadata"]["name"])
        if live is None:
            live, _ = self._objects.create(DEPLOYMENT, namespace, wanted)
        elif _differs(live, wanted):
            live = self._objects.update(DEPLOYMENT, namespace, live | {"spec": {**live["spec"], **wanted["spec"]}})
        if self._objects.storage.read(SERVICE, namespace, wanted["metadata"]["name"]) is None:
            self._objects.create(SERVICE, namespace, service_for(service))
        return live

    def _stop(self, service: Obj) -> None:
        meta = service["metadata"]
        for kind in (DEPLOYMENT, SERVICE):
            if self._objects.storage.read(kind, meta["namespace"], f"{meta['name']}-predictor") is not None:
                self._objects.delete(kind, meta["namespace"], f"{meta['name']}-predictor")
        status = copy.deepcopy(service.get("status") or {})
        rows = [_condition(kind, "False", "Stopped") for kind in ("IngressReady", "PredictorReady", "Ready")]
        status["conditions"] = _kept([*rows, _condition("Stopped", "True")], status.get("conditions") or [])
        status["modelStatus"] = {"transitionStatus": "UpToDate", "copies": {"failedCopies": 0, "totalCopies": 0}}
        for field in ("url", "address"):
            status.pop(field, None)
        self._write(service, status)

    # ----------------------------------------------------------------- status

    def _report(self, service: Obj, deployment: Obj) -> None:
        status = copy.deepcopy(service.get("status") or {})
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        state, reason, message = self._predictor_ready(deployment)
        if state == "":  # the deployment controller has not said anything yet
            return
        ready = state == "True"
        if self.quiet_until_ready and not ready and not status:
            return
        why = {} if ready else {"reason": reason, "message": message}
        rows = [_condition("PredictorReady", state, **why)]
        rows.append(_condition("IngressReady", "True") if ready else _no_ingress(state))
        rows.append(_condition("Ready", state, **(why if not ready else {})))
        rows.append(_condition("Stopped", "False") | {"severity": "Info"})
        status["conditions"] = _kept(rows, status.get("conditions") or [])
        status["observedGeneration"] = (deployment.get("status") or {}).get("observedGeneration", 0)
        status["deploymentMode"] = "Standard"
        status.setdefault("components", {}).setdefault("predictor", {})
        if ready:
            host = f"{name}-predictor.{namespace}.svc.cluster.local"
            status["url"] = f"http://{name}-{namespace}.example.com"
            status["address"] = {"url": self._cluster.address or f"http://{host}"}
            status["components"]["predictor"]["url"] = f"http://{name}-predictor-{namespace}.example.com"
        status["modelStatus"] = self._model_status(service, status.get("modelStatus") or {}, ready)
        self._write(service, status)

    def _predictor_ready(self, deployment: Obj) -> tuple[str, str, str]:
        available = condition_of(deployment, "Available")
        progressing = condition_of(deployment, "Progressing")
        failure = condition_of(deployment, "ReplicaFailure")
        found = failure if failure.get("status") == "True" else available
        state = "False" if found is failure and failure else str(available.get("status", ""))
        under_way = progressing.get("status") == "True" and progressing.get("reason") != "NewReplicaSetAvailable"
        if self.follows_progress and state == "True" and under_way:
            return "Unknown", progressing["reason"], progressing["message"]
        return state, str(found.get("reason", "")), str(found.get("message", ""))

    def _model_status(self, service: Obj, old: Obj, ready: bool) -> Obj:
        meta = service["metadata"]
        pods = [
            pod
            for pod in self._objects.storage.find(POD, meta["namespace"])
            if (pod["metadata"].get("labels") or {}).get(_LABEL) == meta["name"]
        ]
        found: Obj = {"copies": {"failedCopies": 0, "totalCopies": sum(map(is_ready, pods))}}
        found["states"] = dict(old.get("states") or {}) | {"targetModelState": "Loaded" if ready else "Pending"}
        found["transitionStatus"] = "UpToDate" if ready else "InProgress"
        if ready:
            found["states"]["activeModelState"] = "Loaded"
        died = _death(pods[0]) if pods and not ready else None
        if died is not None:
            found["states"]["targetModelState"] = "FailedToLoad"
            found["transitionStatus"] = "BlockedByFailedLoad"
            failure = {"reason": "ModelLoadFailed", "message": died.get("message", "")}
            found["lastFailureInfo"] = failure | {"exitCode": died["exitCode"]}
        elif "lastFailureInfo" in old:
            found["lastFailureInfo"] = old["lastFailureInfo"]
        return found

    def _write(self, service: Obj, status: Obj) -> None:
        if service.get("status") == status:
            return
        meta = service["metadata"]
        live = self._objects.get(INFERENCE_SERVICE, meta["namespace"], meta["name"])
        was = condition_of(live, "Ready").get("status")
        self._objects.update(
            INFERENCE_SERVICE, meta["namespace"], live | {"status": status}, manager="manager", subresource="status"
        )
        if was != "True" and condition_of({"status": status}, "Ready").get("status") == "True":
            said = f"InferenceService [{meta['name']}] is Ready"
            self._cluster.recorder.add(live, "Normal", "InferenceServiceReady", said, "v1beta1Controllers")


# ---------------------------------------------------------------- what it makes


def deployment_for(service: Obj) -> Obj:
    """The Deployment of a predictor: its PodSpec fields copied into a template."""
    meta, predictor = service["metadata"], service["spec"]["predictor"]
    name = f"{meta['name']}-predictor"
    labels = {**(meta.get("labels") or {}), **(predictor.get("labels") or {})}
    labels |= {"app": f"isvc.{name}", "component": "predictor", _LABEL: meta["name"]}
    notes = {**(meta.get("annotations") or {}), **(predictor.get("annotations") or {})}
    pod = {key: copy.deepcopy(value) for key, value in predictor.items() if key not in _OWN}
    spec: Obj = {"replicas": predictor.get("minReplicas", 1), "selector": {"matchLabels": {"app": f"isvc.{name}"}}}
    spec["template"] = {"metadata": {"labels": {**labels}, "annotations": notes}, "spec": pod}
    spec["progressDeadlineSeconds"] = 600
    spec["strategy"] = copy.deepcopy(predictor.get("deploymentStrategy") or {"type": "RollingUpdate"})
    head = {"name": name, "namespace": meta["namespace"], "labels": labels, "annotations": notes}
    head["ownerReferences"] = [owner_reference(service)]
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": head, "spec": spec}


def service_for(service: Obj) -> Obj:
    """The Service in front of it: port 80 to the first port of the first container, the others as they are."""
    meta, predictor = service["metadata"], service["spec"]["predictor"]
    name = f"{meta['name']}-predictor"
    ports = [port for box in predictor.get("containers") or [{}] for port in box.get("ports") or []]
    first = ports[0] if ports else {"containerPort": 8080}
    rows = [{"name": first.get("name", "http"), "port": 80, "targetPort": first["containerPort"], "protocol": "TCP"}]
    for port in ports[1:]:
        number = port["containerPort"]
        rows.append({"name": port.get("name", f"p{number}"), "port": number, "targetPort": number, "protocol": "TCP"})
    head = {"name": name, "namespace": meta["namespace"], "ownerReferences": [owner_reference(service)]}
    head["labels"] = {"app": f"isvc.{name}", "component": "predictor", _LABEL: meta["name"]}
    spec = {"selector": {"app": f"isvc.{name}"}, "ports": rows}
    return {"apiVersion": "v1", "kind": "Service", "metadata": head, "spec": spec}


def _differs(live: Obj, wanted: Obj) -> bool:
    def shape(deployment: Obj) -> tuple[Any, ...]:
        spec = deployment["spec"]
        return spec["replicas"], template_hash(spec["template"]), spec["strategy"]["type"]

    return shape(live) != shape(wanted)


def _death(pod: Obj) -> Obj | None:
    """How the first container of a pod died, as far as KServe looks: OOM only once it backs off."""
    for status in ((pod.get("status") or {}).get("containerStatuses") or [])[:1]:
        ended: Obj | None = status["state"].get("terminated")
        if ended is not None and ended.get("reason") == "Error":
            return ended
        if (status["state"].get("waiting") or {}).get("reason") == "CrashLoopBackOff":
            last: Obj | None = (status.get("lastState") or {}).get("terminated")
            return last
    return None


def _condition(kind: str, status: str, reason: str = "", message: str = "") -> Obj:
    words = {key: value for key, value in {"reason": reason, "message": message}.items() if value}
    return {"type": kind, "status": status} | words


def _no_ingress(state: str) -> Obj:
    return _condition("IngressReady", "False" if state == "False" else "Unknown", "Predictor ingress not created")


def _kept(rows: list[Obj], old: list[Obj]) -> list[Obj]:
    """Conditions by type, each with the time of its last transition."""
    before = {row["type"]: row for row in old}
    for row in rows:
        last = before.get(row["type"], {})
        same = last.get("status") == row["status"]
        row["lastTransitionTime"] = last["lastTransitionTime"] if same else now()
    return sorted(rows, key=lambda row: str(row["type"]))


def _mode(service: Obj) -> str:
    found = str((service["metadata"].get("annotations") or {}).get(_MODE, "Knative"))
    return _MODES.get(found, found)


def _autoscaler(service: Obj) -> str:
    notes = service["metadata"].get("annotations") or {}
    return str(notes.get("serving.kserve.io/autoscalerClass", "hpa"))


def _moved(new: Obj, old: Obj | None) -> bool:
    return old is None or _mode(new) != _mode(old)


def _refused(new: Obj, old: Obj | None) -> str:
    """Why the validation says no; "" if it does not."""
    name, predictor = new["metadata"]["name"], new["spec"].get("predictor") or {}
    if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
        return (
            f'the InferenceService "{name}" is invalid: a InferenceService name must consist of lower case '
            "alphanumeric characters or '-', and must start with alphabetical character. (e.g. \"my-name\" or "
            "\"abc-123\", regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
        )
    if predictor.get("minReplicas", 1) > (predictor.get("maxReplicas") or 10**6):
        return "MinReplicas cannot be greater than MaxReplicas."
    if old is not None and _mode(old) != _mode(new):
        return f"update rejected: deploymentMode cannot be changed from '{_mode(old)}' to '{_mode(new)}'"
    if _mode(new) == "Knative" and predictor.get("deploymentStrategy"):
        return "customizing deploymentStrategy is only supported for raw deployment mode"
    return ""
