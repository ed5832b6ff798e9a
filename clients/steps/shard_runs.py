"""A shard from its ledger to its part: what the steps that run shards share."""

import contextlib
import dataclasses
import logging
import tempfile
from pathlib import Path
from typing import Any

from clients.batch.chat import Timeouts
from clients.batch.parts import Part, Parts
from clients.batch.shard import open_ledger, write_part
from clients.batch.shard import run_shard as run
from clients.events import emit
from clients.prompts.plan import Shard
from clients.records import Outcome
from clients.steps.boundary import api_key
from clients.steps.interrupts import stopping
from clients.steps.observation import observed
from clients.storage import refusals
from clients.storage.inputs import at_hand

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ShardEnd:
    """How a shard ended.

    Attributes:
        missing: Rows without an answer.
        stop_reason: Why it ended before its last row, or None.
        counts: Of its outcomes.
        reused: Rows that had an answer already.
    """

    missing: int
    stop_reason: str | None
    counts: dict[str, int]
    reused: int


def run_to_file(shard: Shard, path: Path) -> ShardEnd:
    """Bring every row of a shard to an outcome and write its part.

    Raises:
        LLMInferenceError: as `clients.batch.shard.run_shard`.
    """
    lasts = bool(shard.state)
    with contextlib.ExitStack() as stack:
        if not lasts:  # nowhere durable was given: good as long as this pod lives
            shard = dataclasses.replace(shard, state=_scratch(stack, "kllm-state-"))
        prompts = stack.enter_context(at_hand(shard.prompts))
        ledger = stack.enter_context(open_ledger(shard))
        at_work = dataclasses.replace(shard, prompts=prompts)
        seen = stack.enter_context(observed(shard, ledger.home, lasts=lasts))
        done = run(
            at_work,
            ledger,
            api_key=api_key(),
            timeouts=Timeouts(),
            stopping=stopping,
            tracer=seen.tracer,
            see=seen.metrics.see if seen.metrics is not None else None,
        )
        done = seen.ended(done)
        missing = write_part(at_work, ledger, path, run=done, told=shard.prompts)
    return ShardEnd(missing, done.stop_reason, dict(done.progress.outcomes), done.progress.reused)


def run_to_state(shard: Shard) -> Part:
    """Do the same and keep the part in the run's state; a shard that is settled already is left as it is.

    Raises:
        LLMInferenceError: as above.
    """
    parts = Parts(shard.state, shard.job)
    part = parts.find(shard.shard)
    if part is not None and part.settled(shard.run):
        reused = 0 if part.run == shard.run else part.rows - part.missing
        emit(logger, "shard.settled", shard=shard.shard, rows=part.rows, reused=reused)
        return part
    with contextlib.ExitStack() as stack:
        path = Path(_scratch(stack, "kllm-part-")) / "part.parquet"
        end = run_to_file(shard, path)
        failed = end.counts.get(Outcome.FAILED, 0)
        return parts.keep(shard, path, missing=end.missing, failed=failed, stop_reason=end.stop_reason)


def counts_of(shard: Shard, end: ShardEnd) -> dict[str, Any]:
    """What an artifact's metadata says of a shard."""
    return {"shard": shard.shard, "rows": shard.rows, "reused": end.reused, **end.counts}


def _scratch(stack: contextlib.ExitStack, prefix: str) -> str:
    with refusals("write", tempfile.gettempdir()):
        return stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix))
