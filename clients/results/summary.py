"""One pass over the results in flat memory: the numbers of summary.json, of the KFP metrics and of the report."""

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from clients.records import Outcome
from clients.results.comparison import Comparison
from clients.results.distribution import Distribution, Histogram, Spread
from clients.results.timeline import Throughput, Timeline
from clients.results.verdict import Verdict, judge

#: Raised when a key changes its meaning; added keys do not raise it.
FORMAT_VERSION = 1
#: The model finished an answer of some kind. Only these rows count in the latency and output-length distributions: a
#: request refused in 5 ms or given up after 10 min says nothing about how long an answer takes.
ANSWERED = frozenset(Outcome) - {Outcome.REJECTED, Outcome.FAILED, Outcome.INVALID}

_MAX_NAMES = 50
_MAX_TEXT = 300
_LONGEST_LATENCY_S = 1e9
_SLOW_COLUMNS = ["id", "row", "latency_s", "completion_tokens", "outcome", "trace_id"]
_FAILED_COLUMNS = ["id", "row", "outcome", "error_code", "error_message", "attempts", "trace_id"]


class Summary(TypedDict):
    """What a run did; JSON as it stands. Counts are rows unless the key says otherwise, times are seconds.

    Attributes:
        rows: All rows, those never sent included.
        answered: Rows for which the model finished an answer, cut short or not.
        outcomes: Every outcome word and its rows, zeros included.
        prompt_tokens: Total over the rows that report it, 0 when none does; so are the two that follow.
        started_at: ISO time in UTC at which the first kept request was sent, which an earlier run may have done.
        finished_at: ISO time in UTC at which the last one ended.
        duration_s: Active time: from `started_at` to `finished_at` without the pauses, which are the gaps of more than
            60 s in which no request was in flight. Only the last attempt of a row is known, so time spent on nothing
            but earlier attempts may count as a pause.
        rows_per_s: Rows that were sent, by active time; None without any.
        output_tokens_per_s: Completion tokens by active time; None when no row reports tokens.
        latency_s: Of the answered rows' last attempts; None without any.
        completion_tokens_per_row: Of the answered rows that report it; None without any.
        retries: Attempts beyond the first, summed.
        joined: Rows that ask the same as an earlier row and share its answer; they count in `rows` and `outcomes` only.
        gpu_seconds_held: Of a run that deployed its model: time for which its pods had GPUs, until the results were
            written; None where nothing was deployed.
        gpu_seconds_used: As much of it as requests were in flight.
        traces: What became of the traces of the rows that were sent: `exported` (Langfuse has them), `spooled` (in
            files of the state, for the next run to send), `dropped`, `sampled_out`; and `replayed`, which an earlier
            run left and this one sent. None when nothing was traced.
        trace_url: Address of a row's trace, with `{trace_id}` in it; None likewise.
        stopped_early: Why a shard ended before its last row; None when none did.
        verdict: What held the run back; None when nothing was sent.
        throughput: What finished when, in buckets of active time.
        slowest: Rows with the longest last attempt, longest first, whatever their outcome.
        not_ok: Example rows in input order; each outcome in turn gives its first ones, so that none hides another.
        error_codes: Code and rows; codes beyond the 50th distinct one count as `other`. `models`, `endpoints` likewise.
        settings: As given.
        comparison: This run beside the last one of the same job that its gate let pass; None for a first one.
    """

    format_version: int
    rows: int
    answered: int
    outcomes: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    started_at: str | None
    finished_at: str | None
    duration_s: float
    rows_per_s: float | None
    output_tokens_per_s: float | None
    latency_s: Spread | None
    completion_tokens_per_row: Spread | None
    retries: int
    joined: int
    gpu_seconds_held: float | None
    gpu_seconds_used: float | None
    traces: dict[str, int] | None
    trace_url: str | None
    stopped_early: str | None
    verdict: Verdict | None
    latency_histogram: Histogram | None
    completion_tokens_histogram: Histogram | None
    throughput: Throughput
    slowest: list[dict[str, Any]]
    not_ok: list[dict[str, Any]]
    error_codes: dict[str, int]
    models: dict[str, int]
    endpoints: dict[str, int]
    settings: dict[str, Any]
    comparison: Comparison | None


class SummaryCollector:
    """Reads result batches, in any order, and keeps only counts and a few example rows: some hundred kB for any number.

    Args:
        keep: How many slowest rows, and how many rows that are not ok, are kept as examples.
    """

    def __init__(self, *, keep: int = 20) -> None:
        self._keep = keep
        self._rows = 0
        self._timed_rows = 0
        self._outcomes: Counter[str] = Counter({word.value: 0 for word in Outcome})
        self._totals: Counter[str] = Counter(prompt_tokens=0, completion_tokens=0, cached_tokens=0, retries=0, joined=0)
        self._names: dict[str, Counter[str]] = {name: Counter() for name in ("error_code", "model", "endpoint")}
        self._latency = Distribution()
        self._output = Distribution()
        self._timeline = Timeline()
        self._slowest: list[dict[str, Any]] = []
        self._not_ok: dict[str, list[dict[str, Any]]] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Count in result rows (columns of `clients.results.schema`; others are ignored).

        Costs about 2 ms a batch and 0.5 us a row, so batches of some thousand rows are best.
        """
        if not batch.num_rows:
            return
        self._rows += batch.num_rows
        outcome = batch["outcome"].cast(pa.string())
        self._outcomes.update(_counts(outcome))
        for name, counter in self._names.items():
            _count_capped(counter, _counts(batch[name]))
        sent = pc.greater(batch["attempts"], 0)
        settled = pc.is_in(outcome, value_set=pa.array(sorted(ANSWERED | {Outcome.REJECTED}), pa.string()))
        self._totals["joined"] += pc.sum(pc.and_(settled, pc.invert(sent))).as_py() or 0
        self._count_sent(batch.filter(sent))
        self._keep_not_ok(batch, outcome)

    def _count_sent(self, batch: pa.RecordBatch) -> None:
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            self._totals[name] += pc.sum(batch[name]).as_py() or 0
        self._totals["retries"] += pc.sum(pc.max_element_wise(pc.subtract(batch["attempts"], 1), 0)).as_py() or 0
        latency = _plausible(batch["latency_s"], _LONGEST_LATENCY_S)
        output = _plausible(batch["completion_tokens"], None)
        answered = pc.is_in(batch["outcome"].cast(pa.string()), value_set=pa.array(sorted(ANSWERED), pa.string()))
        self._latency.add(latency.filter(answered).drop_null())
        self._output.add(output.filter(answered).drop_null())
        self._add_times(batch["started_at"], latency, output)
        self._keep_slowest(batch, latency)

    def _add_times(self, started_at: pa.Array, latency: pa.Array, output: pa.Array) -> None:
        known = pc.and_(started_at.is_valid(), latency.is_valid())
        started = started_at.filter(known).cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        took = pc.round(pc.multiply(latency.filter(known), 1e6)).cast(pa.int64())
        self._timed_rows += len(started)
        self._timeline.add(started, pc.add(started, took), output.filter(known))

    def _keep_slowest(self, batch: pa.RecordBatch, latency: pa.Array) -> None:
        full = len(self._slowest) >= self._keep
        beyond = self._slowest[-1]["latency_s"] if full and self._slowest else 0.0
        worth = pc.indices_nonzero(pc.fill_null(pc.greater_equal(latency, beyond), False))
        rows = pa.table([latency.take(worth), batch["row"].take(worth), worth], ["latency_s", "row", "index"])
        slowest = rows.sort_by([("latency_s", "descending"), ("row", "ascending")])["index"].slice(0, self._keep)
        found = batch.select(_SLOW_COLUMNS).take(slowest.combine_chunks()).to_pylist()
        self._slowest = sorted([*self._slowest, *map(_clipped, found)], key=lambda row: (-row["latency_s"], row["row"]))
        del self._slowest[self._keep :]

    def _keep_not_ok(self, batch: pa.RecordBatch, outcome: pa.Array) -> None:
        rows = batch["row"]
        lowest = pc.min(rows).as_py()
        for word in set(pc.unique(outcome).to_pylist()) - {Outcome.OK}:
            kept = self._not_ok.setdefault(word, [])
            if len(kept) >= self._keep and (not kept or kept[-1]["row"] < lowest):
                continue
            index = pc.indices_nonzero(pc.equal(outcome, word))
            first = index.take(pc.sort_indices(rows.take(index)).slice(0, self._keep))
            found = batch.select(_FAILED_COLUMNS).take(first).to_pylist()
            self._not_ok[word] = sorted([*kept, *map(_clipped, found)], key=lambda row: row["row"])[: self._keep]

    def summary(self, *, settings: Mapping[str, Any], runs: Sequence[Mapping[str, Any]] = ()) -> Summary:
        """The numbers so far. More batches may follow.

        Args:
            settings: What the run was asked to do, JSON-able and free of secrets: it is printed in the report.
            runs: Of each shard, why it stopped early (`stop_reason`), where its time went (`seconds`), what became of
                its traces (`traces`) and where one is (`trace_url`).
        """
        active_s = self._timeline.active_s
        spread = self._output.spread()
        bounds = self._timeline.bounds_us
        started_at, finished_at = map(_iso, bounds) if bounds else (None, None)
        return Summary(
            format_version=FORMAT_VERSION,
            rows=self._rows,
            answered=sum(self._outcomes[word] for word in ANSWERED),
            outcomes=dict(self._outcomes),
            prompt_tokens=self._totals["prompt_tokens"],
            completion_tokens=self._totals["completion_tokens"],
            cached_tokens=self._totals["cached_tokens"],
            started_at=started_at,
            finished_at=finished_at,
            duration_s=active_s,
            rows_per_s=self._timed_rows / active_s if active_s else None,
            output_tokens_per_s=self._totals["completion_tokens"] / active_s if active_s and spread else None,
            latency_s=self._latency.spread(),
            completion_tokens_per_row=spread,
            retries=self._totals["retries"],
            joined=self._totals["joined"],
            gpu_seconds_held=None,
            gpu_seconds_used=None,
            traces=_traces(runs),
            trace_url=next((run["trace_url"] for run in runs if run.get("trace_url")), None),
            stopped_early=next((run["stop_reason"] for run in runs if run.get("stop_reason")), None),
            verdict=judge(run.get("seconds", {}) for run in runs),
            latency_histogram=self._latency.histogram(),
            completion_tokens_histogram=self._output.histogram(whole=True),
            throughput=self._timeline.throughput(),
            slowest=list(self._slowest),
            not_ok=self._fair_share(),
            error_codes=dict(self._names["error_code"].most_common()),
            models=dict(self._names["model"].most_common()),
            endpoints=dict(self._names["endpoint"].most_common()),
            settings=dict(settings),
            comparison=None,
        )

    def _fair_share(self) -> list[dict[str, Any]]:
        """The n-th row of each outcome before any outcome's (n+1)-th, back in input order."""
        ranked = [(rank, row["row"], row) for rows in self._not_ok.values() for rank, row in enumerate(rows)]
        chosen = sorted(ranked, key=lambda entry: entry[:2])[: self._keep]
        return [row for _, _, row in sorted(chosen, key=lambda entry: entry[1])]


def _traces(runs: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    found: Counter[str] = Counter()
    for run in runs:
        found.update(run.get("traces") or {})
    return dict(found) or None


def _counts(column: pa.Array) -> dict[str, int]:
    found = pc.value_counts(column).to_pylist()
    return {entry["values"]: entry["counts"] for entry in found if entry["values"] is not None}


def _count_capped(counter: Counter[str], found: Mapping[str, int]) -> None:
    for name, number in found.items():
        known = _clip(name)
        counter[known if known in counter or len(counter) < _MAX_NAMES else "other"] += number


def _plausible(column: pa.Array, highest: float | None) -> pa.Array:
    """Null where a number cannot be one: negative, NaN, infinite."""
    sound = pc.greater_equal(column, 0)
    if highest is not None:
        sound = pc.and_(sound, pc.less(column, highest))
    return pc.if_else(sound, column, None)


def _clip(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _clipped(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _clip(value) if isinstance(value, str) else value for name, value in row.items()}


def _iso(microseconds: int) -> str:
    moment = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=microseconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
