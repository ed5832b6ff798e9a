"""Run one shard of the batch."""

from kfp.dsl import Dataset, Output

from components._factory import ENGINE_PACKAGES, step


@step("clients.steps.run_shard", packages=ENGINE_PACKAGES)
def run_shard(spec: str, part: Output[Dataset]) -> None:
    """Sends the shard's rows to the endpoint until each has an outcome. Bad rows are recorded, they never fail it.

    Args:
        spec: One string of plan_shards.
        part: Parquet file with one result row for every input row of the shard, in input order.
    """
    from clients.steps.run_shard import run_shard as run

    part.metadata.update(run(spec=spec, part_path=part.path))
