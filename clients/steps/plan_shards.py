"""Cut the checked input into shards."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clients.batch.options import RunOptions
from clients.events import emit
from clients.prompts.check import Checked
from clients.prompts.plan import Shard
from clients.prompts.rows import JobDefaults
from clients.steps.boundary import step, whole_numbers

logger = logging.getLogger(__name__)


def plan_shards(
    *,
    checked_path: str,
    prompts: str,
    endpoint: str,
    system_prompt: str,
    request_defaults: Mapping[str, Any],
    template: str,
    shards: int,
    concurrency: int,
    state: str,
    server_wait_s: float,
    options: Mapping[str, Any],
) -> list[str]:
    """Describe each shard as a self-contained JSON string.

    Args:
        checked_path: What `check_prompts` wrote.
        prompts: Path or URI of the input.
        endpoint: What `resolve_endpoint` returned.
        system_prompt: See `JobDefaults`; so are the two that follow.
        request_defaults: Request fields of rows that have no such field.
        template: The user message, with `{name}` where a column's value goes; "" for none.
        shards: How many; at most one a row.
        concurrency: Most requests in flight over all shards; 0 leaves it to the engine.
        state: Folder or URI of the run's ledger, or "".
        server_wait_s: Seconds a shard waits for an endpoint that cannot be reached.
        options: See RunOptions.
    """
    with step("plan_shards"):
        chosen = RunOptions.from_json(whole_numbers(options)).started(time.time())
        checked = Checked.from_json(Path(checked_path).read_bytes())
        found = json.loads(endpoint)
        parts = checked.cut(shards)
        plan = _name([part.start for part, _ in parts], checked.fingerprint)
        defaults = JobDefaults(
            model=found["model"],
            system_prompt=system_prompt,
            request_defaults=whole_numbers(request_defaults),
            template=template,
        )
        specs = [
            Shard(
                shard=number,
                of=len(parts),
                prompts=prompts,
                part=part,
                rows=rows,
                base_url=found["base_url"],
                defaults=defaults,
                carried=checked.carried,
                state=state,
                plan=plan,
                concurrency=max(1, concurrency // len(parts)) if concurrency else 0,
                server_wait_s=server_wait_s,
                may_repeat=checked.may_repeat,
                options=chosen.of_part(rows, checked.rows).to_json(),
            ).to_json()
            for number, (part, rows) in enumerate(parts)
        ]
        emit(logger, "shards.planned", plan=plan, rows=checked.rows, rows_of_shard=[rows for _, rows in parts])
    return specs


def _name(starts: list[int], fingerprint: str) -> str:
    """The plan's name: the same for the same content cut at the same places."""
    return hashlib.sha256(f"{fingerprint}:{starts}".encode()).hexdigest()[:12]
