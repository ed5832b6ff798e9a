"""Run what the shards left undone."""

from kfp.dsl import Artifact, Dataset, Input, Output

from components._embedding import use_code
from components._factory import ENGINE_PACKAGES, PLANNED, step


@step("clients.steps.finish_shards", packages=ENGINE_PACKAGES, there=PLANNED)
def finish_shards(
    code: Input[Artifact], plan: Input[Artifact], store_endpoint: str, finished: Output[Artifact], part: Output[Dataset]
) -> None:
    """Runs the rows that a shard left undone, so that one shard's trouble costs time and not the run.

    Args:
        code: Code of earlier steps.
        plan: All shards, from plan_shards.
        store_endpoint: Address of Kubeflow's own object store, to which minio:// leads.
        finished: Where the shards' parts lie.
        part: All rows when there is no place that outlives a pod; empty otherwise.
    """
    use_code(code)
    from clients.steps.finish_shards import finish_shards as run

    counts = run(plan_path=plan.path, finished_path=finished.path, part_path=part.path, store_endpoint=store_endpoint)
    finished.metadata.update(counts)
