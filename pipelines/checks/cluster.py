"""Checks of the cluster itself: its API server, and the namespace that runs are in."""

from clients.errors import ApiError
from pipelines.checks.scene import Scene
from pipelines.checks.verdict import Verdict, failed, ok, unknown, warning
from pipelines.checks.versions import version

#: Kubernetes that KServe 0.14 still names as enough is 1.28; the strict field checks we rely on are older. Below this
#: no KServe that we support was ever offered.
_LEAST = (1, 29)

#: The least that KServe's installation guide names for 0.15, the oldest KServe that we support.
_ADVISED = (1, 30)

_ENFORCE = "pod-security.kubernetes.io/enforce"


def api_server(scene: Scene) -> Verdict:
    """Whether the API server answers us. Where it does not, nothing else can be asked."""
    try:
        scene.cluster.version()
    except ApiError as error:
        if error.status == 401:
            return failed(f"{scene.cluster.server} does not know these credentials", "log in again, then try", _TRY)
        if error.status != 403:
            raise
    return ok(f"{scene.cluster.server} answers")


_TRY = "kubectl get pods"


def kubernetes_version(scene: Scene) -> Verdict:
    """Whether the version is one that KServe runs on."""
    try:
        found = scene.cluster.version()
    except ApiError as error:
        if error.status == 403:
            return unknown("this account may not ask for the version", "it should be 1.30 or newer", "kubectl version")
        raise
    known = version(found)
    if known is None:
        return unknown(found, "compare it with what KServe needs, 1.30 or newer")
    if known < _LEAST:
        return failed(f"{found} is too old", "upgrade the cluster to 1.30 or newer, which KServe 0.15's guide asks for")
    if known < _ADVISED:
        return warning(
            f"{found} is older than KServe advises", "upgrade to 1.30, the least that KServe 0.15's guide names"
        )
    return ok(found)


def namespace(scene: Scene) -> Verdict:
    """Whether the namespace is there, and lets pods like ours in."""
    name = scene.namespace
    try:
        found = scene.cluster.get("Namespace", name)
    except ApiError as error:
        if error.status != 404:
            raise
        found = None
    if found is None:
        return failed(f"{name} is not there", "make it, or name another with -n", f"kubectl create namespace {name}")
    if found["metadata"].get("deletionTimestamp"):
        return failed(f"{name} is being deleted", "wait until it is gone and make it anew, or name another with -n")
    level = str((found["metadata"].get("labels") or {}).get(_ENFORCE) or "")
    return _pod_security(scene, level)


def _pod_security(scene: Scene, level: str) -> Verdict:
    """What the namespace's Pod Security level means for the service's pods."""
    name = scene.namespace
    relabel = f"kubectl label --overwrite namespace {name} {_ENFORCE}="
    if level == "restricted":
        return failed(
            f"{name} enforces the Pod Security level restricted, and vLLM's image runs as root",
            "use another namespace, or lower the level (with --no-ipc-lock, baseline is enough)",
            f"{relabel}privileged",
        )
    capabilities = scene.predictor["containers"][0]["securityContext"].get("capabilities")
    if level == "baseline" and capabilities:
        return failed(
            f"{name} enforces the Pod Security level baseline, which refuses IPC_LOCK",
            "set ipc_lock to false (without InfiniBand nothing is lost; here --no-ipc-lock), or lower the level",
            f"{relabel}privileged",
        )
    return ok(f"{name}, Pod Security level {level or 'not set'}")
