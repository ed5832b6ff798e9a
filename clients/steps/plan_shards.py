"""Cut the checked input into shards."""

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from clients.batch.options import RunOptions
from clients.events import emit
from clients.prompts.check import Checked
from clients.prompts.plan import MOST_PODS, Shard, pack, specs_of
from clients.prompts.rows import JobDefaults
from clients.prompts.source import Range
from clients.prompts.start import Start
from clients.steps.boundary import step, whole_numbers
from clients.steps.store_access import reach_stores
from clients.storage import refusals

logger = logging.getLogger(__name__)

#: Options that decide which answers stand in a part.
_OF_ANSWERS = ("retry", "resample", "reasoning_max_tokens", "thinking_token_budget", "raw_response", "join_duplicates")


def plan_shards(
    *,
    checked_path: str,
    endpoint: str,
    shards: int,
    concurrency: int,
    server_wait_s: float,
    options: Mapping[str, Any],
    store_endpoint: str = "",
    plan_path: str = "",
) -> list[str]:
    """Describe each shard as a string.

    Args:
        checked_path: What `check_prompts` wrote.
        endpoint: What `resolve_endpoint` returned.
        shards: How many; at most one a row.
        concurrency: Most requests in flight over all shards; 0 leaves it to the engine.
        server_wait_s: Seconds a shard waits for an endpoint that cannot be reached.
        options: See RunOptions.
        store_endpoint: Where `minio://` addresses lead to; "" for Kubeflow's own.
        plan_path: File for the whole plan, for the steps after the shards; "" for none.
    """
    with step("plan_shards"):
        reach_stores(store_endpoint)
        chosen = RunOptions.from_json(whole_numbers(options)).started(time.time())
        first, _, second = Path(checked_path).read_bytes().partition(b"\n")
        start, checked = Start.from_json(first), Checked.from_json(second)
        # Without a place that outlives a pod, one pod does it all: a later step would not find what others did.
        parts = checked.cut(shards if start.state or not start.run else 1)
        planned = _planned(
            start, checked, parts, chosen, json.loads(endpoint), concurrency=concurrency, server_wait_s=server_wait_s
        )
        specs = specs_of(planned)
        if plan_path:
            with refusals("write", plan_path):
                Path(plan_path).write_bytes(start.to_json() + b"\n" + pack(planned))
        emit(
            logger, "shards.planned", plan=planned[0].plan, rows=checked.rows, rows_of_shard=[rows for _, rows in parts]
        )
    return specs


def _planned(
    start: Start,
    checked: Checked,
    parts: Sequence[tuple[Range, int]],
    chosen: RunOptions,
    endpoint: Mapping[str, str],
    *,
    concurrency: int,
    server_wait_s: float,
) -> list[Shard]:
    """A shard for each part, with all that its pod has to know."""
    defaults = dataclasses.replace(start.defaults, model=endpoint["model"])
    plan = _name([part.start for part, _ in parts], checked.fingerprint)
    return [
        Shard(
            shard=number,
            of=len(parts),
            prompts=start.prompts,
            part=part,
            rows=rows,
            base_url=endpoint["base_url"],
            defaults=defaults,
            carried=checked.carried,
            state=start.state,
            plan=plan,
            concurrency=max(1, concurrency // min(len(parts), MOST_PODS)) if concurrency else 0,
            server_wait_s=server_wait_s,
            may_repeat=checked.may_repeat,
            options=chosen.of_part(rows, checked.rows).to_json(),
            run=start.run,
            pipeline=start.pipeline,
            job=_job(plan, defaults, checked.carried, chosen),
            reuse=start.reuse,
        )
        for number, (part, rows) in enumerate(parts)
    ]


def _name(starts: list[int], fingerprint: str) -> str:
    """The plan's name: the same for the same content cut at the same places."""
    return hashlib.sha256(f"{fingerprint}:{starts}".encode()).hexdigest()[:12]


def _job(plan: str, defaults: JobDefaults, carried: Mapping[str, str], chosen: RunOptions) -> str:
    """Names what a finished part depends on: not when the run has to end, who watches it, or how it was made fast."""
    options = {name: value for name, value in chosen.to_json().items() if name in _OF_ANSWERS}
    told = orjson.dumps([plan, defaults, carried, options], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(told).hexdigest()[:12]
