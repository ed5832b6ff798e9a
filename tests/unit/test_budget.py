from typing import Any

import pytest

from clients.results.budget import objection


def summary(rows: int = 100, stopped_early: str | None = None, missing: int = 0, **outcomes: int) -> dict[str, Any]:
    codes = {"missing": missing} if missing else {}
    return {"rows": rows, "outcomes": outcomes, "error_codes": codes, "stopped_early": stopped_early}


@pytest.mark.parametrize(
    ("found", "rate"),
    [
        (summary(ok=100), 0.0),
        (summary(ok=50, truncated=50), 0.0),
        (summary(ok=80, failed=20), 0.2),
        (summary(rows=0), 0.0),
        (summary(rejected=100), 1.0),
    ],
)
def test_nothing_speaks_against_what_the_budget_allows(found: dict[str, Any], rate: float) -> None:
    assert objection(found, rate) is None


def test_what_went_wrong_is_counted_and_named() -> None:
    said = objection(summary(ok=79, failed=10, invalid=11), 0.2)
    assert said is not None
    assert said.startswith("21 of 100 rows went wrong (failed 10, invalid 11), more than max_error_rate 0.2 allows.")


def test_missing_rows_come_before_everything_else() -> None:
    said = objection(summary(failed=40, ok=60, missing=40, stopped_early="its time was over"), 1.0)
    assert said is not None
    assert said.startswith("40 of 100 rows have no answer yet (its time was over). Run the same command again")
