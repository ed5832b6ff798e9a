"""Send, join, judge: the part that every batch pipeline shares, once a plan and a model are there."""

from kfp import dsl
from kfp.dsl import Artifact, Input

from components.finish_shards import finish_shards
from components.gate import gate
from components.merge_shards import merge_shards
from components.run_shard import run_shard
from pipelines.resources import READING_H, SENDING_H, prepare, with_endpoint_key, with_langfuse, with_stores


@dsl.pipeline(name="run-shards")  # type: ignore[untyped-decorator]
def run_shards(
    code: Input[Artifact],
    plan: Input[Artifact],
    specs: list[str],
    endpoint: str,
    max_error_rate: float,
    storage_secret: str,
    endpoint_secret: str,
    langfuse_secret: str,
    store_endpoint: str,
    step_image: str,
) -> None:
    """Runs planned shards at an endpoint, joins what they answered and judges it.

    Args:
        code: Code of earlier steps.
        plan: All shards, from plan_shards.
        specs: A string for each shard, from plan_shards.
        endpoint: Where the model answers, from resolve_endpoint or wait_service.
        max_error_rate: Share of the rows, 0 to 1, that may go wrong before the run counts as failed.
        storage_secret: Name of the Secret with the keys of other object stores than Kubeflow's own.
        endpoint_secret: Name of the Secret with the endpoint's key.
        langfuse_secret: Name of the Secret with the keys of Langfuse.
        store_endpoint: Address of Kubeflow's own object store, to which minio:// leads.
        step_image: Image that the steps run in.
    """
    with dsl.ParallelFor(specs, name="shards") as spec:
        shard = prepare(
            run_shard(code=code, spec=spec, store_endpoint=store_endpoint),
            "Run shard",
            image=step_image,
            cpu="1",
            memory="1Gi",
            timeout_h=SENDING_H,
        ).set_retry(num_retries=3, backoff_duration="10s")
        with_langfuse(with_endpoint_key(with_stores(shard, storage_secret), endpoint_secret), langfuse_secret)
    # Kubeflow's compiler makes an exit hook of a task that ignores failures before it, and drops the hook of a loop; so
    # an evicted pod has to be tried again, and this task runs what shards left undone that ended well.
    finished = prepare(
        finish_shards(code=code, plan=plan, store_endpoint=store_endpoint).after(shard),
        "Finish shards",
        image=step_image,
        cpu="1",
        memory="1Gi",
        timeout_h=SENDING_H,
    ).set_retry(num_retries=3, backoff_duration="30s")
    with_langfuse(with_endpoint_key(with_stores(finished, storage_secret), endpoint_secret), langfuse_secret)
    merged = prepare(
        merge_shards(
            code=code,
            finished=finished.outputs["finished"],
            part=finished.outputs["part"],
            endpoint=endpoint,
            max_error_rate=max_error_rate,
            store_endpoint=store_endpoint,
        ),
        "Merge shards",
        image=step_image,
        memory="1Gi",
        timeout_h=READING_H,
    ).set_retry(num_retries=3, backoff_duration="30s")
    with_stores(merged, storage_secret)
    prepare(gate(code=code, summary=merged.outputs["Output"], max_error_rate=max_error_rate), "Gate", image=step_image)
