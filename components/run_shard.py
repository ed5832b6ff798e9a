"""Run one shard of the batch."""

from kfp.dsl import Artifact, Input

from components._embedding import use_code
from components._factory import ENGINE_PACKAGES, PLANNED, step


@step("clients.steps.run_shard", packages=ENGINE_PACKAGES, there=PLANNED)
def run_shard(code: Input[Artifact], spec: str, store_endpoint: str) -> None:
    """Sends the shard's rows to the endpoint until each has an outcome. Bad rows are recorded, they never fail it.

    Args:
        code: Code of earlier steps.
        spec: One string of plan_shards.
        store_endpoint: Address of Kubeflow's own object store, to which minio:// leads.
    """
    use_code(code)
    from clients.steps.run_shard import run_shard as run

    run(spec=spec, store_endpoint=store_endpoint)
