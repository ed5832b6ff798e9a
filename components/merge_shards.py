"""Join the shards' parts into the files people open."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components._factory import RESULTS_PACKAGES, step


@step("clients.steps.merge_shards", packages=RESULTS_PACKAGES)
def merge_shards(
    parts: Input[list[Dataset]],
    output: str,
    endpoint: str,
    results: Output[Dataset],
    rejects: Output[Dataset],
    metrics: Output[Metrics],
    report: Output[HTML],
) -> str:
    """Joins the shards' parts in input order and counts.

    Args:
        parts: The shards' Parquet files.
        output: Folder or URI that also gets results.parquet, rejects.parquet, summary.json and report.html.
        endpoint: Where the model answered, and since when GPUs are held for it.
        results: Parquet file with one row for every input row, in input order.
        rejects: The rows that did not end ok, with reasons.
        metrics: Counts, tokens, latency and throughput of the run.
        report: The run as one self-contained page.

    Returns:
        The summary as JSON.
    """
    from clients.steps.merge_shards import merge_shards as run

    artifacts = {"results_path": results.path, "rejects_path": rejects.path, "report_path": report.path}
    summary, scalars = run(part_paths=[part.path for part in parts], output=output, endpoint=endpoint, **artifacts)
    for name, value in scalars.items():
        metrics.log_metric(name, value)
    return summary
