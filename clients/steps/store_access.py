"""How a step reaches object stores."""

from clients.steps.boundary import store_environment
from clients.storage.object_stores import StoreAccess, use_access


def reach_stores(store_endpoint: str) -> None:
    """Use the credentials that the pod has from its Secrets.

    Args:
        store_endpoint: Where `minio://` addresses lead to; "" for Kubeflow's own.
    """
    use_access(StoreAccess(minio_endpoint=store_endpoint, **store_environment()))
