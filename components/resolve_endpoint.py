"""Find out where the model answers."""

from kfp.dsl import Artifact, Input

from components._embedding import use_code
from components._factory import CHECKED, step


@step("clients.steps.resolve_endpoint", there=CHECKED)
def resolve_endpoint(code: Input[Artifact], endpoint_url: str, model: str, server_wait_s: int) -> str:
    """Waits until the endpoint answers and chooses the model.

    Args:
        code: Code of earlier steps.
        endpoint_url: Address of an OpenAI-compatible API, with or without /v1.
        model: Name of the model; empty takes the first one the endpoint lists.
        server_wait_s: Seconds to wait for an endpoint that is still starting.

    Returns:
        JSON with base_url and model.
    """
    use_code(code)
    from clients.steps.resolve_endpoint import resolve_endpoint as run

    return run(endpoint_url=endpoint_url, model=model, server_wait_s=server_wait_s)
