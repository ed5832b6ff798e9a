"""Wait until the model answers, and say where."""

import json
import logging
from typing import Any

from clients.endpoint import base_url
from clients.events import emit
from clients.models import resolve_all
from clients.serving.cluster import Cluster
from clients.serving.deployed import Deployed
from clients.serving.wait import wait_until_ready
from clients.steps.boundary import api_key, kubeconfig, step

logger = logging.getLogger(__name__)


def wait_service(
    *, service: str, endpoint_url: str, model: str, ready_timeout_s: float, server_wait_s: float, lease_hours: float
) -> str:
    """Wait for the service that was deployed, or for the endpoint that was given.

    Args:
        service: What `deploy_service` returned.
        endpoint_url: The endpoint when nothing was deployed.
        model: The model to ask for at that endpoint; "" for the first it lists.
        ready_timeout_s: Seconds to wait for a service that was deployed.
        server_wait_s: Seconds to wait for an endpoint that was given.
        lease_hours: As for `deploy_service`.

    Returns:
        JSON with `base_url` and `model`, and for a deployed service `gpus_held_since`: pairs of GPUs and seconds.
    """
    with step("wait_service"):
        if not service:
            endpoint = resolve_all(endpoint_url, model=model, api_key=api_key(), patience_s=server_wait_s)
            found: dict[str, Any] = {"base_url": endpoint.base_url, "model": endpoint.model}
        else:
            deployed = Deployed.from_json(service)
            with Cluster.connect(kubeconfig=kubeconfig(), namespace=deployed.namespace) as cluster:
                serving = wait_until_ready(
                    cluster,
                    deployed,
                    ready_timeout_s=ready_timeout_s,
                    lease_s=lease_hours * 3600,
                    api_key=api_key(),
                )
            found = {
                "base_url": base_url(serving.url),
                "model": deployed.model,
                "gpus_held_since": serving.gpus_held_since,
            }
        emit(logger, "endpoint.resolved", base_url=found["base_url"], model=found["model"])
    return json.dumps(found)
