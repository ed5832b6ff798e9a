"""Cut the input into shards."""

from typing import Any

from kfp.dsl import Artifact, Input, Output

from components._embedding import use_code
from components._factory import CHECKED, RESULTS_PACKAGES, SENDING, step


@step("clients.steps.plan_shards", packages=RESULTS_PACKAGES, brings=SENDING, there=CHECKED)
def plan_shards(
    code: Input[Artifact],
    checked: Input[Artifact],
    endpoint: str,
    shards: int,
    concurrency: int,
    server_wait_s: int,
    max_error_rate: float,
    store_endpoint: str,
    options: dict[str, Any],
    plan: Output[Artifact],
    more_code: Output[Artifact],
) -> list[str]:
    """Cuts the checked input into shards of equal size.

    Args:
        code: Code of earlier steps.
        checked: What check_prompts found.
        endpoint: What resolve_endpoint returned.
        shards: Number of shards; at most one a row.
        concurrency: Most requests in flight, over all shards. 0 lets the engine find out what the server can run.
        server_wait_s: Seconds a shard waits for an endpoint that cannot be reached.
        max_error_rate: Share of the rows, 0 to 1, beyond which a shard stops.
        store_endpoint: Address of Kubeflow's own object store, to which minio:// leads.
        options: Further choices, see the pipeline.
        plan: All shards, for the steps after them.
        more_code: Code that later steps run.

    Returns:
        A string for each shard that tells all about it, or where that stands.
    """
    use_code(code, kept=more_code)
    from clients.steps.plan_shards import plan_shards as run

    return run(
        checked_path=checked.path,
        endpoint=endpoint,
        shards=shards,
        concurrency=concurrency,
        server_wait_s=server_wait_s,
        store_endpoint=store_endpoint,
        options={"max_error_rate": max_error_rate, **options},
        plan_path=plan.path,
    )
