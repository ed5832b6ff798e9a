"""Join the shards' parts into the files people open."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from clients.errors import StorageError
from clients.records import Outcome
from clients.results.budget import objection
from clients.results.gpus import account
from clients.results.markdown import render_markdown
from clients.results.merge import Source, merge_parts, schema_of
from clients.results.report import render_report
from clients.results.summary import Summary
from clients.steps.boundary import step
from clients.steps.finished_parts import FinishedParts
from clients.steps.stores import reach_stores
from clients.storage import Folder, refusals

_TITLE = "Batch inference"

#: Beyond so many bytes results are a dataset of several files: one file would have to fit on the pod's disk.
_ONE_FILE_BYTES = 4 << 30

_PART = re.compile(r"part-\d{5}\.parquet")


class Merged(NamedTuple):
    """What came of it.

    Attributes:
        summary: What the next step needs, as JSON.
        scalars: The numbers that are compared between runs.
        facts: Of the results, for their artifact's metadata.
    """

    summary: str
    scalars: dict[str, float]
    facts: dict[str, Any]


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
        max_error_rate: Share of the rows, 0 to 1, that may go wrong in a run that counts as finished.
        store_endpoint: Where `minio://` addresses lead to; "" for Kubeflow's own.
        one_file_bytes: See `_ONE_FILE_BYTES`.
    """
    with step("merge_shards"):
        reach_stores(store_endpoint)
        finished = FinishedParts.read(Path(finished_path)) if finished_path else None
        sources: Sequence[Source] = [Path(path) for path in part_paths]
        if finished is not None and finished.parts:
            sources, output = finished.sources(), output or finished.start.output
        elif finished is not None:
            output = output or finished.start.output
        is_large = finished is not None and finished.size > one_file_bytes
        summary = merge_parts(sources, None if is_large else paths.results, paths.rejects)
        account(summary, json.loads(endpoint).get("gpus_held_since", ()), now=time.time())
        place = _keep_large(sources, finished, output) if is_large and finished is not None else ""
        location = place or (f"{output.rstrip('/')}/results.parquet" if output else "")
        facts = _facts(sources[0], summary, location)
        _write(summary, paths, location)
        if place:
            _write_text(paths.results, json.dumps({"dataset": place, "files": len(sources), **facts}))
        if output:
            _keep(summary, paths, Folder(output), is_large=is_large)
        if finished is not None:
            finished.settle(is_good=objection(summary, max_error_rate) is None, now=time.time())
    return Merged(json.dumps(_brief(summary)), _scalars(summary), facts)


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


def _facts(part: Source, summary: Summary, location: str) -> dict[str, Any]:
    schema = schema_of(part)
    columns = {field.name: str(field.type) for field in schema}
    rejects = summary["rows"] - summary["outcomes"].get(Outcome.OK, 0)
    found = orjson.dumps(columns).decode()
    return {"rows": summary["rows"], "rejects": rejects, "columns": found, "location": location}


def _brief(summary: Summary) -> dict[str, Any]:
    """What the next step needs: a parameter is one argument of a process, so it stays small."""
    return {name: summary[name] for name in ("rows", "outcomes", "error_codes", "stopped_early")}


def _scalars(summary: Summary) -> dict[str, float]:
    """Metrics of the run, by the words of summary.json."""
    found: dict[str, float | None] = {"rows": summary["rows"], **summary["outcomes"]}
    for name in (
        "completion_tokens",
        "prompt_tokens",
        "duration_s",
        "rows_per_s",
        "output_tokens_per_s",
        "retries",
        "joined",
        "gpu_seconds_held",
        "gpu_seconds_used",
    ):
        found[name] = summary[name]
    latency = summary["latency_s"]
    if latency is not None:
        found |= {"latency_p50_s": latency["p50"], "latency_p95_s": latency["p95"]}
    return {name: round(float(value), 3) for name, value in found.items() if value is not None}
