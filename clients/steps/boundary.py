"""The edge of every step: events on, errors as one line, secrets from the environment."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from clients.errors import LLMInferenceError
from clients.events import emit, log_to_stderr
from clients.steps.interrupts import interruptible
from clients.steps.secrets import mounted

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Run a step; what a user or a signal can cause ends it with one `step.failed` event and an exit code.

    A defect of ours keeps its traceback.

    Args:
        name: Of the step, for its events.

    Raises:
        SystemExit: with the exit code of an LLMInferenceError inside the block.
    """
    if not logging.getLogger("clients").handlers:  # a pod; elsewhere an entry point has chosen where events go
        log_to_stderr()
    for variable, value in mounted().items():
        if not os.environ.get(variable):
            os.environ[variable] = value  # where the libraries look, too
    emit(logger, "step.started", step=name)
    try:
        with interruptible():
            yield
    except LLMInferenceError as error:
        emit(logger, "step.failed", step=name, error=str(error), exit_code=error.exit_code)
        raise SystemExit(error.exit_code) from None
    except Exception as error:  # a defect of ours: its traceback belongs in the log, its name on the screen
        emit(logger, "step.failed", step=name, error=f"{type(error).__name__}: {error}", exit_code=1)
        raise
    emit(logger, "step.finished", step=name)


def api_key() -> str | None:
    """The endpoint's key, from the Secret that the pod has as OPENAI_API_KEY; empty means none."""
    return os.environ.get("OPENAI_API_KEY") or None


def store_environment() -> dict[str, str]:
    """What the environment says about object stores.

    Kubeflow's own store has names of its own here: a pod may have an identity at Amazon, which they must not replace.
    """
    aws_endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return {
        "minio_key": os.environ.get("KLLM_STORE_ACCESS_KEY", ""),
        "minio_secret": os.environ.get("KLLM_STORE_SECRET_KEY", ""),
        "aws_endpoint": aws_endpoint,
        "aws_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "",
    }


def langfuse_environment() -> dict[str, str]:
    """What the environment says about traces; `clients.tracing.settings` reads it."""
    return {name: value for name, value in os.environ.items() if name.startswith("LANGFUSE_")}


def kubeconfig() -> str:
    """The kubeconfig that kubectl would use here; "" in a pod, which has a service account instead."""
    return os.environ.get("KUBECONFIG", "")


def own_pod() -> str:
    """The name of the pod that this runs in; "" outside a cluster."""
    return os.environ.get("HOSTNAME", "") if os.environ.get("KUBERNETES_SERVICE_HOST") else ""


def whole_numbers(value: Any) -> Any:
    """Undo what Kubeflow does to numbers inside a JSON parameter: 1024 arrives there as 1024.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_numbers(item) for item in value]
    return value
