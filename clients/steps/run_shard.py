"""Run one shard's rows and write its part of the results."""

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from clients.batch.chat import Timeouts
from clients.batch.shard import open_ledger, write_part
from clients.batch.shard import run_shard as run
from clients.prompts.plan import Shard
from clients.steps.boundary import api_key, step
from clients.steps.interrupts import stopping
from clients.storage import refusals


def run_shard(*, spec: str, part_path: str) -> dict[str, Any]:
    """Bring every row of the shard to an outcome.

    Args:
        spec: One string of `plan_shards`.
        part_path: Parquet file to write: one row per input row of the shard, in input order.

    Returns:
        Counts for the artifact's metadata.
    """
    with step("run_shard"), contextlib.ExitStack() as stack:
        shard = Shard.from_json(spec)
        if not shard.state:  # nowhere durable was given: good as long as this pod lives
            with refusals("write", tempfile.gettempdir()):
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="kllm-state-"))
            shard = dataclasses.replace(shard, state=scratch)
        with open_ledger(shard) as ledger:
            done = run(shard, ledger, api_key=api_key(), timeouts=Timeouts(), stopping=stopping)
            write_part(shard, ledger, Path(part_path), run=done)
    return {"shard": shard.shard, "rows": shard.rows, "reused": done.progress.reused, **done.progress.outcomes}
