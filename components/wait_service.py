"""Wait until the model answers."""

from kfp.dsl import Artifact, Input

from components._embedding import use_code
from components._factory import CHECKED, SERVING, SERVING_PACKAGES, step


@step("clients.steps.wait_service", packages=SERVING_PACKAGES, there=(*CHECKED, *SERVING))
def wait_service(
    code: Input[Artifact],
    serving_code: Input[Artifact],
    service: str,
    endpoint_url: str,
    model: str,
    ready_timeout_s: int,
    server_wait_s: int,
    lease_hours: float,
) -> str:
    """Waits until every replica serves and one has answered; names the cause, and fails, when they never can.

    Args:
        code: Code of earlier steps.
        serving_code: Code of an earlier step.
        service: What deploy_service returned.
        endpoint_url: Address of the endpoint when nothing was deployed.
        model: Name of the model at that endpoint; empty takes the first one it lists.
        ready_timeout_s: Seconds to wait for a service that was deployed: scheduling, download, loading.
        server_wait_s: Seconds to wait for an endpoint that was given.
        lease_hours: Hours after which a run of which nothing is to be seen counts as dead.

    Returns:
        JSON with base_url and model, and since when GPUs are held.
    """
    use_code(code, serving_code)
    from clients.steps.wait_service import wait_service as run

    return run(
        service=service,
        endpoint_url=endpoint_url,
        model=model,
        ready_timeout_s=ready_timeout_s,
        server_wait_s=server_wait_s,
        lease_hours=lease_hours,
    )
