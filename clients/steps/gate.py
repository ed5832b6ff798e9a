"""Fail the run, after its files are safe, when too much went wrong or got worse."""

import json

from clients.errors import BudgetError
from clients.results.budget import objection, regression
from clients.steps.boundary import step


def gate(*, summary: str, max_error_rate: float) -> None:
    """Compare the summary with the run's error budget, and take the word of its comparison with the run before.

    Args:
        summary: The summary of `merge_shards` as JSON.
        max_error_rate: Share of the rows, 0 to 1, that may end other than `ok` or `truncated`.

    Raises:
        SystemExit: too many rows went wrong, or the run got worse; see `step`.
    """
    with step("gate"):
        read = json.loads(summary)
        if found := objection(read, max_error_rate) or regression(read):
            raise BudgetError(found)
