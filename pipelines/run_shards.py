"""Cut, send, join, judge: the part that every batch pipeline shares, once a model answers."""

from typing import Any

from kfp import dsl
from kfp.dsl import Artifact, Input

from components.gate import gate
from components.merge_shards import merge_shards
from components.plan_shards import plan_shards
from components.run_shard import run_shard
from pipelines.resources import prepare


@dsl.pipeline(name="run-shards")  # type: ignore[untyped-decorator]
def run_shards(
    checked: Input[Artifact],
    endpoint: str,
    prompts: str,
    system_prompt: str,
    request_defaults: dict[str, Any],
    template: str,
    shards: int,
    concurrency: int,
    max_error_rate: float,
    output: str,
    state: str,
    server_wait_s: int,
    options: dict[str, Any],
) -> None:
    """Runs checked prompts at an endpoint in shards, joins what they answered and judges it.

    Args:
        checked: What check_prompts found.
        endpoint: Where the model answers, from resolve_endpoint or wait_service.
        prompts: Path or URI of the input.
        system_prompt: First message of rows that have no system message of their own.
        request_defaults: Request fields that a row gets unless it has its own.
        template: User message with {name} where a column's value goes; empty takes a row's own prompt or messages.
        shards: Number of shards. Each is a pod that runs its part of the rows.
        concurrency: Most requests in flight, over all shards. 0 lets the engine find out what the server can run.
        max_error_rate: Share of the rows, 0 to 1, that may go wrong before the run counts as failed.
        output: Folder or URI that gets results.parquet, rejects.parquet, summary.json and report.html.
        state: Folder or URI where finished rows are kept, so that a rerun does not send them again.
        server_wait_s: Seconds to wait for an endpoint that cannot be reached.
        options: Further choices, see the pipeline.
    """
    plan = prepare(
        plan_shards(
            checked=checked,
            prompts=prompts,
            endpoint=endpoint,
            system_prompt=system_prompt,
            request_defaults=request_defaults,
            template=template,
            shards=shards,
            concurrency=concurrency,
            state=state,
            server_wait_s=server_wait_s,
            max_error_rate=max_error_rate,
            options=options,
        ),
        "Plan shards",
    )
    with dsl.ParallelFor(plan.output, name="shards") as spec:
        shard = prepare(run_shard(spec=spec), "Run shard", cpu="1", memory="1Gi")
    merged = prepare(
        merge_shards(parts=dsl.Collected(shard.outputs["part"]), output=output, endpoint=endpoint),
        "Merge shards",
        memory="1Gi",
    )
    prepare(gate(summary=merged.outputs["Output"], max_error_rate=max_error_rate), "Gate")
