"""Run one shard's rows and write its part of the results."""

import logging
from pathlib import Path
from typing import Any

from clients.batch.parts import Parts
from clients.errors import LLMInferenceError, StorageError
from clients.events import emit
from clients.prompts.plan import LATER, Shard, shard_of
from clients.steps.boundary import step
from clients.steps.interrupts import InterruptedRunError
from clients.steps.shard_runs import counts_of, run_to_file, run_to_state
from clients.steps.stores import reach_stores

logger = logging.getLogger(__name__)


def run_shard(*, spec: str, part_path: str = "", store_endpoint: str = "") -> dict[str, Any]:
    """Bring every row of the shard to an outcome.

    In a pipeline the part goes to the run's state, and what makes it impossible is left to the step after the shards:
    a failed pod would end the run, and the rows of all others with it.

    Args:
        spec: One string of `plan_shards`.
        part_path: Outside a pipeline, the Parquet file to write: one row per input row of the shard, in input order.
        store_endpoint: Where `minio://` addresses lead to; "" for Kubeflow's own.

    Returns:
        Counts.
    """
    with step("run_shard"):
        reach_stores(store_endpoint)
        if spec == LATER:
            emit(logger, "shard.later", reason="no place outlives this pod; one later step runs every row")
            return {}
        shard = shard_of(spec)
        if not shard.run:
            return counts_of(shard, run_to_file(shard, Path(part_path)))
        try:
            part = run_to_state(shard)
        except InterruptedRunError:
            raise
        except LLMInferenceError as error:
            _leave(shard, error)
            return {"shard": shard.shard, "rows": shard.rows}
    return {"shard": part.shard, "rows": part.rows, "missing": part.missing}


def _leave(shard: Shard, error: LLMInferenceError) -> None:
    emit(logger, "shard.left", shard=shard.shard, reason=str(error))
    try:
        Parts(shard.state, shard.job).leave(shard, error)
    except StorageError as refused:  # what the later step does not find it runs again
        emit(logger, "shard.left", shard=shard.shard, reason=str(refused))
