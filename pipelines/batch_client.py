"""The batch client pipeline: prompts against an endpoint that exists. It needs no right but to run pods."""

from typing import Any

from kfp import dsl

from components.check_prompts import check_prompts
from components.resolve_endpoint import resolve_endpoint
from pipelines.resources import prepare
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
    server_wait_s: int = 600,
    options: dict[str, Any] = {},  # noqa: B006
) -> None:
    """Runs a file of prompts against an OpenAI-compatible endpoint and writes the answers to Parquet.

    Args:
        prompts: Path or URI of the input: JSONL (one request a line), CSV, TSV or Parquet; text also with gzip or zstd.
        endpoint_url: Address of an OpenAI-compatible API, with or without /v1, or several divided by commas.
        model: Name of the model. Empty takes the first one the endpoint lists.
        system_prompt: First message of rows that have no system message of their own.
        request_defaults: Request fields that a row gets unless it has its own, such as {"max_tokens": 1024}.
        template: User message with {name} where a column's value goes, such as "Translate into Korean: {text}". Empty
            takes a row's own prompt or messages.
        shards: Number of shards. Each is a pod that runs its part of the rows.
        concurrency: Most requests in flight, over all shards. 0 lets the engine find out what the server can run.
        max_error_rate: Share of the rows, 0 to 1, that may go wrong before the run counts as failed.
        output: Folder or URI that gets results.parquet, rejects.parquet, summary.json and report.html.
        state: Folder or URI where finished rows are kept, so that a rerun does not send them again.
        server_wait_s: Seconds to wait for an endpoint that cannot be reached.
        options: Further choices, such as {"retry": "truncated", "resample": "empty", "time_limit_s": 3600,
            "max_output_tokens": 1000000, "reasoning_max_tokens": 32768, "raw_response": true}.
    """
    requests = {"system_prompt": system_prompt, "request_defaults": request_defaults, "template": template}
    checked = prepare(check_prompts(prompts=prompts, **requests), "Check prompts")
    endpoint = prepare(
        resolve_endpoint(endpoint_url=endpoint_url, model=model, server_wait_s=server_wait_s).after(checked),
        "Resolve endpoint",
    )
    run_shards(
        checked=checked.outputs["checked"],
        endpoint=endpoint.output,
        prompts=prompts,
        shards=shards,
        concurrency=concurrency,
        max_error_rate=max_error_rate,
        output=output,
        state=state,
        server_wait_s=server_wait_s,
        options=options,
        **requests,
    ).set_display_name("Run shards").set_caching_options(False)
