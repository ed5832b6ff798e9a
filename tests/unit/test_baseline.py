"""Which run a run is compared with: the last of its job that the gate let pass, wherever the state lies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clients.batch.parts import Part
from clients.errors import BudgetError
from clients.prompts.columns import CarriedColumns
from clients.prompts.start import Start
from clients.records import Outcome
from clients.results.assemble import results_schema
from clients.steps.gate import gate
from clients.steps.merge_shards import Merged, Paths, merge_shards
from clients.storage.generations import Generations

CONTENTS = ("a" * 16, "b" * 16, "c" * 16, "d" * 16)
GOOD = [Outcome.OK] * 10
SHORT = [Outcome.OK] * 4
BAD = [Outcome.OK] * 5 + [Outcome.REJECTED] * 5


def write_part(path: Path, outcomes: list[Outcome]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [
        {"row": row, "id": f"row-{row}", "request_hash": "", "outcome": outcome, "attempts": 1}
        for row, outcome in enumerate(outcomes)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=results_schema(CarriedColumns({}), {"model": "m"})), path)
    return path


def merge(scratch: Path, start: Start, outcomes: list[Outcome], *, max_error_rate: float = 1.0) -> Merged:
    """The step over one shard's part in the state, as the steps before it leave it."""
    part = write_part(Path(start.state) / "part.parquet", outcomes)
    told = Part(
        shard=0, name=part.name, rows=len(outcomes), missing=0, failed=0, size=part.stat().st_size, run=start.run
    )
    finished = scratch / "finished"
    finished.write_bytes(start.to_json() + b"\n" + orjson.dumps(["job", [told]]))
    names = ("results", "rejects", "report", "markdown")
    return merge_shards(
        paths=Paths(*(scratch / name for name in names)),
        endpoint="{}",
        finished_path=str(finished),
        max_error_rate=max_error_rate,
    )


Run = Callable[..., Merged]


@pytest.fixture(params=["Kubeflow's own store", "a state that was given"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs one job again and again; each run has other prompts."""
    numbers = iter(range(9))

    def once(outcomes: list[Outcome], *, retried: bool = False, rate: float = 1.0, **limits: float) -> Merged:
        number = next(numbers)
        start = Start(run=f"run-{number}", job="nightly", state=str(tmp_path / "given"), max_regression=limits)
        if request.param.startswith("Kubeflow"):
            place = Generations(str(tmp_path / "state")).begin(CONTENTS[number], run=start.run, fresh=False, now=1.0)
            start = Start(run=start.run, job=start.job, state=place, kept=True, max_regression=limits)
        merged = merge(tmp_path, start, outcomes, max_error_rate=rate)
        return merge(tmp_path, start, outcomes, max_error_rate=rate) if retried else merged

    return once


def rows_change(merged: Merged) -> float | None:
    return merged.scalars.get("rows_change")


def test_a_first_run_is_compared_with_nothing(run: Run) -> None:
    first = run(GOOD, rows=0.0)
    assert rows_change(first) is None
    gate(summary=first.summary, max_error_rate=1.0)


def test_the_next_run_is_compared_with_it(run: Run) -> None:
    run(GOOD)
    second = run(BAD)
    assert (second.scalars["error_rate_change"], second.scalars["rows_change"]) == (0.5, 0.0)
    assert (second.scalars["error_rate"], second.scalars["rejected"], second.scalars["ok"]) == (0.5, 5, 5)
    gate(summary=second.summary, max_error_rate=1.0)  # nobody set a limit


def test_a_step_that_is_tried_again_compares_with_the_same_run(run: Run) -> None:
    run(GOOD)
    assert rows_change(run(SHORT, retried=True)) == -0.6


def test_a_regression_fails_the_gate_and_is_never_what_others_are_compared_with(run: Run) -> None:
    run(GOOD)
    for _ in range(2):
        worse = run(BAD, error_rate=0.1)
        assert worse.scalars["error_rate_change"] == 0.5
        assert "error_rate went from 0 % to 50 %" in json.loads(worse.summary)["comparison"]["regressions"][0]
        with pytest.raises(SystemExit) as stopped:
            gate(summary=worse.summary, max_error_rate=1.0)
        assert stopped.value.code == BudgetError.exit_code


def test_a_change_that_is_accepted_once_is_what_the_next_run_is_compared_with(run: Run) -> None:
    run(GOOD)
    run(SHORT, rows=0.1)
    run(SHORT, rows=0.7)
    last = run(SHORT, rows=0.1)
    assert rows_change(last) == 0.0
    gate(summary=last.summary, max_error_rate=1.0)


def test_a_run_over_its_error_budget_is_nothing_to_be_compared_with(run: Run) -> None:
    run(BAD, rate=0.2)
    assert rows_change(run(GOOD)) is None


def test_another_job_in_the_same_state_is_another_matter(tmp_path: Path) -> None:
    for job, outcomes in (("nightly", GOOD), ("weekly", SHORT)):
        merged = merge(tmp_path, Start(run=job, job=job, state=str(tmp_path / "given")), outcomes)
        assert rows_change(merged) is None


def test_without_a_state_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    for _ in range(2):
        part = write_part(tmp_path / "part.parquet", GOOD)
        paths = Paths(*(tmp_path / name for name in ("results", "rejects", "report", "markdown")))
        merged = merge_shards(paths=paths, endpoint="{}", part_paths=[str(part)])
        assert rows_change(merged) is None


def test_the_artifacts_say_what_they_hold(run: Run) -> None:
    merged = run(BAD)
    columns = json.loads(merged.facts["columns"])
    assert columns["row"] == "int64"
    assert columns == json.loads(merged.reject_facts["columns"])
    assert (merged.facts["rows"], merged.facts["rejects"], merged.reject_facts["rows"]) == (10, 5, 5)


def test_what_the_gate_is_told_is_small(run: Run) -> None:
    run(GOOD)
    assert len(run(BAD, error_rate=0.1, ok_rate=0.1).summary) < 2000
