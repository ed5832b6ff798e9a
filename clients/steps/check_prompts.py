"""Check every row before anything expensive starts, and decide what the whole run has to agree on."""

import dataclasses
import datetime as dt
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clients.batch.options import RunOptions
from clients.errors import StorageError
from clients.events import emit
from clients.prompts.check import Checked
from clients.prompts.check import check_prompts as check
from clients.prompts.rows import JobDefaults
from clients.prompts.start import Start, date_of, expanded
from clients.steps.boundary import step, whole_numbers
from clients.steps.store_access import reach_stores
from clients.storage import Folder, refusals, shown
from clients.storage.generations import Generations, job_of, pipeline_of, states_of
from clients.storage.inputs import at_hand

logger = logging.getLogger(__name__)


def check_prompts(
    *,
    prompts: str,
    system_prompt: str,
    request_defaults: Mapping[str, Any],
    template: str,
    checked_path: str,
    output: str = "",
    state: str = "",
    run: str = "",
    run_date: str = "",
    options: Mapping[str, Any] | None = None,
    store_endpoint: str = "",
    artifact: str = "",
) -> dict[str, Any]:
    """Read and check the whole input once and write what was found and decided.

    Args:
        prompts: Path or URI of the input, or the input itself; with macros.
        system_prompt: See `JobDefaults`; so are the two that follow.
        request_defaults: Request fields of rows that have no such field.
        template: The user message, with `{name}` where a column's value goes; "" for none.
        checked_path: The file to write: a line with the `Start`, and a line with what was `Checked`.
        output: Folder or URI for the results, with macros; "" for none.
        state: Folder or URI for the ledger; "" finds a place beside Kubeflow's own artifacts.
        run: Id of the run; "" outside a pipeline.
        run_date: See `date_of`.
        options: See RunOptions.
        store_endpoint: Where `minio://` addresses lead to; "" for Kubeflow's own.
        artifact: Address of the artifact that becomes of `checked_path`; "" when it is none.

    Returns:
        Counts for the artifact's metadata.
    """
    with step("check_prompts"):
        reach_stores(store_endpoint)
        date = date_of(run_date, dt.datetime.now(dt.UTC))
        chosen = RunOptions.from_json(whole_numbers(options or {}))
        defaults = JobDefaults(
            system_prompt=system_prompt, request_defaults=whole_numbers(request_defaults), template=template
        )
        start = Start(
            run=run,
            date=str(date),
            pipeline=pipeline_of(states_of(artifact, run)),
            prompts=expanded(prompts, date=date, run=run),
            output=expanded(output, date=date, run=run),
            state=state,
            job=job_of(prompts),
            max_regression=dict(chosen.max_regression),
            defaults=defaults,
        )
        checked = _checked(start)
        if run and not state:
            start = _with_state(start, artifact, checked.fingerprint, chosen)
        with refusals("write", checked_path):
            Path(checked_path).write_bytes(start.to_json() + b"\n" + checked.to_json())
        return _told(start, checked)


def _checked(start: Start) -> Checked:
    """What stands in the prompts, after the place for the results has shown that it can be written."""
    if start.output:
        Folder(start.output).prove()
    with at_hand(start.prompts) as location:
        return check(location, start.defaults)


def _told(start: Start, checked: Checked) -> dict[str, Any]:
    """What the artifact tells, after the log has told the counts and the first malformed rows."""
    for example in checked.examples:
        emit(logger, "row.invalid", row=example.row, id=example.id, error=example.error_message)
    counts: dict[str, Any] = {
        name: getattr(checked, name) for name in ("rows", "invalid", "repeated_ids", "duplicates")
    }
    counts["prompt_tokens_estimate"] = checked.tokens.prompt
    emit(logger, "prompts.checked", **counts)
    if start.run:
        counts |= {"prompts": shown(start.prompts), "date": start.date, "state": start.state}
    return counts


def _with_state(start: Start, artifact: str, content: str, chosen: RunOptions) -> Start:
    """The start with a place in Kubeflow's own store; without one where that cannot be used."""
    states = states_of(artifact, start.run)
    if not states:
        emit(logger, "state.none", reason="Kubeflow keeps its artifacts where steps cannot write")
        return start
    try:
        generations = Generations(states)
        place = generations.begin(content, run=start.run, fresh=chosen.fresh, now=time.time(), resumes=chosen.resumes)
        reuse = generations.finished(content, start.job) if chosen.reuse and not chosen.fresh else ""
    except StorageError as error:
        emit(logger, "state.none", reason=str(error))
        return start
    emit(logger, "state.chosen", state=place, reuse=reuse)
    return dataclasses.replace(start, state=place, kept=True, reuse="" if reuse == place else reuse)
