"""Fail the run when too much went wrong or got worse."""

from kfp.dsl import Artifact, Input

from components._embedding import use_code
from components._factory import PLANNED, step


@step("clients.steps.gate", there=PLANNED)
def gate(code: Input[Artifact], summary: str, max_error_rate: float) -> None:
    """Fails the run, after its files are safe, when rows are missing, too many went wrong, or too much got worse.

    Args:
        code: Code of earlier steps.
        summary: The summary of merge_shards.
        max_error_rate: Share of the rows, 0 to 1, that may end other than ok or truncated.
    """
    use_code(code)
    from clients.steps.gate import gate as run

    run(summary=summary, max_error_rate=max_error_rate)
