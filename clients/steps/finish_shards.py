"""After the shards: run what any of them left undone, so that the results are whole."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from clients import errors
from clients.batch.parts import Part, Parts
from clients.errors import LLMInferenceError
from clients.events import emit
from clients.prompts.plan import MOST_PODS, Shard, unpack
from clients.prompts.start import Start
from clients.steps.boundary import step
from clients.steps.shard_runs import run_to_file, run_to_state
from clients.steps.store_access import reach_stores
from clients.storage import refusals

logger = logging.getLogger(__name__)

#: What another try cannot mend, or what a shard has waited for already as long as it may.
_FINAL = ("EndpointError", "SettingsError", "PromptsError")


def finish_shards(*, plan_path: str, finished_path: str, part_path: str, store_endpoint: str = "") -> dict[str, Any]:
    """Bring every row of every shard to an outcome.

    Args:
        plan_path: What `plan_shards` wrote.
        finished_path: File to write: a line with the `Start`, and a line with where the parts lie.
        part_path: Parquet file to write when the run has no state that outlives a pod; empty otherwise.
        store_endpoint: Where `minio://` addresses lead to; "" for Kubeflow's own.

    Returns:
        Counts for the artifact's metadata.
    """
    with step("finish_shards"):
        reach_stores(store_endpoint)
        first, _, second = Path(plan_path).read_bytes().partition(b"\n")
        start, shards = Start.from_json(first), unpack(second)
        found: list[Part] = []
        if start.state:
            found = _finish(shards)
        else:
            for shard in shards:
                run_to_file(shard, Path(part_path))
        with refusals("write", finished_path):
            told = [shards[0].job, found]
            Path(finished_path).write_bytes(start.to_json() + b"\n" + orjson.dumps(told))
            if found:
                Path(part_path).write_bytes(b"")
    return {"shards": len(shards), "rows": sum(shard.rows for shard in shards), "state": start.state}


def _finish(shards: Sequence[Shard]) -> list[Part]:
    run, parts = shards[0].run, Parts(shards[0].state, shards[0].job)
    numbers = [shard.shard for shard in shards]
    done = {part.shard: part for part in parts.find_all(numbers) if part.settled(run)}
    undone = [shard for shard in shards if shard.shard not in done]
    if undone:
        emit(logger, "shards.undone", shards=[shard.shard for shard in undone])
        _refuse_hopeless(parts, undone)
    for shard in undone:
        # The other shards are over, so this one may have all the requests in flight that they had together.
        done[shard.shard] = run_to_state(
            dataclasses.replace(shard, concurrency=shard.concurrency * min(shard.of, MOST_PODS))
        )
    return [done[number] for number in numbers]


def _refuse_hopeless(parts: Parts, undone: Sequence[Shard]) -> None:
    """Raise what ended the shards, when it would end them again."""
    notes = [parts.left(shard.shard, shard.run) for shard in undone]
    if all(note is not None and note["kind"] in _FINAL for note in notes) and notes[0] is not None:
        kind: type[LLMInferenceError] = getattr(errors, notes[0]["kind"])
        raise kind(notes[0]["error"])
