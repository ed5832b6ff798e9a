"""Check every row before anything expensive starts."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clients.events import emit
from clients.prompts.check import check_prompts as check
from clients.prompts.rows import JobDefaults
from clients.steps.boundary import step, whole_numbers
from clients.storage import refusals

logger = logging.getLogger(__name__)


def check_prompts(
    *, prompts: str, system_prompt: str, request_defaults: Mapping[str, Any], template: str, checked_path: str
) -> dict[str, Any]:
    """Read and check the whole input once and write what was found.

    Args:
        prompts: Path or URI of the input.
        system_prompt: See `JobDefaults`; so are the two that follow.
        request_defaults: Request fields of rows that have no such field.
        template: The user message, with `{name}` where a column's value goes; "" for none.
        checked_path: The file to write.

    Returns:
        Counts for the artifact's metadata.
    """
    with step("check_prompts"):
        defaults = JobDefaults(
            system_prompt=system_prompt, request_defaults=whole_numbers(request_defaults), template=template
        )
        checked = check(prompts, defaults)
        with refusals("write", checked_path):
            Path(checked_path).write_bytes(checked.to_json())
        for example in checked.examples:
            emit(logger, "row.invalid", row=example.row, id=example.id, error=example.error_message)
        counts = {name: getattr(checked, name) for name in ("rows", "invalid", "repeated_ids", "duplicates")}
        counts["prompt_tokens_estimate"] = checked.tokens.prompt
        emit(logger, "prompts.checked", **counts)
    return counts
