"""Find out where the model answers and under which name."""

import json
import logging

from clients.events import emit
from clients.models import resolve_all
from clients.steps.boundary import api_key, step

logger = logging.getLogger(__name__)


def resolve_endpoint(*, endpoint_url: str, model: str, server_wait_s: float) -> str:
    """Wait until the endpoint lists its models and choose one.

    Args:
        endpoint_url: One base URL, or several divided by commas or blanks.
        model: Name of the model; "" takes the first one listed.
        server_wait_s: Seconds to wait for an endpoint that cannot be reached.

    Returns:
        JSON with `base_url` (several are divided by blanks) and `model`.

    Raises:
        SystemExit: the endpoint cannot be used; see `step`.
    """
    with step("resolve_endpoint"):
        endpoint = resolve_all(endpoint_url, model=model, api_key=api_key(), patience_s=server_wait_s)
        emit(logger, "endpoint.resolved", base_url=endpoint.base_url, model=endpoint.model)
    return json.dumps({"base_url": endpoint.base_url, "model": endpoint.model})
