"""Check every prompt before anything expensive starts."""

from typing import Any

from kfp.dsl import Artifact, Output

from components._factory import RESULTS_PACKAGES, step


@step("clients.steps.check_prompts", packages=RESULTS_PACKAGES)
def check_prompts(
    prompts: str, system_prompt: str, request_defaults: dict[str, Any], template: str, checked: Output[Artifact]
) -> None:
    """Checks every row of the input once, before a GPU is used. Malformed rows are counted, not fatal.

    Args:
        prompts: Path or URI of the input: JSONL, CSV or Parquet, also with gzip or zstd.
        system_prompt: First message of rows that have no system message of their own.
        request_defaults: Request fields that a row gets unless it has its own.
        template: User message with {name} where a column's value goes; empty takes a row's own prompt or messages.
        checked: What was found: rows, malformed rows, columns, and where the file can be cut.
    """
    from clients.steps.check_prompts import check_prompts as run

    counts = run(
        prompts=prompts,
        system_prompt=system_prompt,
        request_defaults=request_defaults,
        template=template,
        checked_path=checked.path,
    )
    checked.metadata.update(counts)
