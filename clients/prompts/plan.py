"""A shard of the plan, as it travels to the pod that runs it."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from clients.errors import StorageError
from clients.prompts.rows import JobDefaults
from clients.prompts.source import Range
from clients.storage import Folder, shown

#: The specs of all shards are one parameter of Kubeflow. Beyond so many bytes they stand in the state instead.
_MOST_BYTES = 16_000

#: What a spec says whose shard has nowhere to keep its rows: a later step runs them.
LATER = "later"

#: Pods that run shards side by side; of more shards each runs several, one after the other. Kubeflow's record of a run
#: grows with each pod, and 16 of them ask for more than any endpoint answers.
MOST_PODS = 16

_FOLDER = ".plan"


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
        run: Id of the run; "" outside a pipeline.
        pipeline: Name of the pipeline, as far as it is known.
        job: Names all that makes up the answers: two runs with the same job may use one another's parts.
        reuse: Address of a finished generation whose answers are taken over; "" for none.
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
    run: str = ""
    pipeline: str = ""
    job: str = ""
    reuse: str = ""

    def to_json(self) -> str:
        """One line of JSON."""
        return orjson.dumps(self).decode()

    def settings(self) -> dict[str, Any]:
        """What a reader of the results wants to know about how they were made; no secret is among it."""
        template = {"template": self.defaults.template} if self.defaults.template else {}
        return {
            "prompts": shown(self.prompts),
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
        return cls.from_fields(orjson.loads(text))

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Shard":
        """Read back what a JSON object holds."""
        return cls(**{**fields, "part": Range(**fields["part"]), "defaults": JobDefaults(**fields["defaults"])})


def pack(shards: Sequence[Shard]) -> bytes:
    """All shards as one file: what they have in common stands in it once."""
    each: list[dict[str, Any]] = [orjson.loads(shard.to_json()) for shard in shards]
    common = {name: value for name, value in each[0].items() if all(fields[name] == value for fields in each)}
    own = [{name: value for name, value in fields.items() if name not in common} for fields in each]
    return orjson.dumps({"common": common, "shards": own})


def unpack(data: bytes, numbers: Iterable[int] | None = None) -> list[Shard]:
    """Read back what `pack` wrote, or only the shards with these numbers."""
    found: dict[str, Any] = orjson.loads(data)
    chosen = range(len(found["shards"])) if numbers is None else numbers
    return [Shard.from_fields({**found["common"], **found["shards"][number]}) for number in chosen]


def specs_of(shards: Sequence[Shard]) -> list[str]:
    """A string for each pod, all together small enough for a parameter, whatever a system prompt's length.

    Few and short shards are told in full. Else the plan is kept in the state, and a string says where and which.

    Raises:
        StorageError: the state cannot be written.
    """
    whole = [shard.to_json() for shard in shards]
    if not shards[0].run:
        return whole
    if not shards[0].state:
        return [LATER]
    if len(shards) <= MOST_PODS and sum(map(len, whole)) <= _MOST_BYTES:
        return whole
    data = pack(shards)
    name = f"{_FOLDER}/{hashlib.sha256(data).hexdigest()[:8]}"
    folder = Folder(shards[0].state)
    folder.write(name, data)
    numbers = [range(pod, len(shards), MOST_PODS) for pod in range(min(len(shards), MOST_PODS))]
    return [f"{folder.location}/{name}#{','.join(map(str, own))}" for own in numbers]


def shards_of(spec: str) -> list[Shard]:
    """The shards that a string of `specs_of` tells of.

    Raises:
        StorageError: its plan cannot be read.
    """
    if spec.startswith("{"):
        return [Shard.from_json(spec)]
    place, _, numbers = spec.rpartition("#")
    root, _, name = place.rpartition(f"/{_FOLDER}/")
    data = Folder(root).read(f"{_FOLDER}/{name}")
    if data is None:
        raise StorageError(f"cannot read {place}: the plan is gone. Start the run again; finished rows are kept.")
    return unpack(data, map(int, numbers.split(",")))
