"""Run the rows of one shard, or of a few, and write each one's part of the results."""

import logging
from pathlib import Path
from typing import Any

from clients.batch.parts import Parts
from clients.errors import LLMInferenceError, StorageError
from clients.events import emit
from clients.prompts.plan import LATER, Shard, shards_of
from clients.steps.boundary import step
from clients.steps.interrupts import InterruptedRunError
from clients.steps.shard_runs import counts_of, run_to_file, run_to_state
from clients.steps.store_access import reach_stores

logger = logging.getLogger(__name__)


def run_shard(*, spec: str, part_path: str = "", store_endpoint: str = "") -> dict[str, Any]:
    """Bring every row of a pod's shards to an outcome.

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
        shards = shards_of(spec)
        if not shards[0].run:
            return counts_of(shards[0], run_to_file(shards[0], Path(part_path)))
        missing = 0
        for number, shard in enumerate(shards):
            try:
                missing += run_to_state(shard).missing
            except InterruptedRunError:
                raise
            except LLMInferenceError as error:  # the shards after it would meet the same
                for other in shards[number:]:
                    _leave(other, error)
                break
    return {"shards": [shard.shard for shard in shards], "missing": missing}


def _leave(shard: Shard, error: LLMInferenceError) -> None:
    emit(logger, "shard.left", shard=shard.shard, reason=str(error))
    try:
        Parts(shard.state, shard.job).leave(shard, error)
    except StorageError as refused:  # what the later step does not find it runs again
        emit(logger, "shard.left", shard=shard.shard, reason=str(refused))
