"""Join the shards' parts into the files people open."""

import json
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from clients.errors import StorageError
from clients.events import emit
from clients.prompts.start import Start
from clients.records import Outcome
from clients.results.budget import objection, regression
from clients.results.comparison import MEASURES, compare, numbers_of
from clients.results.gpus import account
from clients.results.markdown import render_markdown
from clients.results.merge import Source, merge_parts, schema_of
from clients.results.report import render_report
from clients.results.summary import Summary
from clients.steps.baseline import baseline_facts, keep_baseline, read_baseline
from clients.steps.boundary import step
from clients.steps.finished_parts import FinishedParts
from clients.steps.store_access import reach_stores
from clients.storage import Folder, refusals

logger = logging.getLogger(__name__)

_TITLE = "Batch inference"

#: Beyond so many bytes results are a dataset of several files: one file would have to fit on the pod's disk.
_ONE_FILE_BYTES = 4 << 30

#: What who follows a run is told of its summary.
_TOLD = (
    *("rows", "outcomes", "duration_s", "rows_per_s", "completion_tokens", "output_tokens_per_s", "joined", "traces"),
    *("gpu_seconds_held", "gpu_seconds_used", "stopped_early", "verdict", "comparison"),
)

_PART = re.compile(r"part-\d{5}\.parquet")


class Merged(NamedTuple):
    """What came of it.

    Attributes:
        summary: What the next step needs, as JSON.
        scalars: The numbers that are compared between runs.
        facts: Of the results, for their artifact's metadata: rows, columns with their types as JSON, where they lie.
        reject_facts: Of the rejects, likewise.
    """

    summary: str
    scalars: dict[str, float]
    facts: dict[str, Any]
    reject_facts: dict[str, Any]


class Paths(NamedTuple):
    """Files to write.

    Attributes:
        results: Parquet, or a note that says where the dataset is.
        rejects: Parquet with the rows that did not end `ok`.
        report: HTML.
        markdown: The same in short.
    """

    results: Path
    rejects: Path
    report: Path
    markdown: Path


def merge_shards(
    *,
    paths: Paths,
    endpoint: str,
    output: str = "",
    part_paths: Sequence[str] = (),
    finished_path: str = "",
    checked_path: str = "",
    max_error_rate: float = 1.0,
    store_endpoint: str = "",
    one_file_bytes: int = _ONE_FILE_BYTES,
) -> Merged:
    """Write results, rejects and report as artifacts, and under `output` too when one is given.

    Args:
        paths: Files to write.
        endpoint: What `wait_service` or `resolve_endpoint` returned: whether GPUs are held for this run.
        output: Folder or URI for a copy of all of them; "" takes what the run decided, if there was such a step.
        part_paths: The shards' parts, when they are not in the run's state.
        finished_path: What `finish_shards` wrote; "" outside a pipeline.
        checked_path: What `check_prompts` wrote, outside a pipeline: it says where the state is.
        max_error_rate: Share of the rows, 0 to 1, that may go wrong in a run that counts as finished.
        store_endpoint: Where `minio://` addresses lead to; "" for Kubeflow's own.
        one_file_bytes: See `_ONE_FILE_BYTES`.
    """
    with step("merge_shards"):
        reach_stores(store_endpoint)
        finished = FinishedParts.read(Path(finished_path)) if finished_path else None
        start = finished.start if finished is not None else _start(checked_path)
        sources: Sequence[Source] = [Path(path) for path in part_paths]
        if finished is not None:
            sources, output = finished.sources() or sources, output or start.output
        is_large = finished is not None and finished.size > one_file_bytes
        summary = merge_parts(sources, None if is_large else paths.results, paths.rejects)
        account(summary, json.loads(endpoint).get("gpus_held_since", ()), now=time.time())
        baseline = _compare(summary, start, max_error_rate)
        place = _keep_large(sources, finished, output) if is_large and finished is not None else ""
        location = place or (f"{output.rstrip('/')}/results.parquet" if output else "")
        facts, reject_facts = _facts(sources[0], summary, location, output)
        _write(summary, paths, location)
        if place:
            _write_text(paths.results, json.dumps({"dataset": place, "files": len(sources), **facts}))
        if output:
            _keep(summary, paths, Folder(output), is_large=is_large)
        is_good = objection(summary, max_error_rate) is None
        if finished is not None:
            finished.settle(is_good=is_good, baseline=baseline, now=time.time())
        if is_good:
            keep_baseline(start, baseline, now=time.time())
        emit(logger, "results.merged", **_told(summary, location))
    return Merged(json.dumps(_brief(summary)), _scalars(summary), facts, reject_facts)


def _start(checked_path: str) -> Start:
    return Start.from_json(Path(checked_path).read_bytes().partition(b"\n")[0]) if checked_path else Start()


def _compare(summary: Summary, start: Start, max_error_rate: float) -> dict[str, Any]:
    """Put the run beside the one before it; returns what the next one is to be compared with."""
    before, numbers = read_baseline(start), numbers_of(summary, run=start.run)
    if before is not None:
        summary["comparison"] = compare(numbers, before, start.max_regression)
    has_passed = objection(summary, max_error_rate) is None and regression(summary) is None
    return baseline_facts(numbers, before, has_passed=has_passed)


def _write(summary: Summary, paths: Paths, location: str) -> None:
    _write_text(paths.report, render_report(summary, title=_TITLE))
    _write_text(paths.markdown, render_markdown(summary, title=_TITLE, location=location))


def _write_text(path: Path, text: str) -> None:
    with refusals("write", path):
        path.write_text(text, encoding="utf-8")


def _keep_large(sources: Sequence[Source], finished: FinishedParts, output: str) -> str:
    """Keep the parts as a dataset; returns its address. In one store nothing passes through this pod."""
    folder = Folder(output or finished.start.state) / "results"
    names = [f"part-{number:05d}.parquet" for number in range(len(sources))]
    for name, source in zip(names, sources, strict=True):
        if isinstance(source, Path):
            raise StorageError(f"cannot keep {source} as one of several files")  # parts of that size have a state
        folder.copy(name, *source)
    _remove_parts(folder, keep=names)
    return folder.location


def _remove_parts(folder: Folder, *, keep: Sequence[str] = ()) -> None:
    """Remove what an earlier run left of its dataset; whatever else lies there is none of ours."""
    for name in folder.names():
        if _PART.fullmatch(name) and name not in keep:
            folder.remove(name)


def _keep(summary: Summary, paths: Paths, folder: Folder, *, is_large: bool) -> None:
    """Keep the files under the output; summary.json comes last: when it stands, the others do."""
    if is_large:
        folder.remove("results.parquet")
    else:
        folder.put("results.parquet", paths.results)
        _remove_parts(folder / "results")
    folder.put("rejects.parquet", paths.rejects)
    folder.put("report.html", paths.report)
    folder.put("report.md", paths.markdown)
    folder.write("summary.json", json.dumps(summary, ensure_ascii=False, indent=2).encode())


def _facts(part: Source, summary: Summary, location: str, output: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the results and of the rejects: rows, columns and where they lie."""
    columns = orjson.dumps({field.name: str(field.type) for field in schema_of(part)}).decode()
    rejects = summary["rows"] - summary["outcomes"].get(Outcome.OK, 0)
    beside = f"{output.rstrip('/')}/rejects.parquet" if output else ""
    return (
        {"rows": summary["rows"], "rejects": rejects, "columns": columns, "location": location},
        {"rows": rejects, "columns": columns, "location": beside},
    )


def _brief(summary: Summary) -> dict[str, Any]:
    """What the next step needs: a parameter is one argument of a process, so it stays small."""
    found: dict[str, Any] = {name: summary[name] for name in ("rows", "outcomes", "error_codes", "stopped_early")}
    found |= {f"traces_{state}": count for state, count in (summary["traces"] or {}).items()}
    if comparison := summary["comparison"]:
        found["comparison"] = {"regressions": comparison["regressions"]}
    return found


def _told(summary: Summary, location: str) -> dict[str, Any]:
    """What who follows the run is told when it has ended: the summary but for its examples and its histograms."""
    return {name: value for name, value in summary.items() if name in _TOLD} | {"location": location}


def _scalars(summary: Summary) -> dict[str, float]:
    """Metrics of the run, by the words of summary.json, and what changed since the run before."""
    found: dict[str, float | None] = {name: measure.of(summary) for name, measure in MEASURES.items()}
    found |= summary["outcomes"]
    for name in ("duration_s", "retries", "joined", "gpu_seconds_used"):
        found[name] = summary[name]
    if comparison := summary["comparison"]:
        found |= {f"{name}_change": change["change"] for name, change in comparison["changes"].items()}
    return {name: round(float(value), 4) for name, value in found.items() if value is not None}
