"""A shard of the plan, as it travels to the pod that runs it."""

import dataclasses
from typing import Any

import orjson

from clients.prompts.rows import JobDefaults
from clients.prompts.source import Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """Everything a shard's pod needs to know, as one self-contained JSON string.

    KFP loops over such strings: a value of another task inside the loop body is silently replaced by the loop item in
    local runs, and numbers inside lists and dicts arrive as floats there.

    Attributes:
        shard: 0-based number of the shard.
        of: How many shards there are.
        rows: Rows in `part`.
        state: Folder or URI under which committed rows are kept; "" keeps them only as long as the pod lives.
        plan: Name of the plan the shard belongs to: the same input cut the same way has the same name.
        base_url: Of the endpoint; several are divided by blanks.
        concurrency: Most requests in flight; 0 leaves it to the engine.
        server_wait_s: Seconds to wait for an endpoint that cannot be reached.
        may_repeat: Whether a row may ask the same as an earlier one.
        options: What `clients.batch.options.RunOptions` reads.
    """

    shard: int
    of: int
    prompts: str
    part: Range
    rows: int
    base_url: str
    defaults: JobDefaults
    carried: dict[str, str]
    state: str
    plan: str
    concurrency: int
    server_wait_s: float = 600.0
    may_repeat: bool = True
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON."""
        return orjson.dumps(self).decode()

    def settings(self) -> dict[str, Any]:
        """What a reader of the results wants to know about how they were made; no secret is among it."""
        template = {"template": self.defaults.template} if self.defaults.template else {}
        return {
            "prompts": self.prompts,
            "base_url": self.base_url,
            "model": self.defaults.model,
            "system_prompt": self.defaults.system_prompt,
            "request_defaults": dict(self.defaults.request_defaults),
            **template,
            "shards": self.of,
        }

    @classmethod
    def from_json(cls, text: str) -> "Shard":
        """Read back what `to_json` wrote."""
        fields: dict[str, Any] = orjson.loads(text)
        return cls(**{**fields, "part": Range(**fields["part"]), "defaults": JobDefaults(**fields["defaults"])})
