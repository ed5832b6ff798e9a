"""Join the shards' parts into the files people open."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Output

from components._embedding import use_code
from components._factory import PLANNED, RESULTS_PACKAGES, step


@step("clients.steps.merge_shards", packages=RESULTS_PACKAGES, there=PLANNED)
def merge_shards(
    code: Input[Artifact],
    finished: Input[Artifact],
    part: Input[Dataset],
    endpoint: str,
    max_error_rate: float,
    store_endpoint: str,
    results: Output[Dataset],
    rejects: Output[Dataset],
    metrics: Output[Metrics],
    report: Output[HTML],
    overview: Output[Markdown],
) -> str:
    """Joins the shards' parts in input order, counts, and writes everything to the output folder too.

    Args:
        code: Code of earlier steps.
        finished: Where the shards' parts lie, from finish_shards.
        part: All rows when there was no place that outlives a pod.
        endpoint: Where the model answered, and since when GPUs are held for it.
        max_error_rate: Share of the rows, 0 to 1, that may go wrong in a run that counts as finished.
        store_endpoint: Address of Kubeflow's own object store, to which minio:// leads.
        results: Parquet file with one row for every input row, in input order; beyond 4 GiB a note where they are.
        rejects: The rows that did not end ok, with reasons.
        metrics: Counts, tokens, latency and throughput of the run, and their change since the run before.
        report: The run as one self-contained page.
        overview: The same in a few lines.

    Returns:
        The summary as JSON.
    """
    use_code(code)
    from pathlib import Path

    from clients.steps.merge_shards import Paths
    from clients.steps.merge_shards import merge_shards as run

    merged = run(
        paths=Paths(*(Path(artifact.path) for artifact in (results, rejects, report, overview))),
        finished_path=finished.path,
        part_paths=[part.path],
        endpoint=endpoint,
        max_error_rate=max_error_rate,
        store_endpoint=store_endpoint,
    )
    results.metadata.update(merged.facts)
    rejects.metadata.update(merged.reject_facts)
    for name, value in merged.scalars.items():
        metrics.log_metric(name, value)
    return merged.summary
