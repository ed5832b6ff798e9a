"""The edge of every step: events on, errors as one line, secrets from the environment."""

import contextlib
import logging
import os
from collections.abc import Iterator

from clients.errors import LLMInferenceError
from clients.events import emit, log_to_stderr
from clients.steps.interrupts import interruptible

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Run a step; what a user or a signal can cause ends it with one `step.failed` event and an exit code.

    A defect of ours keeps its traceback.
    """
    if not logging.getLogger("clients").handlers:  # a pod; elsewhere an entry point has chosen where events go
        log_to_stderr()
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
