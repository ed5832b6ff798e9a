"""Put the model into the cluster, unless there is an endpoint already."""

from collections.abc import Mapping
from typing import Any

from clients.errors import SettingsError
from clients.serving.cluster import Cluster
from clients.serving.deploy import AFTER_RUN_CHOICES, deploy
from clients.serving.lease import name_for_run
from clients.serving.spec import ServingSpec
from clients.steps.boundary import kubeconfig, own_pod, step, whole_numbers


def deploy_service(
    *,
    run: str,
    endpoint_url: str,
    service_name: str,
    after_run: str,
    lease_hours: float,
    settings: Mapping[str, Any],
) -> str:
    """Deploy the service that this run needs.

    Args:
        run: The run's id.
        endpoint_url: An endpoint that exists; nothing is deployed then.
        service_name: Name of the InferenceService; "" for one of this run's own.
        after_run: `delete`, `stop` or `keep`.
        lease_hours: Hours after which the run counts as dead where nothing shows that it is alive.
        settings: Fields of ServingSpec.

    Returns:
        What `wait_service` needs, as JSON; "" when nothing was deployed.

    Raises:
        SystemExit: a setting cannot be used, or the cluster refuses; see `step`.
    """
    with step("deploy_service"):
        if endpoint_url.strip():
            return ""
        if after_run not in AFTER_RUN_CHOICES:
            raise SettingsError(f"after_run is {after_run!r}: choose one of {', '.join(AFTER_RUN_CHOICES)}")
        if lease_hours <= 0:
            raise SettingsError(f"lease_hours must be more than 0, found {lease_hours:g}")
        spec = ServingSpec(**whole_numbers(settings), name=service_name or name_for_run(run))
        owner_pod = "" if service_name or after_run == "keep" else own_pod()
        with Cluster.connect(kubeconfig=kubeconfig()) as cluster:
            deployed = deploy(
                cluster, spec, run=run, after_run=after_run, lease_s=lease_hours * 3600, owner_pod=owner_pod
            )
    return deployed.to_json()
