"""What the shards' last step handed on: where their parts lie, and what is to become of the run's state."""

import dataclasses
from pathlib import Path
from typing import Any

import orjson

from clients.batch.parts import Part, Parts
from clients.prompts.start import Start
from clients.results.merge import Source
from clients.steps.baseline import states_above
from clients.storage.generations import Generations


@dataclasses.dataclass(frozen=True)
class FinishedParts:
    """The parts of a run in its state.

    Attributes:
        start: What the run decided at its start.
        job: See `Shard.job`.
        parts: In input order; none when the run has no state that outlives a pod.
    """

    start: Start
    job: str
    parts: tuple[Part, ...]

    @classmethod
    def read(cls, path: Path) -> "FinishedParts":
        """Read what `finish_shards` wrote."""
        first, _, second = path.read_bytes().partition(b"\n")
        found: list[Any] = orjson.loads(second)
        return cls(Start.from_json(first), found[0], tuple(Part(**part) for part in found[1]))

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)

    def sources(self) -> list[Source]:
        """The parts' files."""
        state = Parts(self.start.state, self.job).state
        return [(state, part.name) if state.local_path is None else state.local_path / part.name for part in self.parts]

    def settle(self, *, is_good: bool, baseline: dict[str, Any], now: float) -> None:
        """Leave the state as the next run should find it, once the results are safe.

        Args:
            is_good: Whether the run finished, so that a further one is a new run instead of its continuation.
            baseline: See `baseline_facts`.
            now: Unix time.

        Raises:
            StorageError: the state refuses.
        """
        start = self.start
        if start.kept and is_good:
            facts = {"parts": [part.name for part in self.parts], "rows": sum(part.rows for part in self.parts)}
            Generations(states_above(start.state)).finish(
                start.state, run=start.run, job=start.job, facts={**facts, **baseline}, now=now
            )
        elif start.state and not start.kept:
            state = Parts(start.state, self.job)
            if state.state.local_path is not None:  # the results are as large once more; the ledger has the answers
                state.remove()
