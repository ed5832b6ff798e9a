"""The finished parts of a run's shards in its state, and which shards have none yet.

A part gets a name of its own, then a marker names it: whoever is killed in between leaves a file that nobody reads, and
an old pod that still runs beside the new one replaces a whole part by another whole part.
"""

import concurrent.futures
import dataclasses
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from clients.prompts.plan import Shard
from clients.storage import Folder

#: With a dot in front they are hidden from whoever reads the state as one Parquet dataset while a run goes on.
_PARTS, _DONE, _LEFT = ".parts", ".done", ".left"

#: Markers that are read at once.
_READERS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A shard's part.

    Attributes:
        shard: Number of the shard.
        name: Of its file, below the state.
        rows: Rows in it; `missing` have no answer, `failed` ended so and are sent again by another run.
        size: Bytes of the file.
        run: Id of the run that wrote it.
        stop_reason: Why the shard ended before its last row, or None.
    """

    shard: int
    name: str
    rows: int
    missing: int
    failed: int
    size: int
    run: str
    stop_reason: str | None = None

    def settled(self, run: str) -> bool:
        """Whether a run has nothing left to do for the shard."""
        if self.run == run:
            return not self.missing or self.stop_reason is not None
        return not self.missing and not self.failed


class Parts:
    """The parts of one plan, asked for one thing.

    Args:
        state: Folder or URI of the run's state.
        job: See `Shard.job`.

    Raises:
        StorageError: from every method: the state refuses.
    """

    def __init__(self, state: str, job: str) -> None:
        self.state, self._job = Folder(state), job

    def find(self, shard: int) -> Part | None:
        """The part of a shard, whoever wrote it; None without one."""
        note = self.state.read_note(self._marker(_DONE, shard))
        return None if note is None else Part(**note)

    def find_all(self, shards: Iterable[int]) -> list[Part]:
        """The parts of those shards that have one, in their order."""
        with concurrent.futures.ThreadPoolExecutor(_READERS, "parts") as pool:
            return [part for part in pool.map(self.find, shards) if part is not None]

    def keep(self, shard: Shard, path: Path, *, missing: int, failed: int, stop_reason: str | None) -> Part:
        """Keep a shard's part.

        Args:
            shard: The shard.
            path: Parquet file of its rows on this disk.
            missing: Rows in it without an outcome.
            failed: Rows in it that went wrong.
            stop_reason: Why the shard ended early; None when it did not.

        Raises:
            StorageError: the state refuses.
        """
        part = Part(
            shard=shard.shard,
            name=f"{_PARTS}/{self._job}/{shard.shard:05d}-{secrets.token_hex(4)}.parquet",
            rows=shard.rows,
            missing=missing,
            failed=failed,
            size=path.stat().st_size,
            run=shard.run,
            stop_reason=stop_reason,
        )
        self.state.put(part.name, path)
        self.state.write(self._marker(_DONE, shard.shard), orjson.dumps(part))
        return part

    def leave(self, shard: Shard, error: Exception) -> None:
        """Say why a shard could not be finished: a later step reads it."""
        note = {"run": shard.run, "kind": type(error).__name__, "error": str(error)}
        self.state.write(self._marker(_LEFT, shard.shard), orjson.dumps(note))

    def left(self, shard: int, run: str) -> Mapping[str, Any] | None:
        """What `leave` said in this run."""
        note = self.state.read_note(self._marker(_LEFT, shard))
        return note if note and note.get("run") == run else None

    def remove(self) -> None:
        """Remove parts, markers and notes of all plans: the results stand elsewhere, the ledger stays."""
        for name in (_PARTS, _DONE, _LEFT, ".plan"):
            (self.state / name).remove_all()

    def _marker(self, kind: str, shard: int) -> str:
        return f"{kind}/{self._job}/{shard:05d}.json"
