import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.batch.options import RunOptions
from clients.errors import SettingsError
from clients.records import Outcome
from clients.results.budget import regression
from clients.results.changes import comparison_fact, comparison_lines, worse_fact
from clients.results.comparison import MEASURES, Numbers, compare, numbers_of, read_limits
from clients.results.summary import Summary, SummaryCollector


def numbers(**measures: float | None) -> Numbers:
    usual: dict[str, float | None] = {
        "rows": 1000,
        "ok_rate": 0.99,
        "error_rate": 0.01,
        "completion_tokens_p50": 200,
        "completion_tokens_p95": 900,
        "prompt_tokens": 50_000,
        "completion_tokens": 240_000,
        "rows_per_s": 10.0,
        "output_tokens_per_s": 2400.0,
        "latency_p50_s": 2.0,
        "latency_p95_s": 8.0,
        "gpu_seconds_held": 1600.0,
        "gpu_seconds_per_row": 1.6,
    }
    outcomes = {"ok": 990, "rejected": 10}
    return Numbers(run="r", finished_at="2026-11-24T02:10:00.000Z", outcomes=outcomes, measures=usual | measures)


def summary(**fields: Any) -> Summary:
    empty: Any = SummaryCollector().summary(settings={})
    return empty | fields


def test_every_measure_of_the_unit_tests_is_one_and_the_other_way_round() -> None:
    assert [*numbers()["measures"]] == [*MEASURES]


def test_what_is_kept_of_a_run_is_small_and_survives_json() -> None:
    outcomes = {word.value: 0 for word in Outcome} | {"ok": 6, "truncated": 2, "failed": 2}
    spread = {"p50": 5, "p95": 9}
    found = numbers_of(
        summary(rows=10, outcomes=outcomes, completion_tokens_per_row=spread, gpu_seconds_held=30.0), run="r1"
    )
    assert found["outcomes"] == {"ok": 6, "truncated": 2, "failed": 2}
    assert (found["measures"]["error_rate"], found["measures"]["ok_rate"]) == (0.2, 0.6)
    assert (found["measures"]["completion_tokens_p50"], found["measures"]["latency_p95_s"]) == (5, None)
    assert found["measures"]["gpu_seconds_per_row"] == 3.0
    assert json.loads(json.dumps(found)) == found
    assert len(json.dumps(found)) < 1000


def test_a_run_without_rows_has_numbers_too() -> None:
    found = numbers_of(summary(), run="")
    assert (found["measures"]["rows"], found["measures"]["error_rate"]) == (0, None)
    assert compare(found, found, {"rows": 0.0})["regressions"] == []


def test_a_share_changes_by_a_difference_and_anything_else_by_a_ratio() -> None:
    found = compare(numbers(error_rate=0.05, rows_per_s=7.5), numbers(), {})["changes"]
    assert found["error_rate"]["change"] == pytest.approx(0.04)
    assert found["rows_per_s"]["change"] == pytest.approx(-0.25)
    assert (found["rows"]["before"], found["rows"]["now"], found["rows"]["change"]) == (1000, 1000, 0.0)


@pytest.mark.parametrize(
    ("measures", "worse"),
    [
        ({"rows_per_s": 8.0}, True),
        ({"rows_per_s": 9.5}, False),
        ({"rows_per_s": 20.0}, False),
        ({"latency_p95_s": 12.0}, True),
        ({"latency_p95_s": 4.0}, False),
        ({"completion_tokens_p50": 300}, True),
        ({"completion_tokens_p50": 100}, True),
        ({"completion_tokens_p50": 195}, False),
        ({"error_rate": 0.03}, True),
        ({"error_rate": 0.0}, False),
        ({"gpu_seconds_per_row": 2.0}, True),
        ({"rows": 800}, True),
        ({"rows": 2000}, False),
        ({"completion_tokens": 900_000}, False),
        ({"gpu_seconds_held": 9000.0}, False),
    ],
)
def test_what_got_notably_worse_is_marked(measures: dict[str, float], worse: bool) -> None:
    (name,) = measures
    assert compare(numbers(**measures), numbers(), {})["changes"][name]["worse"] is worse


def test_what_neither_run_has_is_left_out_and_what_one_has_is_shown_without_a_change() -> None:
    found = compare(numbers(gpu_seconds_held=None, latency_p95_s=None), numbers(gpu_seconds_held=None), {})["changes"]
    assert "gpu_seconds_held" not in found
    assert found["latency_p95_s"] == {"before": 8.0, "now": None, "change": None, "worse": False}


def test_numbers_of_an_earlier_version_may_lack_a_measure() -> None:
    before = numbers()
    del before["measures"]["latency_p95_s"]
    found = compare(numbers(), before, {"latency_p95_s": 0.1})
    assert found["changes"]["latency_p95_s"]["before"] is None
    assert found["regressions"] == []


def test_a_measure_that_was_nothing_has_no_ratio() -> None:
    found = compare(numbers(), numbers(gpu_seconds_held=0.0), {"gpu_seconds_held": 0.1})
    assert found["changes"]["gpu_seconds_held"]["change"] is None
    assert found["regressions"] == []


@pytest.mark.parametrize(
    ("measures", "limits", "says"),
    [
        ({"error_rate": 0.065}, {"error_rate": 0.02}, "error_rate went from 1 % to 6.5 %"),
        ({"rows": 400}, {"rows": 0.5}, "rows went from 1000 to 400"),
        ({"completion_tokens_p50": 90}, {"completion_tokens_p50": 0.5}, "completion_tokens_p50 went from 200 to 90"),
        ({"completion_tokens": 480_000}, {"completion_tokens": 0.5}, "completion_tokens went from 240000 to 480000"),
        ({"latency_p95_s": 20.0}, {"latency_p95_s": 1}, "latency_p95_s went from 8 to 20"),
    ],
)
def test_a_change_beyond_its_limit_is_a_regression_with_numbers_and_a_mend(
    measures: dict[str, float], limits: dict[str, float], says: str
) -> None:
    (sentence,) = compare(numbers(**measures), numbers(), limits)["regressions"]
    assert says in sentence
    assert "max_regression" in sentence
    assert "run it once with a higher one" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("measures", "limits"),
    [
        ({"error_rate": 0.03}, {"error_rate": 0.02}),
        ({"rows": 500}, {"rows": 0.5}),
        ({"rows": 9000}, {"rows": 0.0}),
        ({"rows_per_s": 100.0}, {"rows_per_s": 0.0}),
        ({"error_rate": 0.0}, {"error_rate": 0.0}),
        ({"latency_p95_s": None}, {"latency_p95_s": 0.0}),
        ({"error_rate": 0.9}, {}),
    ],
)
def test_as_far_as_allowed_and_for_the_better_is_no_regression(
    measures: dict[str, float | None], limits: dict[str, float]
) -> None:
    assert compare(numbers(**measures), numbers(), limits)["regressions"] == []


@given(st.sampled_from([*MEASURES]), st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 3))
def test_a_wider_limit_never_finds_more(name: str, before: float, now: float, limit: float) -> None:
    then, found = numbers(**{name: before}), numbers(**{name: now})
    narrow = compare(found, then, {name: limit})["regressions"]
    wide = compare(found, then, {name: 2 * limit + 0.1})["regressions"]
    assert len(wide) <= len(narrow) <= 1
    assert compare(then, then, {name: 0.0})["regressions"] == []


def test_the_gate_reads_no_more_than_the_sentences() -> None:
    assert regression({}) is None
    assert regression({"comparison": None}) is None
    assert regression({"comparison": {"regressions": []}}) is None
    assert regression({"comparison": {"regressions": ["One.", "Two."]}}) == "One. Two."


# Limits as people write them


@pytest.mark.parametrize("value", ["error_rate=0.02, rows=0.5", {"error_rate": 0.02, "rows": 0.5}])
def test_limits_are_text_or_a_mapping(value: Any) -> None:
    assert read_limits(value, "x") == (("error_rate", 0.02), ("rows", 0.5))


def test_no_limits_are_none() -> None:
    assert read_limits("", "x") == read_limits({}, "x") == ()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("errors=0.1", "not compared by 'errors', but by rows, ok_rate"),
        ("rows", "rows must be a share of at least 0"),
        ("rows=", "such as rows=0.1, found ''"),
        ("rows=-1", "found '-1'"),
        ("rows=nan", "found 'nan'"),
        ("rows=inf", "found 'inf'"),
        ({"rows": True}, "found True"),
        ({"rows": None}, "found None"),
        ({"rows": [1]}, r"found \[1\]"),
        (0.2, "expected NAME=SHARE"),
        (["rows"], "expected NAME=SHARE"),
    ],
)
def test_limits_that_cannot_be_used_are_named(value: Any, says: str) -> None:
    with pytest.raises(SettingsError, match=f"^--max-regression: .*{says}"):
        read_limits(value, "--max-regression")


def test_the_options_carry_limits_as_json() -> None:
    options = RunOptions.from_json({"max_regression": {"rows": 0.5}})
    assert options.max_regression == (("rows", 0.5),)
    assert options.to_json() == {"max_regression": {"rows": 0.5}}
    assert RunOptions.from_json(options.to_json()) == options
    assert RunOptions.from_json({"max_regression": "rows=0.5"}) == options
    assert RunOptions.from_json({}).to_json() == {}
    with pytest.raises(SettingsError, match="max_regression: runs are not compared by 'cost'"):
        RunOptions.from_json({"max_regression": {"cost": 1}})


# In words


def test_every_measure_has_a_line_in_plain_words() -> None:
    found = compare(numbers(rows=1200, error_rate=0.05, latency_p95_s=10.0, rows_per_s=10.02), numbers(), {})
    lines = {line.title: line for line in comparison_lines(found)}
    assert len(lines) == len(MEASURES)
    assert lines["rows"][1:] == ("1,000", "1,200", "20 % more", False)
    assert lines["rows that went wrong"][1:] == ("1.00 %", "5.00 %", "4.00 points more", True)
    assert lines["p95 latency"][1:] == ("8.00 s", "10.0 s", "25 % slower", True)
    assert lines["throughput"][1:] == ("10.0 rows/s", "10.0 rows/s", "same", False)
    assert worse_fact(found) == "Look at: rows that went wrong, p95 latency."
    assert worse_fact(compare(numbers(), numbers(), {})) == "Nothing got notably worse."


def test_outcomes_are_told_where_their_rows_are_not_as_many_as_before() -> None:
    now = numbers()
    now["outcomes"] = {"ok": 985, "rejected": 10, "empty": 5}
    told = [tuple(line) for line in comparison_lines(compare(now, numbers(), {}))[len(MEASURES) :]]
    assert told == [("empty rows", "0", "5", "5 more", False)]


def test_one_line_tells_what_changed_notably() -> None:
    found = compare(numbers(rows=1200, error_rate=0.05, rows_per_s=30.0), numbers(), {})
    assert comparison_fact(summary(comparison=found)) == (
        "Beside the run before of 2026-11-24 02:10:00 UTC: 20 % more rows, "
        "rows that went wrong from 1.00 % to 5.00 %, throughput 200 % faster"
    )
    same = compare(numbers(), numbers() | {"finished_at": None}, {})
    assert comparison_fact(summary(comparison=same)) == "Beside the run before: no notable change"


def test_a_first_run_and_a_summary_of_an_earlier_version_have_no_such_line() -> None:
    assert comparison_fact(summary()) == ""
    old: Any = {name: value for name, value in summary().items() if name != "comparison"}
    assert comparison_fact(old) == ""
