import datetime as dt
import itertools
import json
import math
import pickle
import random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.records import Outcome
from clients.results.distribution import EXACT_VALUES, Distribution
from clients.results.schema import COLUMNS
from clients.results.summary import ANSWERED, Summary, SummaryCollector
from clients.results.timeline import PAUSE_S, Timeline

START = dt.datetime(2026, 3, 14, 1, 2, 3, tzinfo=dt.UTC)


def row(number: int, outcome: Outcome = Outcome.OK, **more: Any) -> dict[str, Any]:
    """One result row; a row that was never sent has neither time nor tokens."""
    if outcome is Outcome.INVALID:
        return {"row": number, "id": f"row-{number}", "request_hash": "", "outcome": outcome, "attempts": 0, **more}
    sent = {
        "row": number,
        "id": f"row-{number}",
        "request_hash": f"{number:032x}",
        "outcome": outcome,
        "attempts": 1,
        "started_at": START + dt.timedelta(seconds=number),
        "latency_s": 2.0,
        "model": "qwen3-30b-fp8",
        "endpoint": "http://vllm/v1",
        "trace_id": f"{number:032x}",
    }
    if outcome in ANSWERED:
        sent |= {"prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 4}
    return sent | more


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=COLUMNS)


def summarise(*batches: list[dict[str, Any]], keep: int = 20) -> Summary:
    collector = SummaryCollector(keep=keep)
    for rows in batches:
        collector.add(batch(rows))
    return collector.summary(settings={"max_tokens": 8})


def nearest_rank(values: list[float], percent: int) -> float:
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


# What a summary says


def test_every_outcome_word_is_counted_even_when_it_never_happened() -> None:
    summary = summarise([row(0), row(1, Outcome.INVALID), row(2, Outcome.OK)])
    assert summary["outcomes"] == {word.value: 0 for word in Outcome} | {"ok": 2, "invalid": 1}
    assert (summary["rows"], summary["answered"]) == (3, 2)


def test_totals_and_rates_come_from_the_rows() -> None:
    summary = summarise([row(0), row(1, attempts=3)], [row(2, Outcome.FAILED, attempts=4), row(3, Outcome.INVALID)])
    assert summary["prompt_tokens"] == 20
    assert summary["completion_tokens"] == 10
    assert summary["cached_tokens"] == 8
    assert summary["retries"] == 5
    assert summary["started_at"] == "2026-03-14T01:02:03.000Z"
    assert summary["finished_at"] == "2026-03-14T01:02:07.000Z"
    assert summary["duration_s"] == 4.0
    assert summary["rows_per_s"] == 3 / 4
    assert summary["output_tokens_per_s"] == 10 / 4
    assert summary["models"] == {"qwen3-30b-fp8": 3}
    assert summary["endpoints"] == {"http://vllm/v1": 3}
    assert summary["settings"] == {"max_tokens": 8}


def test_a_summary_is_json_as_it_stands() -> None:
    summary = summarise([row(0), row(1, Outcome.REJECTED, error_code="http_400")])
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_only_answered_rows_shape_the_latency() -> None:
    summary = summarise([row(0), row(1, Outcome.REJECTED, latency_s=0.001), row(2, Outcome.FAILED, latency_s=600.0)])
    assert summary["latency_s"] is not None
    assert (summary["latency_s"]["count"], summary["latency_s"]["max"]) == (1, 2.0)


@pytest.mark.parametrize("rows", [[], [row(0, Outcome.INVALID)]])
def test_without_a_request_there_is_no_time_and_no_rate(rows: list[dict[str, Any]]) -> None:
    summary = summarise(rows)
    nothing = ("started_at", "finished_at", "rows_per_s", "output_tokens_per_s", "latency_s", "latency_histogram")
    assert [dict(summary)[name] for name in nothing] == [None] * len(nothing)
    assert summary["duration_s"] == 0
    assert summary["throughput"] == {"seconds": [], "rows": [], "output_tokens": [], "pauses": []}


def test_a_server_without_token_counts_yields_none_and_not_zero() -> None:
    summary = summarise([row(0, completion_tokens=None, prompt_tokens=None, cached_tokens=None)])
    assert summary["completion_tokens_per_row"] is None
    assert summary["output_tokens_per_s"] is None
    assert summary["completion_tokens"] == 0


def test_times_and_counts_that_cannot_be_are_left_out() -> None:
    summary = summarise([row(0), *(row(n, latency_s=bad) for n, bad in enumerate([math.nan, math.inf, -1.0], 1))])
    assert summary["latency_s"] is not None
    assert (summary["latency_s"]["count"], summary["duration_s"]) == (1, 2.0)


# Examples


def test_the_slowest_rows_come_first_and_ties_in_input_order() -> None:
    first = [row(n, latency_s=float(n % 5)) for n in range(10, 20)]
    second = [row(n, latency_s=float(n % 5)) for n in range(10)]
    summary = summarise(first, second, keep=3)
    assert [(found["row"], found["latency_s"]) for found in summary["slowest"]] == [(4, 4.0), (9, 4.0), (14, 4.0)]


def test_a_common_outcome_does_not_hide_a_rare_one() -> None:
    rows = [row(n, Outcome.TRUNCATED) for n in range(50)]
    rare = row(49_000, Outcome.FAILED, error_code="timeout", error_message="x" * 1000)
    summary = summarise(rows, [rare], keep=4)
    assert [found["row"] for found in summary["not_ok"]] == [0, 1, 2, 49_000]
    assert len(summary["not_ok"][-1]["error_message"]) <= 300


def test_failed_rows_are_the_first_by_row_in_whatever_order_they_come() -> None:
    late, early = [row(n, Outcome.FAILED) for n in range(10, 15)], [row(n, Outcome.FAILED) for n in range(5)]
    assert [found["row"] for found in summarise(late, early, keep=3)["not_ok"]] == [0, 1, 2]


def test_keeping_no_examples_is_possible() -> None:
    summary = summarise([row(0), row(1, Outcome.FAILED)], [row(2, Outcome.FAILED)], keep=0)
    assert summary["slowest"] == summary["not_ok"] == []


def test_endless_error_codes_end_up_under_other() -> None:
    summary = summarise([row(n, Outcome.FAILED, error_code=f"code-{n}") for n in range(200)])
    assert len(summary["error_codes"]) == 51
    assert summary["error_codes"]["other"] == 150


# Any order, any batches, any size


@st.composite
def result_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows whose times are quarters of a second, so that sums do not depend on the order of adding."""
    rows = []
    for number in range(draw(st.integers(1, 30))):
        outcome = draw(st.sampled_from(list(Outcome)))
        more: dict[str, Any] = {}
        if outcome is not Outcome.INVALID:
            more["latency_s"] = draw(st.integers(0, 400)) / 4
            more["started_at"] = START + dt.timedelta(seconds=draw(st.integers(-10_000, 10_000)) / 4)
        if outcome in ANSWERED:
            more["completion_tokens"] = draw(st.none() | st.integers(0, 5000))
        rows.append(row(number, outcome, **more))
    return rows


@given(result_rows(), st.data())
def test_the_order_and_size_of_batches_change_nothing(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    assert summarise(shuffled[:cut], shuffled[cut:], keep=5) == summarise(rows, keep=5)


@given(result_rows())
def test_what_finished_adds_up_over_time(rows: list[dict[str, Any]]) -> None:
    summary = summarise(rows)
    found = summary["throughput"]
    sent = [one for one in rows if one["outcome"] != Outcome.INVALID]
    assert sum(found["rows"]) == len(sent)
    assert sum(found["output_tokens"]) == sum(one.get("completion_tokens") or 0 for one in sent)
    assert len(found["rows"]) == len(found["seconds"]) == len(found["output_tokens"]) <= 120
    assert sum(found["seconds"]) == pytest.approx(summary["duration_s"])


def random_batch(rows: int, first: int) -> pa.RecordBatch:
    """Many rows at once: lognormal-like latencies over a busy hour."""
    numbers = pa.array(range(first, first + rows), pa.int64())
    latency = pc.exp(pc.multiply(pc.random(rows, initializer=first), 6.0))
    started = pc.add(pc.multiply(numbers, 20_000), 1_700_000_000_000_000).cast(pa.timestamp("us", "UTC"))
    columns: dict[str, Any] = {
        "row": numbers,
        "id": numbers.cast(pa.string()),
        "request_hash": numbers.cast(pa.string()),
        "outcome": pa.array(["ok", "ok", "ok", "failed"] * (rows // 4)),
        "completion_tokens": pc.floor(pc.multiply(latency, 30)).cast(pa.int64()),
        "attempts": pa.array([1] * rows, pa.int32()),
        "started_at": started,
        "latency_s": latency,
    }
    arrays = [columns.get(field.name, pa.nulls(rows, field.type)) for field in COLUMNS]
    return pa.RecordBatch.from_arrays(arrays, schema=COLUMNS)


def test_a_quarter_of_a_million_rows_leave_less_than_a_megabyte() -> None:
    collector = SummaryCollector()
    sizes = []
    for first in range(0, 256_000, 8000):
        collector.add(random_batch(8000, first))
        sizes.append(len(pickle.dumps(collector)))
    summary = collector.summary(settings={})
    assert max(sizes) < 1_000_000
    assert summary["rows"] == sum(summary["throughput"]["rows"]) == 256_000
    assert len(summary["throughput"]["rows"]) == 120
    steady = [rows / width for rows, width in zip(*steady_part(summary), strict=True)]
    assert max(steady) < 1.15 * min(steady), "buckets of unequal width would show as a ripple"


def steady_part(summary: Summary) -> tuple[list[int], list[float]]:
    return summary["throughput"]["rows"][20:-20], summary["throughput"]["seconds"][20:-20]


# Percentiles


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=300), st.integers(1, 50))
def test_percentiles_of_small_data_are_exact(values: list[float], size: int) -> None:
    distribution = Distribution()
    for first in range(0, len(values), size):
        distribution.add(pa.array(values[first : first + size], pa.float64()))
    spread = distribution.spread()
    assert spread is not None
    found = (spread["p50"], spread["p90"], spread["p95"], spread["p99"], spread["max"])
    assert found == tuple(nearest_rank(values, percent) for percent in (50, 90, 95, 99, 100))
    assert spread["mean"] == pytest.approx(math.fsum(values) / len(values))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.floats(-8, 10), st.floats(0, 3), st.integers(EXACT_VALUES + 1, 20_000))
def test_percentiles_of_large_data_are_within_half_a_per_cent(seed: int, mu: float, sigma: float, count: int) -> None:
    draw = random.Random(seed)
    values = [draw.lognormvariate(mu, sigma) for _ in range(count)]
    distribution = Distribution()
    for first in range(0, count, 3000):
        distribution.add(pa.array(values[first : first + 3000]))
    spread = distribution.spread()
    histogram = distribution.histogram()
    assert spread is not None
    assert histogram is not None
    for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert spread[name] == pytest.approx(nearest_rank(values, percent), rel=0.005, abs=2e-6)  # type: ignore[literal-required]
    assert spread["max"] == max(values)
    assert sum(histogram["counts"]) == count


def test_repeated_whole_numbers_stay_exact_at_any_size() -> None:
    distribution = Distribution()
    distribution.add(pa.array([0, 1, 2, 7] * EXACT_VALUES, pa.int64()))
    distribution.add(pa.array([300] * EXACT_VALUES * 4, pa.int64()))
    spread = distribution.spread()
    assert spread is not None
    assert (spread["p50"], spread["p90"]) == (7, 300)


@given(st.lists(st.integers(0, 10**6) | st.floats(0, 1e6), min_size=1, max_size=200), st.booleans())
def test_a_histogram_holds_every_value_between_rising_edges(values: list[float], whole: bool) -> None:
    distribution = Distribution()
    kept = [float(int(value)) for value in values] if whole else [float(value) for value in values]
    distribution.add(pa.array(kept, pa.float64()))
    histogram = distribution.histogram(whole=whole)
    assert histogram is not None
    edges, counts = histogram["edges"], histogram["counts"]
    assert sum(counts) == len(values)
    assert 1 <= len(counts) == len(edges) - 1 <= 64
    assert all(left < right for left, right in itertools.pairwise(edges))
    if whole:
        assert all(edge == int(edge) for edge in edges)
    for left, right, number in list(zip(edges, edges[1:], counts, strict=False))[1:-1]:
        assert number == sum(left <= value < right for value in kept)


def test_a_histogram_of_wide_data_is_logarithmic_and_of_narrow_data_linear() -> None:
    wide, narrow, short = Distribution(), Distribution(), Distribution()
    wide.add(pa.array([0.1, 1.0, 100.0]))
    narrow.add(pa.array([1.0, 1.5, 2.0]))
    short.add(pa.array([0, 1, 30], pa.int64()))
    found = [one.histogram(whole=one is short) for one in (wide, narrow, short)]
    assert [one["scale"] for one in found if one] == ["log", "linear", "linear"]
    assert Distribution().histogram() is None
    assert Distribution().spread() is None


# Time


def timeline(*intervals: tuple[float, float]) -> Timeline:
    """One request of one token for each (start, end) in seconds."""
    line = Timeline()
    for start, end in intervals:
        started, finished = (pa.array([round(moment * 1e6)], pa.int64()) for moment in (start, end))
        line.add(started, finished, pa.array([1], pa.int64()))
    return line


def test_a_gap_of_days_between_two_runs_is_a_pause_and_not_part_of_the_time() -> None:
    days = 3 * 86_400.0
    line = timeline((0, 10), (5, 20), (days, days + 10))
    found = line.throughput()
    assert line.active_s == 30
    assert found["pauses"] == [{"at_s": 20.0, "seconds": days - 20}]
    assert sum(found["seconds"]) == pytest.approx(30)
    assert sum(found["rows"]) == 3


def test_a_silence_of_less_than_a_minute_belongs_to_the_run() -> None:
    assert timeline((0, 1), (PAUSE_S + 1, PAUSE_S + 2)).active_s == PAUSE_S + 2
    assert timeline((0, 1), (PAUSE_S + 1.5, PAUSE_S + 2.5)).active_s == 2


def test_a_long_request_bridges_what_looked_like_a_pause() -> None:
    assert timeline((0, 1), (1000, 1001), (0, 1001)).active_s == 1001


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 200)), min_size=1, max_size=25))
def test_active_time_is_the_union_with_short_gaps_filled(spans: list[tuple[int, int]]) -> None:
    seconds = set().union(*(range(start, start + took + PAUSE_S) for start, took in spans))
    stretches = sum(1 for second in seconds if second - 1 not in seconds)
    line = timeline(*((start, start + took) for start, took in spans))
    assert line.active_s == len(seconds) - PAUSE_S * stretches


def test_thousands_of_pauses_keep_only_the_longest_apart() -> None:
    starts = [index * 1000.0 + (5000 if index >= 700 else 0) for index in range(1500)]
    line = Timeline()
    us = pa.array([round(start * 1e6) for start in starts], pa.int64())
    line.add(us, pc.add(us, 1_000_000), pa.array([1] * 1500, pa.int64()))
    found = line.throughput()
    assert 5999 in [pause["seconds"] for pause in found["pauses"]]
    assert len(found["pauses"]) == 5
    assert sum(found["rows"]) == 1500


def test_slots_wider_than_a_pause_still_count_every_row_once() -> None:
    line = Timeline()
    us = pa.array([index * 500_000_000 for index in range(5000)], pa.int64())
    line.add(us, pc.add(us, 400_000_000), pa.array([2] * 5000, pa.int64()))
    found = line.throughput()
    assert (sum(found["rows"]), sum(found["output_tokens"])) == (5000, 10_000)
