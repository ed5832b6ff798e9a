"""Fail the run, after its files are safe, when too much went wrong."""

import json

from clients.errors import BudgetError
from clients.results.budget import objection
from clients.steps.boundary import step


def gate(*, summary: str, max_error_rate: float) -> None:
    """Compare the summary with the run's error budget.

    Args:
        summary: The summary of `merge_shards` as JSON.
        max_error_rate: Share of the rows, 0 to 1, that may end other than `ok` or `truncated`.
    """
    with step("gate"):
        if found := objection(json.loads(summary), max_error_rate):
            raise BudgetError(found)
