"""Follow a run until it ends: its steps, its rows, and why it failed."""

import dataclasses
import datetime as dt
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clients.display import RunView
from clients.results import format as fmt
from pipelines.remote.api import AccessError, RemoteError
from pipelines.remote.connection import Connection
from pipelines.remote.logs import Logs
from pipelines.remote.submit import get_run, spec_of
from pipelines.remote.tasks import Pod, Step, StepState, pods_of, step_states, steps_of

_ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})

#: First pause between two looks, what it grows to, and the longest; a look at 512 shards is megabytes.
_FIRST_POLL_S, _POLL_S, _LONGEST_POLL_S = 1.0, 4.0, 30.0

#: A shard that fails is no failure of the run: what it left undone is the next step's.
_SHARD = "run-shard"

#: Exit code of a step that was told to end: SIGTERM, by an eviction or a drained node.
_TOLD_TO_END = 143

#: An API that stays away for longer than this is given up; the run goes on without us.
_PATIENCE_S = 1800.0

#: So many looks in a row without an answer are told.
_WORTH_A_WORD = 2

#: The screen is brought up to date so often.
_TICK_S = 0.2


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        state: Kubeflow's word for it.
        cause: Why it did not succeed, on one line; "" when it did.
        exit_code: 0 when it succeeded, else the failing step's.
        summary: Numbers that the merging step told; empty when they could not be read.
        pod_lost: Whether it failed because a step's pod was ended from outside; a run that goes on with it may succeed.
    """

    state: str
    cause: str
    exit_code: int
    summary: Mapping[str, Any]
    pod_lost: bool = False


class Follower:
    """Shows one run.

    Args:
        connection: The server.
        run: The run's id.
        view: Where progress is shown.
    """

    def __init__(self, connection: Connection, run: str, view: RunView) -> None:
        self._connection, self._run, self._view = connection, run, view
        self._logs = Logs(connection, run)
        self._steps: list[Step] = []
        self._told: set[str] = set()
        self._began: set[str] = set()
        self._shown = ""
        self._causes: dict[str, tuple[str, int]] = {}
        self._summary: dict[str, Any] = {}
        self._away_since: float | None = None
        self._missed = 0
        self._said_unreadable = False

    def to_the_end(self) -> Ending:
        """Follow until the run has ended.

        Raises:
            RemoteError: the API refused, or stayed away too long.
            SettingsError: there is no such run.
        """
        poll_s = _FIRST_POLL_S
        while True:
            began = time.monotonic()
            run = self._look()
            if run is not None:
                self._show(run)
                if run.get("state") in _ENDED:
                    return self._ending(run)
            took = time.monotonic() - began if run is not None else 0.0
            self._wait(min(_LONGEST_POLL_S, max(poll_s, 10 * took)))
            poll_s = min(_POLL_S, 1.25 * poll_s)

    def _look(self) -> dict[str, Any] | None:
        """The run as it is, or None while the API is away."""
        try:
            run = get_run(self._connection, self._run, patient=False)
            self._steps = self._steps or steps_of(spec_of(self._connection, run) or {"root": {}})
        except RemoteError as error:
            now = time.monotonic()
            self._away_since = self._away_since or now
            if not error.transient or now - self._away_since > _PATIENCE_S:
                raise
            self._missed += 1
            if self._missed == _WORTH_A_WORD:
                self._view.note(f"  {str(error).rstrip('.')}. Trying again; the run goes on meanwhile")
            return None
        if self._missed >= _WORTH_A_WORD:
            self._view.note("  the API answers again")
        self._away_since, self._missed = None, 0
        return run

    def _show(self, run: Mapping[str, Any]) -> None:
        details = (run.get("run_details") or {}).get("task_details") or []
        states = step_states(self._steps, details)
        for state in states:
            if state.has_ended and not (state.state == "SKIPPED" and not state.started):
                self._tell(state)
        for event in self._logs.new_events(pods_of(self._steps, details)):
            self._see(event)
        if not self._logs.readable and not self._said_unreadable:
            self._said_unreadable = True
            self._view.note("  the steps' logs cannot be read here; showing the steps' states only")
        text = _under_way(states) or _waiting(run, started=bool(details))
        if text and text != self._shown:
            self._shown = text
            self._view.stage(text)

    def _tell(self, state: StepState) -> None:
        """Say once that a step ended."""
        if state.step.task in self._told:
            return
        self._told.add(state.step.task)
        total = sum(state.counts.values())
        many = f" ({total} shards)" if total > 1 and state.state == "SUCCEEDED" else ""
        if total > 1 and state.state != "SUCCEEDED":
            many = f" ({state.counts.get(state.state, 0)} of {total} shards)"
        word = {"SUCCEEDED": "done", "FAILED": "failed", "SKIPPED": "skipped", "CANCELED": "canceled"}[state.state]
        took = _took(state)
        self._view.note(f"  {word:<8}  {state.step.title}{many}{f'  {took}' if took else ''}")

    def _see(self, event: Mapping[str, Any]) -> None:
        match event.get("event"):
            case "step.started":
                self._began.add(str(event.get("step") or ""))
            case "step.failed":
                step = str(event.get("step") or "")
                self._causes.setdefault(step, (str(event.get("error") or ""), int(event.get("exit_code") or 1)))
            case "results.merged":
                self._summary = {key: value for key, value in event.items() if key != "event"}
            case "service.progress" if event.get("detail"):
                self._view.stage(f"Deploy: {event['detail']}")
            case "service.waiting" if event.get("message"):
                self._view.note(f"  {event['message']}")
            case _:
                _see_rows(self._view, event)

    def _ending(self, run: Mapping[str, Any]) -> Ending:
        state = str(run.get("state"))
        details = (run.get("run_details") or {}).get("task_details") or []
        for event in self._last_words(pods_of(self._steps, details)):
            self._see(event)
        if state == "SUCCEEDED":
            return Ending(state, "", 0, self._summary)
        if state in ("CANCELED", "SKIPPED"):
            return Ending(state, f"the run was {'terminated' if state == 'CANCELED' else 'skipped'}", 1, self._summary)
        failed = self._decisive(step_states(self._steps, details))
        cause, exit_code = self._cause(run, failed)
        return Ending(state, cause, exit_code, self._summary, pod_lost=any(map(self._lost_its_pod, failed)))

    def _last_words(self, pods: Sequence[Pod]) -> Iterator[dict[str, Any]]:
        """Events that were not read yet, of the pods that matter at the end: those that failed, and no shards."""
        many = Counter(pod.step.task for pod in pods)
        for _ in range(2):
            yield from self._logs.new_events([pod for pod in pods if pod.state == "FAILED"])
            yield from self._logs.new_events([pod for pod in pods if many[pod.step.task] == 1])

    def _decisive(self, states: Sequence[StepState]) -> list[StepState]:
        """The failed steps that the run failed of: not the shards, when a later step had its own reason."""
        failed = [state for state in states if state.state == "FAILED" or state.counts.get("FAILED")]
        if decisive := [state for state in failed if state.step.task != _SHARD]:
            self._causes.pop(_event_name(_SHARD), None)
            return decisive
        return failed

    def _lost_its_pod(self, state: StepState) -> bool:
        """Whether a failed step's pod had begun and went without a reason of its own."""
        step = _event_name(state.step.task)
        _, exit_code = self._causes.get(step, ("", _TOLD_TO_END))
        return step in self._began and exit_code == _TOLD_TO_END

    def _cause(self, run: Mapping[str, Any], failed: Sequence[StepState]) -> tuple[str, int]:
        """Why it failed: the failed step's own words, else Kubeflow's."""
        said = " ".join(str((run.get("error") or {}).get("message") or "").split())
        for state in failed:
            if self._lost_its_pod(state):
                why = f" ({state.error or said})" if state.error or said else ""
                return f"{state.step.title} lost its pod{why}: evicted, drained, or out of memory", 1
            if found := self._causes.get(_event_name(state.step.task)):
                return f"{state.step.title}: {found[0]}", found[1]
        for error, exit_code in self._causes.values():
            return error, exit_code
        if failed:
            error = failed[0].error or said or "it did not say why, or its log cannot be read from here"
            return f"{failed[0].step.title} failed: {error}", 1
        return said or "Kubeflow does not say why", 1

    def _wait(self, pause_s: float) -> None:
        until = time.monotonic() + pause_s * random.uniform(0.9, 1.1)  # noqa: S311  (followers shall not march in step)
        while (left := until - time.monotonic()) > 0:
            self._view.tick()
            time.sleep(min(_TICK_S, left))


def give_up_hint(connection: Connection, run: str) -> str:
    """How to follow a run again, and how to end it."""
    flags = connection.flags()
    return (
        f"The run goes on.\n"
        f"  follow it again:  python -m pipelines.run {flags} --follow {run}\n"
        f"  end it:           python -m pipelines.run {flags} --terminate {run}"
    )


def is_lost(error: RemoteError) -> bool:
    """Whether an error while following says nothing about the run itself."""
    return isinstance(error, AccessError) or error.transient


def resume_hint(connection: Connection, run: str) -> str:
    """How to go on with what a run that failed left undone."""
    return f"Go on with what is missing: python -m pipelines.run {connection.flags()} --resume {run}"


def _event_name(task: str) -> str:
    """A step's name in its events."""
    return task.replace("-", "_")


def _see_rows(view: RunView, event: Mapping[str, Any]) -> None:
    """Hand on what the view knows; an event of another version may lack what it expects."""
    try:
        view.see(event)
    except (KeyError, TypeError, ValueError):
        return


def _under_way(states: Sequence[StepState]) -> str:
    parts = []
    for state in states:
        if state.state in ("RUNNING", "PENDING", "CANCELING", "PAUSED"):
            total, ended = sum(state.counts.values()), sum(state.counts.get(word, 0) for word in _ENDED)
            shards = f", {ended} of {total} shards ended" if total > 1 else ""
            word = {"RUNNING": "running", "PENDING": "waiting for its pod"}.get(state.state, state.state.lower())
            parts.append(f"{state.step.title}: {word}{shards}")
    return " · ".join(parts)


def _waiting(run: Mapping[str, Any], *, started: bool) -> str:
    if run.get("state") == "CANCELING":
        return "Ending the run"
    return "" if started else "Waiting for Kubeflow to start the run"


def _took(state: StepState) -> str:
    try:
        began, ended = (dt.datetime.fromisoformat(text) for text in (state.started, state.ended))
    except ValueError:
        return ""
    return fmt.duration((ended - began).total_seconds()) if ended > began else ""
