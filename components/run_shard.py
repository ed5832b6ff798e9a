"""Run one shard of the batch."""

from components._factory import ENGINE_PACKAGES, step


@step("clients.steps.run_shard", packages=ENGINE_PACKAGES)
def run_shard(spec: str, store_endpoint: str) -> None:
    """Sends the shard's rows to the endpoint until each has an outcome. Bad rows are recorded, they never fail it.

    Args:
        spec: One string of plan_shards.
        store_endpoint: Address of Kubeflow's own object store, to which minio:// leads.
    """
    from clients.steps.run_shard import run_shard as run

    run(spec=spec, store_endpoint=store_endpoint)
