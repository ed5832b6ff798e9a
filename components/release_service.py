"""Give the GPUs back."""

from components._embedding import use_code
from components._factory import SERVING_PACKAGES, step


@step("clients.steps.release_service", packages=SERVING_PACKAGES)
def release_service(run: str, endpoint_url: str, service_name: str) -> None:
    """Releases what this run deployed, whatever became of the run, and waits until its pods are gone.

    Args:
        run: Id of the run.
        endpoint_url: Address of an endpoint that existed; then nothing was deployed.
        service_name: Name of the InferenceService; empty for the one that was made for this run.
    """
    use_code()
    from clients.steps.release_service import release_service as run_step

    run_step(run=run, endpoint_url=endpoint_url, service_name=service_name)
