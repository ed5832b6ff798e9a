"""The pods of a service."""

from clients.serving.cluster import Cluster, Object
from clients.serving.labels import SERVICE_LABEL


def pods_of(cluster: Cluster, name: str, *, namespace: str = "") -> list[Object]:
    """The pods of a service, by KServe's label, or by the one that its Deployment selects them with.

    Args:
        cluster: Where to look.
        name: Of the InferenceService.
        namespace: "" for the cluster's own.

    Raises:
        ApiError: they cannot be listed.
    """
    for labels in (f"{SERVICE_LABEL}={name}", f"app=isvc.{name}-predictor"):
        if pods := cluster.list("Pod", labels=labels, namespace=namespace):
            return pods
    return []
