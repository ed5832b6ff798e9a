"""What a run decides at its start."""

import datetime as dt

import pytest

from clients.errors import SettingsError
from clients.prompts.start import Start, date_of, expanded

NOW = dt.datetime(2026, 11, 25, 23, 30, tzinfo=dt.timezone(dt.timedelta(hours=-3)))


@pytest.mark.parametrize(
    "run_date", ["", "  ", "[[CurrentTime]]", "[[CurrentTime.2006-01-02]]", "[[ScheduledTime.2006-01-02]]"]
)
def test_without_a_date_or_with_a_macro_that_stayed_as_it_was_it_is_today_in_utc(run_date: str) -> None:
    assert date_of(run_date, NOW) == dt.date(2026, 11, 26)


@pytest.mark.parametrize(
    "run_date",
    ["2026-02-28", "20260228", "2026-02-28T01:02:03Z", "20260228010203", "2026-02-28 01:02", "2026-02-28T010203+0900"],
)
def test_a_date_may_be_written_in_several_ways(run_date: str) -> None:
    assert date_of(run_date, NOW) == dt.date(2026, 2, 28)


@pytest.mark.parametrize("run_date", ["tomorrow", "2026-13-01", "2026-02-30", "26-01-01", "2026", "2026-02-28x", "[x]"])
def test_what_is_no_date_is_refused(run_date: str) -> None:
    with pytest.raises(SettingsError, match="run_date must be a date such as 2026-11-25, found"):
        date_of(run_date, NOW)


def test_macros_are_replaced_and_other_braces_stay() -> None:
    text = "s3://b/{date}/{yesterday}/{run}/{shard}/{date}.jsonl"
    assert (
        expanded(text, date=dt.date(2026, 3, 1), run="r-1")
        == "s3://b/2026-03-01/2026-02-28/r-1/{shard}/2026-03-01.jsonl"
    )
    assert expanded("inline:jsonl:{date}", date=dt.date(2026, 3, 1), run="r") == "inline:jsonl:{date}"


def test_a_start_travels_as_one_line() -> None:
    start = Start(
        run="r", date="2026-03-01", prompts="a\nb", state="s", kept=True, job="j", max_regression={"rows": 0.1}
    )
    assert b"\n" not in start.to_json()
    assert Start.from_json(start.to_json()) == start
