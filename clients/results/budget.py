"""Whether a run's results are good enough, from its summary. Pure functions."""

from collections.abc import Mapping
from typing import Any

from clients.records import ERROR_OUTCOMES


def objection(summary: Mapping[str, Any], max_error_rate: float) -> str | None:
    """What speaks against a run: rows that are missing, or more that went wrong than allowed; None when nothing does.

    Args:
        summary: `rows`, `outcomes`, `error_codes` and `stopped_early` of a Summary.
        max_error_rate: Share of the rows, 0 to 1, that may end other than `ok` or `truncated`.
    """
    rows, outcomes = summary["rows"], summary["outcomes"]
    if missing := summary["error_codes"].get("missing", 0):
        why = f" ({summary['stopped_early']})" if summary.get("stopped_early") else ""
        return f"{missing} of {rows} rows have no answer yet{why}. Run the same command again to finish them."
    errors = {outcome: outcomes[outcome] for outcome in sorted(ERROR_OUTCOMES) if outcomes.get(outcome)}
    if rows and sum(errors.values()) > max_error_rate * rows:
        found = ", ".join(f"{outcome} {count}" for outcome, count in errors.items())
        return (
            f"{sum(errors.values())} of {rows} rows went wrong ({found}), more than max_error_rate "
            f"{max_error_rate:g} allows. The reasons stand in rejects.parquet."
        )
    return None


def regression(summary: Mapping[str, Any]) -> str | None:
    """What got worse since the run before by more than was allowed; None when nothing did, or there was none.

    Args:
        summary: `comparison` of a Summary.
    """
    found = (summary.get("comparison") or {}).get("regressions") or []
    return " ".join(found) or None
