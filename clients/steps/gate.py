"""Fail the run, after its files are safe, when too much went wrong."""

import json

from clients.errors import BudgetError
from clients.records import ERROR_OUTCOMES
from clients.steps.boundary import step


def gate(*, summary: str, max_error_rate: float) -> None:
    """Compare the summary with the run's error budget.

    Args:
        summary: The summary of `merge_shards` as JSON.
        max_error_rate: Share of the rows, 0 to 1, that may end other than `ok` or `truncated`.
    """
    with step("gate"):
        found = json.loads(summary)
        rows, outcomes = found["rows"], found["outcomes"]
        missing = found["error_codes"].get("missing", 0)
        if missing:
            why = f" ({found['stopped_early']})" if found.get("stopped_early") else ""
            raise BudgetError(
                f"{missing} of {rows} rows have no answer yet{why}. Run the same command again to finish them."
            )
        errors = {outcome: outcomes[outcome] for outcome in sorted(ERROR_OUTCOMES) if outcomes.get(outcome)}
        if rows and sum(errors.values()) > max_error_rate * rows:
            found_text = ", ".join(f"{outcome} {count}" for outcome, count in errors.items())
            raise BudgetError(
                f"{sum(errors.values())} of {rows} rows went wrong ({found_text}), more than max_error_rate "
                f"{max_error_rate:g} allows. The reasons stand in rejects.parquet."
            )
