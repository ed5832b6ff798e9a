"""Check every row before anything expensive starts."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clients.events import emit
from clients.prompts.plan import check_prompts as check
from clients.prompts.rows import JobDefaults, whole_numbers
from clients.steps.boundary import step
from clients.storage import refusals

logger = logging.getLogger(__name__)


def check_prompts(
    *, prompts: str, system_prompt: str, request_defaults: Mapping[str, Any], checked_path: str
) -> dict[str, Any]:
    """Read and check the whole input once and write what was found.

    Returns:
        Counts for the artifact's metadata.
    """
    with step("check_prompts"):
        defaults = JobDefaults(system_prompt=system_prompt, request_defaults=whole_numbers(request_defaults))
        checked = check(prompts, defaults)
        with refusals("write", checked_path):
            Path(checked_path).write_bytes(checked.to_json())
        for example in checked.examples:
            emit(logger, "row.invalid", row=example.row, id=example.id, error=example.error_message)
        counts = {"rows": checked.rows, "invalid": checked.invalid, "repeated_ids": checked.repeated_ids}
        emit(logger, "prompts.checked", **counts)
    return counts
