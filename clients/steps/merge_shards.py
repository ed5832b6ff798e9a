"""Join the shards' parts into the files people open."""

import json
import time
from pathlib import Path
from typing import Any

from clients.results.gpus import account
from clients.results.merge import merge_parts
from clients.results.report import render_report
from clients.results.summary import Summary
from clients.steps.boundary import step
from clients.storage import Folder, refusals


def merge_shards(
    *, part_paths: list[str], results_path: str, rejects_path: str, report_path: str, output: str, endpoint: str
) -> tuple[str, dict[str, float]]:
    """Write results, rejects and report as artifacts, and under `output` too when one is given.

    Args:
        part_paths: The shards' parts.
        results_path: Parquet file to write; so is the next.
        rejects_path: Of the rows that did not end `ok`.
        report_path: HTML file to write.
        output: Folder or URI for a copy of all of them; "" for none.
        endpoint: What `wait_service` or `resolve_endpoint` returned: whether GPUs are held for this run.

    Returns:
        The summary as JSON, and the numbers in it that are compared between runs.
    """
    with step("merge_shards"):
        summary = merge_parts([Path(path) for path in part_paths], Path(results_path), Path(rejects_path))
        account(summary, json.loads(endpoint).get("gpus_held_since", ()), now=time.time())
        report = render_report(summary, title="Batch inference")
        with refusals("write", report_path):
            Path(report_path).write_text(report, encoding="utf-8")
        if output:
            folder = Folder(output)
            folder.put("results.parquet", Path(results_path))
            folder.put("rejects.parquet", Path(rejects_path))
            folder.put("report.html", Path(report_path))
            folder.write("summary.json", json.dumps(summary, ensure_ascii=False, indent=2).encode())
    return json.dumps(_brief(summary)), _scalars(summary)


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
