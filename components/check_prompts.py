"""Check every prompt before anything expensive starts."""

from typing import Any

from kfp.dsl import Artifact, Input, Output

from components._embedding import use_code
from components._factory import BROUGHT, RESULTS_PACKAGES, step


@step("clients.steps.check_prompts", packages=RESULTS_PACKAGES, there=BROUGHT)
def check_prompts(
    stores_code: Input[Artifact],
    prompts_code: Input[Artifact],
    engine_code: Input[Artifact],
    run: str,
    prompts: str,
    system_prompt: str,
    request_defaults: dict[str, Any],
    template: str,
    output: str,
    state: str,
    run_date: str,
    store_endpoint: str,
    options: dict[str, Any],
    checked: Output[Artifact],
    code: Output[Artifact],
) -> None:
    """Checks every row of the input once, before a GPU is used. Malformed rows are counted, not fatal.

    Args:
        stores_code: Code of an earlier step.
        prompts_code: Code of an earlier step.
        engine_code: Code of an earlier step.
        run: Id of the run.
        prompts: Path, URI or text of the input: JSONL, CSV or Parquet, also with gzip or zstd.
        system_prompt: First message of rows that have no system message of their own.
        request_defaults: Request fields that a row gets unless it has its own.
        template: User message with {name} where a column's value goes; empty takes a row's own prompt or messages.
        output: Folder or URI for the results.
        state: Folder or URI where finished rows are kept; empty takes a place beside Kubeflow's own artifacts.
        run_date: Date the run is for; empty takes today's in UTC.
        store_endpoint: Address of Kubeflow's own object store, to which minio:// leads.
        options: Further choices, see the pipeline.
        checked: What was found: rows, malformed rows, columns, and where the file can be cut.
        code: Code that later steps run.
    """
    use_code(stores_code, prompts_code, engine_code, kept=code)
    from clients.steps.check_prompts import check_prompts as run_step

    counts = run_step(
        run=run,
        prompts=prompts,
        system_prompt=system_prompt,
        request_defaults=request_defaults,
        template=template,
        output=output,
        state=state,
        run_date=run_date,
        store_endpoint=store_endpoint,
        options=options,
        checked_path=checked.path,
        artifact=checked.uri,
    )
    checked.metadata.update(counts)
