"""The pipelines by name: the only list that compile and run read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

COMPILED = Path(__file__).resolve().parent.parent / "compiled"


def compiled_path(name: str) -> Path:
    """Where the compiled YAML of a pipeline stands."""
    return COMPILED / f"{name}.yaml"


def pipelines() -> Mapping[str, Callable[..., Any]]:
    """Name to pipeline function. Importing them takes a second, so only compiling does."""
    from pipelines.batch_client import batch_client
    from pipelines.batch_inference import batch_inference

    return {"batch_client": batch_client, "batch_inference": batch_inference}
