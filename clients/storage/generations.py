"""State with nothing to configure: where it lies in the store of Kubeflow's own artifacts, and which run it belongs to.

Below `<pipeline>/state` there is a folder for each content of the prompts, and in it one for each generation: the first
run and those that go on where it stopped share one, a run after a finished one begins the next. A small file for each
job (the prompts as they were written) says which finished generation is its newest; that one is kept.
"""

import hashlib
import re
from typing import Any

import orjson

from clients.storage.folder import Folder

#: Says that every row has an outcome and the results are safe.
FINISHED = "finished.json"

_NEWEST, _BEGUN = "newest", "begun"

#: A generation's first file.
_FIRST = "begun.json"

#: Seconds after which a generation goes that no run has worked in, and one whose job did not run again: a job that
#: runs once in three months still finds what it did before.
_FORGOTTEN_S, _ABANDONED_S = 30 * 86_400.0, 100 * 86_400.0

_STORES = ("minio", "s3", "gs")
_CONTENT, _NUMBER = re.compile(r"[0-9a-f]{16}"), re.compile(r"\d{4}")


def states_of(artifact: str, run: str) -> str:
    """Where the states of a pipeline lie, from the address of an artifact of one of its runs; "" for nowhere.

    Args:
        artifact: Such as `minio://mlpipeline/v2/artifacts/batch-client/<run>/check-prompts/.../checked`, or, in local
            runs, a path.
        run: Id of the run.
    """
    scheme, divider, path = artifact.partition("?")[0].partition("://")
    if not divider:
        folders = artifact.rstrip("/").split("/")  # a local run: <its folder>/check-prompts/checked
        return "/".join([*folders[:-2], "state"]) if len(folders) > 3 else ""
    if scheme not in _STORES:
        return ""
    root, found, _ = path.partition(f"/{run}/")
    return f"{scheme}://{root}/state" if run and found else ""


def pipeline_of(states: str) -> str:
    """The name of the pipeline whose states lie there, as Kubeflow has it in its paths; "" for nowhere."""
    return states.removesuffix("/state").rpartition("/")[2] if "://" in states else ""


def job_of(prompts: str) -> str:
    """A name for a job, from its prompts as they were written."""
    return hashlib.sha256(prompts.encode()).hexdigest()[:16]


class Generations:
    """The states of one pipeline.

    Args:
        states: See `states_of`.

    Raises:
        StorageError: from every method: the store cannot be reached or refuses.
    """

    def __init__(self, states: str) -> None:
        self._states = Folder(states)

    def begin(self, content: str, *, run: str, fresh: bool, now: float, resumes: str = "") -> str:
        """The generation a run works in: the unfinished one of the same prompts, or a new one.

        Args:
            content: Fingerprint of the prompts.
            run: Id of the run. What it has begun or finished itself it goes on with.
            fresh: Begin a new one in any case.
            now: Unix time.
            resumes: Id of an earlier run whose generation this is to be, finished or not; "" for none.

        Returns:
            Its address.
        """
        numbers = [int(name) for name in (self._states / content).folders() if _NUMBER.fullmatch(name)]
        number = max(numbers, default=0)
        begun, finished = ("", "") if not number else (self._begun(content, number), self._finished(content, number))
        # Without its first file it is what a killed process left of one that it was removing.
        if not begun or ({run, resumes or run}.isdisjoint((begun, finished)) and (fresh or finished)):
            number, begun, finished = number + 1, "", ""
        note = orjson.dumps({"run": run, "at": now})
        if not finished:
            self._states.write(f"{_BEGUN}/{content}-{number:04d}.json", note)  # anew each time: its age counts
        if not begun:
            self._states.write(f"{content}/{number:04d}/{_FIRST}", note)
        return f"{self._states.location}/{content}/{number:04d}"

    def finished(self, content: str, job: str) -> str:
        """The finished generation to take answers from: the job's newest, else one of the same prompts, else any."""
        pointers = {name: self._pointer(name) for name in (self._states / _NEWEST).names()}
        chosen = pointers.get(f"{job}.json")
        if chosen is None:
            same = [found for found in pointers.values() if found and found["place"].startswith(f"{content}/")]
            found = same or [pointer for pointer in pointers.values() if pointer]
            chosen = max(found, key=lambda pointer: float(pointer["at"]), default=None)
        return f"{self._states.location}/{chosen['place']}" if chosen else ""

    def facts(self, job: str) -> dict[str, Any] | None:
        """What the newest finished generation of a job says of itself, see `finish`; None when there is none."""
        pointer = self._pointer(f"{job}.json")
        return None if pointer is None else self._states.read_note(f"{pointer['place']}/{FINISHED}")

    def finish(self, generation: str, *, run: str, job: str, facts: dict[str, Any], now: float) -> None:
        """Mark a generation as finished and remove those that nobody needs any more.

        Args:
            generation: Its address, from `begin`.
            run: Id of the run that finished it.
            job: See `job_of`.
            facts: What a later run has to know to take answers from it and to compare itself with it.
            now: Unix time.
        """
        place = generation.removeprefix(f"{self._states.location}/")
        (self._states / place).write(FINISHED, orjson.dumps({"run": run, "at": now, **facts}))
        pointer = self._pointer(f"{job}.json") or {"place": ""}
        content, _, number = place.partition("/")
        if pointer["place"].startswith(f"{content}/") and pointer["place"] > place:
            # A later run of the same prompts has overtaken this one: what is newest is its own.
            self._states.remove(f"{_BEGUN}/{place.replace('/', '-')}.json")
            return
        # Whoever is killed before the older one is gone, and tries again, still has to know it.
        before = str(pointer.get("before", "") if pointer["place"] == place else pointer["place"])
        self._states.write(
            f"{_NEWEST}/{job}.json", orjson.dumps({"place": place, "run": run, "at": now, "before": before})
        )
        self._states.remove(f"{_BEGUN}/{place.replace('/', '-')}.json")
        for other in (self._states / content).folders():
            if _NUMBER.fullmatch(other) and other < number and self._is_over(content, int(other)):
                self._drop(f"{content}/{other}")
        self._drop(before)
        self._forget(now)

    def _forget(self, now: float) -> None:
        for name, age_s in (self._states / _BEGUN).ages_s(now).items():
            if age_s > _FORGOTTEN_S:
                self._drop(name.removesuffix(".json").replace("-", "/"))
                self._states.remove(f"{_BEGUN}/{name}")
        for name, age_s in (self._states / _NEWEST).ages_s(now).items():
            if age_s > _ABANDONED_S and (pointer := self._pointer(name)):
                # The next one to forget finds it there if this process is killed before it is gone.
                self._states.write(f"{_BEGUN}/{str(pointer['place']).replace('/', '-')}.json", b"{}")
                self._states.remove(f"{_NEWEST}/{name}")
                self._drop(pointer["place"])
                self._states.remove(f"{_BEGUN}/{str(pointer['place']).replace('/', '-')}.json")

    def _drop(self, place: str) -> None:
        """Remove a generation, unless it is some job's newest. The name is looked at twice: removing is for good."""
        content, _, number = place.partition("/")
        if not (_CONTENT.fullmatch(content) and _NUMBER.fullmatch(number)):
            return
        pointers = [self._pointer(name) for name in (self._states / _NEWEST).names()]
        if all(pointer is None or pointer["place"] != place for pointer in pointers):
            (self._states / place).remove(_FIRST)
            (self._states / place).remove_all()

    def _pointer(self, name: str) -> dict[str, Any] | None:
        return self._states.read_note(f"{_NEWEST}/{name}")

    def _is_over(self, content: str, number: int) -> bool:
        """Whether no run can be at work in a generation: it is finished, or what a killed process left of one."""
        return bool(self._finished(content, number)) or not self._begun(content, number)

    def _begun(self, content: str, number: int) -> str:
        return self._read(content, number, _FIRST)

    def _finished(self, content: str, number: int) -> str:
        return self._read(content, number, FINISHED)

    def _read(self, content: str, number: int, name: str) -> str:
        """The run that wrote a marker; "" when there is none."""
        note = self._states.read_note(f"{content}/{number:04d}/{name}")
        return "" if note is None else str(note["run"])
