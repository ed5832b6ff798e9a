import re
from typing import Any

import pyarrow as pa

from clients.records import Outcome
from clients.results.comparison import compare, numbers_of
from clients.results.markdown import render_markdown
from clients.results.schema import COLUMNS
from clients.results.summary import Summary, SummaryCollector

ATTACK = "a|b <img src=x> [l](javascript:x) `c` **d** # e\nf"


def summarise(*outcomes: Outcome, **row: Any) -> Summary:
    collector = SummaryCollector()
    rows = [
        {"row": n, "id": f"행-{n}", "request_hash": "", "outcome": outcome, "attempts": 0, **row}
        for n, outcome in enumerate(outcomes)
    ]
    collector.add(pa.RecordBatch.from_pylist(rows, schema=COLUMNS))
    return collector.summary(settings={})


def table_lines(page: str) -> list[list[str]]:
    """The cells of each line of each table; a divider that is escaped is none."""
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("|")]


def test_a_first_run_is_told_in_a_few_lines() -> None:
    page = render_markdown(
        summarise(Outcome.OK, Outcome.FAILED, error_code="http_500"), title="야간 배치", location="s3://b/r"
    )
    assert page.startswith("# 야간 배치\n")
    assert "| failed | 1 | 50.0 % |" in page
    assert "Error codes: http\\_500 2." in page
    assert "before" not in page


def test_a_later_run_is_put_beside_the_one_before() -> None:
    summary, before = summarise(Outcome.OK, Outcome.FAILED), summarise(*[Outcome.OK] * 4)
    summary["comparison"] = compare(numbers_of(summary, run=""), numbers_of(before, run=""), {"error_rate": 0.1})
    page = render_markdown(summary, title="t", location="")
    assert "| rows | 4 | 2 | **50 % fewer** |" in page
    assert "| rows that went wrong | 0 % | 50.0 % | **50.0 points more** |" in page
    assert "**error\\_rate went from 0 % to 50 %" in page
    assert "Look at: rows, " in page


def test_what_comes_from_outside_shows_as_it_is() -> None:
    summary = summarise(Outcome.FAILED, error_code=ATTACK, model=ATTACK)
    before = numbers_of(summary, run="")
    before["outcomes"] = {ATTACK: 3}
    summary["comparison"] = compare(numbers_of(summary, run=""), before, {})
    summary["comparison"]["regressions"] = [ATTACK]
    page = render_markdown(summary, title=ATTACK, location=ATTACK)
    assert {len(line) for line in table_lines(page)} == {2, 4}
    plain = re.sub(r"\\.", "", page)
    assert not re.search(r"<|\[|`", plain)
