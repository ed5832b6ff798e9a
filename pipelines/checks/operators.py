"""Checks of what has to be installed in the cluster: KServe, and what some choices need besides."""

import json
from collections.abc import Iterator

from clients.errors import ApiError, ForbiddenError
from clients.serving.cluster import Object
from clients.serving.evidence import mapping, name_of, objects, text, whole
from clients.serving.kinds import KINDS, Kind
from pipelines.checks.scene import Scene
from pipelines.checks.verdict import Verdict, failed, may_not, ok, unknown, warning
from pipelines.checks.versions import image_tag, version

#: The oldest KServe whose InferenceService takes what we write (Kubeflow 26.03 ships 0.16).
_LEAST_KSERVE = (0, 15)

#: Where KServe's controller runs: by its own manifests, by Kubeflow's, by Open Data Hub's and OpenShift AI's.
_KSERVE_HOMES = ("kserve", "kubeflow", "opendatahub", "redhat-ods-applications")

_CONTROLLER = "kserve-controller-manager"

_INSTALL = {
    "KServe": "see https://kserve.github.io/website (Standard deployment is enough)",
    "KubeRay": "helm install kuberay-operator kuberay/kuberay-operator --namespace kuberay-system --create-namespace",
    "LeaderWorkerSet": "kubectl apply --server-side -f "
    "https://github.com/kubernetes-sigs/lws/releases/download/v0.10.0/manifests.yaml",
}

_CRON_JOB = Kind("batch", "v1", "cronjobs")


def kserve(scene: Scene) -> Verdict:
    """Whether the cluster knows InferenceServices."""
    if scene.serves("InferenceService"):
        return ok(f"serving.kserve.io/{KINDS['InferenceService'].version} InferenceService is there")
    return failed("the cluster knows no InferenceService", f"install KServe 0.15 or newer, {_INSTALL['KServe']}")


def kserve_controller(scene: Scene) -> Verdict:
    """Whether KServe's controller runs, in which version and mode."""
    try:
        found = next(_controllers(scene), None)
    except ForbiddenError as error:
        return unknown(f"version and mode cannot be told: {may_not(error)}", "ask an administrator: 0.15 or newer")
    if found is None:
        return warning(
            f"no Deployment {_CONTROLLER} in {', '.join(_KSERVE_HOMES)}: does anything act on an InferenceService?",
            f"install KServe, {_INSTALL['KServe']}",
        )
    where, tag = text(found, "metadata", "namespace"), _version_of(found)
    about = f"{tag or 'of unknown version'} in namespace {where}"
    wanted, available = whole(found, "spec", "replicas") or 1, whole(found, "status", "availableReplicas")
    if not available:
        return failed(
            f"{about}, 0 of {wanted} pods available: its webhook refuses every InferenceService",
            "see why",
            f"kubectl -n {where} describe pods -l control-plane={_CONTROLLER}",
        )
    known = version(tag)
    if known is not None and known < _LEAST_KSERVE:
        return failed(f"{about}, too old", f"upgrade KServe to 0.15 or newer, {_INSTALL['KServe']}")
    return ok(f"{about}, default mode {_mode(scene, where)}; ours is set to Standard on the service itself")


def _controllers(scene: Scene) -> Iterator[Object]:
    """KServe's controller, wherever we may look for it."""
    try:
        yield from scene.cluster.list("Deployment", labels=f"control-plane={_CONTROLLER}", all_namespaces=True)
    except ForbiddenError:
        seen = False
        for home in _KSERVE_HOMES:
            try:
                found = scene.cluster.get("Deployment", _CONTROLLER, namespace=home)
            except ForbiddenError:
                continue
            seen = True
            if found is not None:
                yield found
        if not seen:
            raise


def _version_of(deployment: Object) -> str:
    """The version of what a Deployment runs: by its image's tag, else by the labels that Helm sets; "" unknown."""
    containers = objects(deployment, "spec", "template", "spec", "containers")
    containers.sort(key=lambda each: text(each, "name") != "manager")
    labels = mapping(deployment, "metadata", "labels")
    chart = text(labels, "helm.sh/chart").rpartition("-")[2]
    told = [image_tag(text(each, "image")) for each in containers[:1]]
    return next((tag for tag in (*told, text(labels, "app.kubernetes.io/version"), chart) if version(tag)), "")


def _mode(scene: Scene, home: str) -> str:
    """KServe's default deployment mode in its own words."""
    try:
        found = scene.cluster.get("ConfigMap", "inferenceservice-config", namespace=home)
        mode = json.loads(text(found, "data", "deploy") or "{}").get("defaultDeploymentMode")
    except (ApiError, ValueError, AttributeError):
        mode = None
    return str(mode or "unknown")


def kuberay(scene: Scene) -> Verdict:
    """Whether the Ray option's operator is installed."""
    return _operator(scene, "RayCluster", "KubeRay", "app.kubernetes.io/component=kuberay-operator")


def leader_worker_set(scene: Scene) -> Verdict:
    """Whether the operator of the multi-node option without Ray is installed."""
    return _operator(scene, "LeaderWorkerSet", "LeaderWorkerSet", "app.kubernetes.io/part-of=leader-worker-set")


def _operator(scene: Scene, kind: str, product: str, labels: str) -> Verdict:
    if not scene.serves(kind):
        return failed(f"the cluster knows no {kind}: {product} is not installed", "install it", _INSTALL[product])
    try:
        found = scene.cluster.list("Deployment", labels=labels, all_namespaces=True)
    except ForbiddenError:
        found = []
    for deployment in found:
        about = f"{_version_of(deployment) or 'installed'} in namespace {text(deployment, 'metadata', 'namespace')}"
        if whole(deployment, "status", "availableReplicas"):
            return ok(about)
        where = f"-n {text(deployment, 'metadata', 'namespace')} describe deployment {name_of(deployment)}"
        return failed(f"{about}, but no pod of its operator is available", "see why", f"kubectl {where}")
    return ok(f"the cluster knows {kind}")


def prometheus(scene: Scene) -> Verdict:
    """Whether metrics can be collected by a PodMonitor; a run does not need it."""
    if scene.serves("PodMonitor"):
        return ok("the Prometheus operator's PodMonitor is there")
    return warning(
        "no Prometheus operator; runs work without",
        "for dashboards install it, or let your Prometheus follow the pods' prometheus.io/scrape annotations",
        "helm install prometheus prometheus-community/kube-prometheus-stack --namespace monitoring --create-namespace",
    )


def sweep(scene: Scene) -> Verdict:
    """Whether a CronJob frees the GPUs of runs that ended without an exit handler, as Terminate in the UI does."""
    here = [job for job in _cron_jobs(scene, scene.namespace) if _sweeps(job)]
    elsewhere: list[Object] = []
    if not here:
        try:
            elsewhere = [job for job in _cron_jobs(scene, "") if _sweeps(job) and _is_everywhere(job)]
        except ForbiddenError:
            elsewhere = []
    for job in (*here, *elsewhere):
        where, name = text(job, "metadata", "namespace"), name_of(job)
        if mapping(job, "spec").get("suspend"):
            patch = f'kubectl -n {where} patch cronjob {name} -p \'{{"spec":{{"suspend":false}}}}\''
            return warning(f"CronJob {where}/{name} is suspended", "let it run again", patch)
        return ok(f"CronJob {where}/{name}, {text(job, 'spec', 'schedule')}")
    return warning(
        "no CronJob sweeps this namespace: after Terminate in the UI, the model would keep its GPUs",
        "install it",
        f"kubectl apply -n {scene.namespace} -f kserve/sweep.yaml",
    )


def _cron_jobs(scene: Scene, namespace: str) -> list[Object]:
    return objects(scene.ask(_CRON_JOB.path(namespace)), "items")


def _words(job: Object) -> str:
    containers = objects(job, "spec", "jobTemplate", "spec", "template", "spec", "containers")
    return " ".join(
        str(word) for each in containers for word in (*(each.get("command") or ()), *(each.get("args") or ()))
    )


def _sweeps(job: Object) -> bool:
    words = _words(job)
    return "clients.serving" in words and "sweep" in words


def _is_everywhere(job: Object) -> bool:
    words = _words(job).split()
    return "-A" in words or "--all-namespaces" in words
