"""What a run is compared with: the numbers of the last run of the same job that its gate let pass.

They lie where the job's state does: in its newest finished generation, or in a small file of a state that was given.
"""

from typing import Any

import orjson

from clients.prompts.start import Start
from clients.results.comparison import Numbers
from clients.storage import Folder
from clients.storage.generations import Generations


def read_baseline(start: Start) -> Numbers | None:
    """The numbers to compare a run with; None for a first one, and where nothing outlives a run.

    Args:
        start: What the run decided at its start.

    Raises:
        StorageError: the state refuses.
    """
    note = _note(start) if start.state else None
    if note is None:
        return None
    # A step that is tried again finds what it wrote itself; it shall compare with what it found the first time.
    is_own = bool(start.run) and note.get("run") == start.run
    found: Numbers | None = note.get("before" if is_own else "numbers")
    return found


def baseline_facts(now: Numbers, before: Numbers | None, *, has_passed: bool) -> dict[str, Any]:
    """What a finished run leaves for the next one; with a run that did not pass nothing is ever compared.

    Args:
        now: The numbers of this run.
        before: Those it was compared with; None for none.
        has_passed: Whether it kept its budgets and got no worse.
    """
    return {"numbers": now if has_passed else before, "before": before}


def keep_baseline(start: Start, facts: dict[str, Any], *, now: float) -> None:
    """Keep what `baseline_facts` returned in a state that was given; a generation keeps it itself.

    Args:
        start: What the run decided at its start.
        facts: JSON-able.
        now: Unix time.

    Raises:
        StorageError: the state refuses.
    """
    if start.state and not start.kept:
        Folder(start.state).write(_name(start), orjson.dumps({"run": start.run, "at": now, **facts}))


def states_above(generation: str) -> str:
    """The place of all generations, from the address of one."""
    return generation.rsplit("/", 2)[0]


def _note(start: Start) -> dict[str, Any] | None:
    if start.kept:
        return Generations(states_above(start.state)).facts(start.job)
    return Folder(start.state).read_note(_name(start))


def _name(start: Start) -> str:
    """The dot hides it from those who read the state as one Parquet dataset."""
    return f".finished-{start.job}.json"
