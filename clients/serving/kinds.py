"""The kinds of Kubernetes objects that this package reads or writes, and their addresses in the API."""

import dataclasses
from urllib.parse import quote


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of object.

    Attributes:
        group: API group; "" for the core.
        version: Version within the group.
        plural: Name in URLs and in RBAC rules.
        namespaced: Whether its objects live in a namespace.
        brought_by: What has to be installed in the cluster for this kind to exist; "" for Kubernetes itself.
    """

    group: str
    version: str
    plural: str
    namespaced: bool = True
    brought_by: str = ""

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """The URL path of an object, or of the collection when no name is given; all namespaces when none is given.

        Args:
            namespace: "" for all.
            name: Of the object; "" for the collection.
            subresource: Such as `log`; "" for the object itself.
        """
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [self.plural, *filter(None, (name, subresource))]
        return "/" + "/".join(quote(part, safe="") for part in parts)

    def rule(self, *verbs: str, subresource: str = "") -> str:
        """The RBAC rule that allows `verbs`, as YAML on one line."""
        resource = f"{self.plural}/{subresource}" if subresource else self.plural
        return f'{{apiGroups: ["{self.group}"], resources: ["{resource}"], verbs: [{", ".join(verbs)}]}}'


KINDS = {
    "InferenceService": Kind("serving.kserve.io", "v1beta1", "inferenceservices", brought_by="KServe"),
    "Pod": Kind("", "v1", "pods"),
    "Event": Kind("", "v1", "events"),
    "Secret": Kind("", "v1", "secrets"),
    "Service": Kind("", "v1", "services"),
    "PersistentVolumeClaim": Kind("", "v1", "persistentvolumeclaims"),
    "ResourceQuota": Kind("", "v1", "resourcequotas"),
    "Node": Kind("", "v1", "nodes", namespaced=False),
    "Namespace": Kind("", "v1", "namespaces", namespaced=False),
    "Deployment": Kind("apps", "v1", "deployments"),
    "DaemonSet": Kind("apps", "v1", "daemonsets"),
    "StorageClass": Kind("storage.k8s.io", "v1", "storageclasses", namespaced=False),
    "CustomResourceDefinition": Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False),
    "ConfigMap": Kind("", "v1", "configmaps"),
    "ServiceAccount": Kind("", "v1", "serviceaccounts"),
    "Workflow": Kind("argoproj.io", "v1alpha1", "workflows", brought_by="Kubeflow Pipelines (Argo Workflows)"),
    "RayCluster": Kind("ray.io", "v1", "rayclusters", brought_by="KubeRay"),
    "LeaderWorkerSet": Kind("leaderworkerset.x-k8s.io", "v1", "leaderworkersets", brought_by="LeaderWorkerSet"),
    "PodMonitor": Kind("monitoring.coreos.com", "v1", "podmonitors", brought_by="the Prometheus operator"),
    "ServiceMonitor": Kind("monitoring.coreos.com", "v1", "servicemonitors", brought_by="the Prometheus operator"),
}
