"""Which kinds the stand-in serves, and the discovery documents that tell of them."""

from dataclasses import dataclass
from typing import Any

#: A Kubernetes object as the API's JSON.
Obj = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind of object.

    Attributes:
        brought_by: Name of what has to be installed for it to exist; "" for Kubernetes itself.
        generation: Whether the server counts changes of its spec.
        status: Whether `status` is written through a subresource of its own only.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    brought_by: str = ""
    generation: bool = True
    status: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """As messages name it: `deployments.apps`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified(self) -> str:
        """As messages about contents name it: `Deployment.apps`."""
        return f"{self.kind}.{self.group}" if self.group else self.kind


def _plain(group: str, version: str, plural: str, kind: str, *, namespaced: bool = True) -> Kind:
    return Kind(group, version, plural, kind, namespaced, generation=False, status=False)


POD = Kind("", "v1", "pods", "Pod")
EVENT = _plain("", "v1", "events", "Event")
SERVICE = Kind("", "v1", "services", "Service", generation=False)
SECRET = _plain("", "v1", "secrets", "Secret")
CLAIM = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", generation=False)
VOLUME = Kind("", "v1", "persistentvolumes", "PersistentVolume", namespaced=False, generation=False)
NODE = Kind("", "v1", "nodes", "Node", namespaced=False, generation=False)
NAMESPACE = Kind("", "v1", "namespaces", "Namespace", namespaced=False, generation=False)
QUOTA = Kind("", "v1", "resourcequotas", "ResourceQuota", generation=False)
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
REPLICA_SET = Kind("apps", "v1", "replicasets", "ReplicaSet")
STORAGE_CLASS = _plain("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False)
CRD = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
REVIEW = _plain("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False)
INFERENCE_SERVICE = Kind("serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService", brought_by="kserve")

KINDS = (
    POD,
    EVENT,
    SERVICE,
    SECRET,
    CLAIM,
    VOLUME,
    NODE,
    NAMESPACE,
    QUOTA,
    _plain("", "v1", "configmaps", "ConfigMap"),
    _plain("", "v1", "serviceaccounts", "ServiceAccount"),
    _plain("", "v1", "limitranges", "LimitRange"),
    DEPLOYMENT,
    REPLICA_SET,
    Kind("apps", "v1", "daemonsets", "DaemonSet"),
    Kind("apps", "v1", "statefulsets", "StatefulSet"),
    Kind("batch", "v1", "jobs", "Job"),
    Kind("batch", "v1", "cronjobs", "CronJob"),
    _plain("coordination.k8s.io", "v1", "leases", "Lease"),
    _plain("rbac.authorization.k8s.io", "v1", "roles", "Role"),
    _plain("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
    _plain("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", namespaced=False),
    _plain("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    STORAGE_CLASS,
    CRD,
    REVIEW,
    INFERENCE_SERVICE,
    Kind("serving.kserve.io", "v1alpha1", "servingruntimes", "ServingRuntime", brought_by="kserve"),
    Kind(
        "serving.kserve.io",
        "v1alpha1",
        "clusterservingruntimes",
        "ClusterServingRuntime",
        namespaced=False,
        brought_by="kserve",
    ),
    Kind("argoproj.io", "v1alpha1", "workflows", "Workflow", brought_by="argo", status=False),
    Kind("ray.io", "v1", "rayclusters", "RayCluster", brought_by="kuberay"),
    Kind("ray.io", "v1", "rayservices", "RayService", brought_by="kuberay"),
    Kind("leaderworkerset.x-k8s.io", "v1", "leaderworkersets", "LeaderWorkerSet", brought_by="lws"),
    Kind("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor", brought_by="prometheus"),
    Kind("monitoring.coreos.com", "v1", "servicemonitors", "ServiceMonitor", brought_by="prometheus"),
    Kind("monitoring.coreos.com", "v1", "prometheuses", "Prometheus", brought_by="prometheus"),
    Kind("keda.sh", "v1alpha1", "scaledobjects", "ScaledObject", brought_by="keda"),
)

#: What a test cluster has installed unless told otherwise.
INSTALLED = frozenset({"kserve", "argo", "prometheus"})

_BY_RESOURCE = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}
_BY_KIND = {(kind.api_version, kind.kind): kind for kind in KINDS}
_SHORT_NAMES = {"inferenceservices": ["isvc"], "pods": ["po"], "persistentvolumeclaims": ["pvc"], "namespaces": ["ns"]}
_SHORT_NAMES |= {"deployments": ["deploy"], "services": ["svc"], "events": ["ev"], "workflows": ["wf"]}
_SUBRESOURCES = {"pods": ("status", "log"), "deployments": ("status", "scale")}


def kind_at(group: str, version: str, plural: str) -> Kind | None:
    return _BY_RESOURCE.get((group, version, plural))


def kind_of(obj: Obj) -> Kind:
    """The kind that an object says it is of.

    Raises:
        KeyError: none that the stand-in knows.
    """
    return _BY_KIND[obj["apiVersion"], obj["kind"]]


def kind_named(name: str) -> Kind:
    """A kind by its name (`Pod`) or plural (`pods`)."""
    return next(kind for kind in KINDS if name in (kind.kind, kind.plural))


def crd_of(kind: Kind) -> Obj:
    """The definition of a custom kind, as far as a reader of it needs."""
    names = {"kind": kind.kind, "plural": kind.plural, "singular": kind.kind.lower(), "listKind": f"{kind.kind}List"}
    established = {"type": "Established", "status": "True", "reason": "InitialNamesAccepted", "message": ""}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.resource},
        "spec": {
            "group": kind.group,
            "names": names,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [{"name": kind.version, "served": True, "storage": True}],
        },
        "status": {"conditions": [established], "acceptedNames": names, "storedVersions": [kind.version]},
    }


def discovery(path: str, served: list[Kind]) -> Obj | None:
    """The answer to a GET of `/api`, `/apis`, `/apis/<group>` or `/apis/<group>/<version>`; None: no such thing."""
    parts = path.strip("/").split("/")
    if parts == ["api"]:
        return {"kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"]}
    if parts == ["apis"]:
        names = sorted({kind.group for kind in served if kind.group})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(name, served) for name in names]}
    if parts == ["api", "v1"]:
        return _resources("", "v1", served)
    if len(parts) == 2 and parts[0] == "apis" and any(kind.group == parts[1] for kind in served):
        return {"kind": "APIGroup", "apiVersion": "v1"} | _group(parts[1], served)
    if len(parts) == 3 and parts[0] == "apis":
        return _resources(parts[1], parts[2], served)
    return None


def _group(name: str, served: list[Kind]) -> Obj:
    versions = sorted({kind.version for kind in served if kind.group == name}, key=lambda version: "alpha" in version)
    rows = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": rows, "preferredVersion": rows[0]}


def _resources(group: str, version: str, served: list[Kind]) -> Obj | None:
    kinds = [kind for kind in served if (kind.group, kind.version) == (group, version)]
    if not kinds:
        return None
    rows: list[Obj] = []
    for kind in kinds:
        verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        if kind is REVIEW:
            verbs = ["create"]
        row = {"singularName": kind.kind.lower(), "namespaced": kind.namespaced, "kind": kind.kind}
        rows.append({"name": kind.plural, "verbs": verbs, "shortNames": _SHORT_NAMES.get(kind.plural, [])} | row)
        under = _SUBRESOURCES.get(kind.plural, ("status",) if kind.status else ())
        rows += [{"name": f"{kind.plural}/{name}", "verbs": ["get", "patch", "update"]} | row for name in under]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": kinds[0].api_version, "resources": rows}
