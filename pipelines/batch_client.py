"""The batch client pipeline: prompts against an endpoint that exists. It needs no right but to run pods."""

from typing import Any

from kfp import dsl

from clients.storage.object_stores import MINIO_ENDPOINT
from components._factory import IMAGE
from components.bring_code import engine_code, prompts_code, stores_code
from components.check_prompts import check_prompts
from components.plan_shards import plan_shards
from components.resolve_endpoint import resolve_endpoint
from pipelines.resources import READING_H, WAITING_H, prepare, with_endpoint_key, with_stores
from pipelines.run_shards import run_shards


@dsl.pipeline(  # type: ignore[untyped-decorator]
    name="batch-client",
    display_name="Batch client",
    description="Runs a file of prompts against an OpenAI-compatible endpoint and writes the answers to Parquet.",
)
def batch_client(
    prompts: str,
    endpoint_url: str,
    model: str = "",
    system_prompt: str = "",
    request_defaults: dict[str, Any] = {},  # noqa: B006  (KFP reads the default, nothing changes it)
    template: str = "",
    shards: int = 4,
    concurrency: int = 0,
    max_error_rate: float = 0.2,
    output: str = "",
    state: str = "",
    run_date: str = "",
    server_wait_s: int = 600,
    options: dict[str, Any] = {},  # noqa: B006
    storage_secret: str = "storage-credentials",  # noqa: S107  (names of Secrets, not their values)
    endpoint_secret: str = "endpoint-credentials",  # noqa: S107
    langfuse_secret: str = "langfuse-credentials",  # noqa: S107
    store_endpoint: str = MINIO_ENDPOINT,
    step_image: str = IMAGE,
) -> None:
    """Runs a file of prompts against an OpenAI-compatible endpoint and writes the answers to Parquet.

    Args:
        prompts: The input: JSONL (one request a line), CSV, TSV or Parquet; text also with gzip or zstd. An address
            (s3://, minio://, gs://, https://, hf://), a path on a volume, or the text as pipelines.run puts it here.
            {date}, {yesterday} and {run} are replaced.
        endpoint_url: Address of an OpenAI-compatible API, with or without /v1, or several divided by commas.
        model: Name of the model. Empty takes the first one the endpoint lists.
        system_prompt: First message of rows that have no system message of their own.
        request_defaults: Request fields that a row gets unless it has its own, such as {"max_tokens": 1024}.
        template: User message with {name} where a column's value goes, such as "Translate into Korean: {text}". Empty
            takes a row's own prompt or messages.
        shards: Number of parts the rows are cut into. Each is run by a pod; of more than 16 a pod runs several.
        concurrency: Most requests in flight, over all shards. 0 lets the engine find out what the server can run.
        max_error_rate: Share of the rows, 0 to 1, that may go wrong before the run counts as failed.
        output: Folder or URI that gets results.parquet, rejects.parquet, summary.json, report.html and report.md.
            {date}, {yesterday} and {run} are replaced. Empty keeps them as artifacts only.
        state: Folder or URI where finished rows are kept, so that a rerun does not send them again. Empty takes a place
            beside Kubeflow's own artifacts.
        run_date: Date the run is for, such as 2026-11-25; empty takes today's in UTC.
        server_wait_s: Seconds to wait for an endpoint that cannot be reached.
        options: Further choices, such as {"retry": "truncated", "resample": "empty", "time_limit_s": 3600,
            "max_output_tokens": 1000000, "reasoning_max_tokens": 32768, "raw_response": true}.
        storage_secret: Name of a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and where needed
            AWS_SESSION_TOKEN, AWS_ENDPOINT_URL and AWS_REGION, for s3:// addresses. It may be absent.
        endpoint_secret: Name of a Secret whose key OPENAI_API_KEY is the endpoint's key. It may be absent.
        langfuse_secret: Name of a Secret with LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY and LANGFUSE_BASE_URL. Without
            it nothing is traced.
        store_endpoint: Address of Kubeflow's own object store, to which minio:// leads.
        step_image: Image that the steps run in: Python, or an own one with the packages in it, which starts faster and
            needs no package index.
    """
    stores = prepare(stores_code(), "Bring stores code", image=step_image)
    reading = prepare(prompts_code(), "Bring prompts code", image=step_image)
    engine = prepare(engine_code(), "Bring engine code", image=step_image)
    checked = prepare(
        check_prompts(
            stores_code=stores.outputs["code"],
            prompts_code=reading.outputs["code"],
            engine_code=engine.outputs["code"],
            run=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            prompts=prompts,
            output=output,
            state=state,
            run_date=run_date,
            store_endpoint=store_endpoint,
            options=options,
            system_prompt=system_prompt,
            request_defaults=request_defaults,
            template=template,
        ),
        "Check prompts",
        image=step_image,
        timeout_h=READING_H,
    )
    with_stores(checked, storage_secret)
    endpoint = prepare(
        resolve_endpoint(
            code=checked.outputs["code"], endpoint_url=endpoint_url, model=model, server_wait_s=server_wait_s
        ),
        "Resolve endpoint",
        image=step_image,
        timeout_h=WAITING_H,
    )
    with_endpoint_key(endpoint, endpoint_secret)
    plan = prepare(
        plan_shards(
            code=checked.outputs["code"],
            checked=checked.outputs["checked"],
            endpoint=endpoint.output,
            shards=shards,
            concurrency=concurrency,
            server_wait_s=server_wait_s,
            max_error_rate=max_error_rate,
            store_endpoint=store_endpoint,
            options=options,
        ),
        "Plan shards",
        image=step_image,
    )
    with_stores(plan, storage_secret)
    run_shards(
        code=plan.outputs["more_code"],
        plan=plan.outputs["plan"],
        specs=plan.outputs["Output"],
        endpoint=endpoint.output,
        max_error_rate=max_error_rate,
        storage_secret=storage_secret,
        endpoint_secret=endpoint_secret,
        langfuse_secret=langfuse_secret,
        store_endpoint=store_endpoint,
        step_image=step_image,
    ).set_display_name("Run shards").set_caching_options(False)
