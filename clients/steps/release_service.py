"""Give the GPUs back, whatever became of the run."""

import dataclasses
import logging

from clients.events import emit
from clients.serving.cluster import Cluster
from clients.serving.lease import name_for_run
from clients.serving.release import release
from clients.steps.boundary import kubeconfig, step

logger = logging.getLogger(__name__)


def release_service(*, run: str, endpoint_url: str, service_name: str) -> None:
    """Release what this run deployed; it needs nothing from the steps before, of which any may have failed.

    Args:
        run: The run's id.
        endpoint_url: An endpoint that existed; nothing was deployed then.
        service_name: As for `deploy_service`.
    """
    with step("release_service"):
        if endpoint_url.strip():
            return
        with Cluster.connect(kubeconfig=kubeconfig()) as cluster:
            released = release(cluster, service_name or name_for_run(run), run=run)
        emit(logger, "service.released", **dataclasses.asdict(released))
