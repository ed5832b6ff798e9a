"""Schedules: Kubeflow's recurring runs, by name, which Kubeflow itself lets repeat and never changes.

A schedule is changed by making another recurring run and deleting the old one. In between there are two of a name, and
at most one of them is enabled: the new one is made disabled, the old one is disabled, the new one is enabled, the old
one is deleted. Each carries in its description what it was made from; so whoever comes after a crash can go on.
"""

import dataclasses
import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from clients.errors import SettingsError
from pipelines.cron import Cron, from_kubeflow
from pipelines.remote.api import RemoteError
from pipelines.remote.connection import Connection
from pipelines.remote.parameters import whole

_RECURRING = "/apis/v2beta1/recurringruns"

#: Begins the machine's part of a description.
_MARK = "[kubeflow-llm-inference "


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """A schedule as it is to be.

    Attributes:
        name: By which it is known.
        cron: When it fires.
        timezone: Zone of the cluster's scheduler, by which times are shown.
        version: Ids of the pipeline and its version.
        arguments: The pipeline's.
        experiment: Id of the experiment of its runs.
        service_account: Account of the pods; "" for the namespace's.
        pipeline_root: Where artifacts go; "" for the namespace's.
    """

    name: str
    cron: Cron
    timezone: str
    version: Mapping[str, str]
    arguments: Mapping[str, Any]
    experiment: str
    service_account: str = ""
    pipeline_root: str = ""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A recurring run that this command made.

    Attributes:
        body: As the server gives it.
        note: The machine's part of its description.
    """

    body: Mapping[str, Any]
    note: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The recurring run's id."""
        return str(self.body["recurring_run_id"])

    @property
    def name(self) -> str:
        """By which people know it."""
        return str(self.body["display_name"])

    @property
    def enabled(self) -> bool:
        """Whether it fires."""
        return self.body.get("mode") == "ENABLE"

    @property
    def cron(self) -> Cron | None:
        """When it fires, in the words it was asked in; None when somebody else changed it to what is not read here."""
        sent = str(((self.body.get("trigger") or {}).get("cron_schedule") or {}).get("cron") or "")
        asked = from_kubeflow(f"0 {self.note.get('cron')}")
        return asked if asked is not None and asked.for_kubeflow() == sent else from_kubeflow(sent)

    @property
    def timezone(self) -> str:
        """Zone by which times are shown."""
        return str(self.note.get("timezone") or "UTC")

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The pipeline's arguments."""
        return whole((self.body.get("runtime_config") or {}).get("parameters") or {})

    def is_as(self, wanted: Wanted) -> bool:
        """Whether it already is what is wanted."""
        same_times = self.cron is not None and self.cron.for_kubeflow() == wanted.cron.for_kubeflow()
        return same_times and self.note.get("content") == _content(wanted)


def schedules(connection: Connection) -> dict[str, list[Schedule]]:
    """Every schedule of this command by name, the youngest recurring run first; more than one after a crash.

    Raises:
        RemoteError: the server refused.
    """
    found: dict[str, list[Schedule]] = {}
    for body in _all(connection):
        if (note := _note(body)) is not None:
            found.setdefault(str(body["display_name"]), []).append(Schedule(body, note))
    for group in found.values():
        group.sort(key=lambda each: str(each.body.get("created_at") or ""), reverse=True)
    return dict(sorted(found.items()))


def schedule(connection: Connection, name: str) -> Schedule:
    """One schedule; an update that was interrupted is finished first.

    Raises:
        SettingsError: there is none of that name.
        RemoteError: the server refused.
    """
    known = schedules(connection)
    if name not in known:
        mend = f"There are: {', '.join(known)}" if known else "There is none yet."
        raise SettingsError(f"there is no schedule {name!r}. {mend}")
    return _settled(connection, known[name])


def put(connection: Connection, wanted: Wanted, *, paused: bool = False) -> tuple[Schedule, str]:
    """Make a schedule what is wanted, whatever is there; returns it and what was done: created, updated, unchanged.

    A schedule that was paused stays so. At no time are two of the name enabled, or none there once one was.

    Args:
        connection: The server.
        wanted: What it is to be.
        paused: Whether it is not to fire for now.

    Raises:
        SettingsError: somebody else made a recurring run of that name.
        RemoteError: the server refused; what was there before is as it was, unless the message says more.
    """
    group = schedules(connection).get(wanted.name, [])
    if not group and any(body.get("display_name") == wanted.name for body in _all(connection)):
        raise SettingsError(
            f"there is a recurring run {wanted.name!r} that this command did not make. Give another --name, or delete "
            "that one in Kubeflow."
        )
    enable = not paused and (not group or _is_to_fire(group))
    if group and (same := next((each for each in group if each.is_as(wanted)), None)) is not None:
        was_right = len(group) == 1 and same.enabled == enable
        return _only(connection, same, group, enable=enable), "unchanged" if was_right else "updated"
    made = _create(connection, wanted, enable=enable, replaces=[each.id for each in group])
    return _only(connection, made, [made, *group], enable=enable), "updated" if group else "created"


def set_enabled(connection: Connection, one: Schedule, *, enabled: bool) -> None:
    """Pause a schedule or let it fire again.

    Args:
        connection: To Kubeflow.
        one: The schedule.
        enabled: Whether it is to fire.

    Raises:
        RemoteError: the server refused.
    """
    connection.api.act(f"{_RECURRING}/{one.id}:{'enable' if enabled else 'disable'}")


def delete(connection: Connection, name: str) -> None:
    """Delete a schedule; its runs stay.

    Raises:
        SettingsError: there is none of that name.
        RemoteError: the server refused.
    """
    known = schedules(connection).get(name)
    if known is None:
        schedule(connection, name)  # says which there are
    for each in known or ():
        connection.api.delete(f"{_RECURRING}/{each.id}")


def runs_of(connection: Connection, one: Schedule, *, at_most: int) -> list[dict[str, Any]]:
    """The youngest runs that a schedule made.

    Args:
        connection: To Kubeflow.
        one: The schedule.
        at_most: Runs; only the youngest 100 of its experiment are looked at.

    Raises:
        RemoteError: the server refused.
    """
    query = {"experiment_id": one.body["experiment_id"], "sort_by": "created_at desc", "page_size": 100}
    page = connection.api.get("/apis/v2beta1/runs", query)
    return [run for run in page.get("runs") or () if run.get("recurring_run_id") == one.id][:at_most]


def _all(connection: Connection) -> list[dict[str, Any]]:
    return connection.listed(_RECURRING, "recurringRuns", namespace=connection.namespace)


def _is_to_fire(group: Sequence[Schedule]) -> bool:
    """Whether a schedule fires; one whose update was interrupted, whether it did before."""
    newest = group[0]
    if len(group) > 1 and set(newest.note.get("replaces") or ()) & {each.id for each in group}:
        return bool(newest.note.get("enable"))
    return any(each.enabled for each in group)


def _settled(connection: Connection, group: Sequence[Schedule]) -> Schedule:
    return group[0] if len(group) == 1 else _only(connection, group[0], group, enable=_is_to_fire(group))


def _only(connection: Connection, chosen: Schedule, group: Sequence[Schedule], *, enable: bool) -> Schedule:
    """Leave one of a group, enabled or not; the others are disabled first and deleted last."""
    others = [each for each in group if each.id != chosen.id]
    disabled: list[Schedule] = []
    try:
        for each in others:
            if each.enabled:
                set_enabled(connection, each, enabled=False)
                disabled.append(each)
        if chosen.enabled != enable:
            set_enabled(connection, chosen, enabled=enable)
    except RemoteError as error:
        raise _rolled_back(connection, error, chosen, disabled) from error
    for each in others:
        connection.api.delete(f"{_RECURRING}/{each.id}")
    return dataclasses.replace(chosen, body={**chosen.body, "mode": "ENABLE" if enable else "DISABLE"})


def _rolled_back(
    connection: Connection, error: RemoteError, chosen: Schedule, disabled: Sequence[Schedule]
) -> RemoteError:
    """Let the old one fire again when the new one could not be enabled."""
    again = "create it again with the same command to finish"
    try:
        body = connection.api.get(f"{_RECURRING}/{chosen.id}")
        if body.get("mode") != "ENABLE":
            for each in disabled:
                set_enabled(connection, each, enabled=True)
    except RemoteError:
        return RemoteError(f"{error}. The schedule {chosen.name!r} may be paused now; {again}", status=error.status)
    return RemoteError(f"{error}. The schedule {chosen.name!r} is as it was; {again}", status=error.status)


def _create(connection: Connection, wanted: Wanted, *, enable: bool, replaces: Sequence[str]) -> Schedule:
    """Make the recurring run, disabled where it replaces another; a request whose answer got lost is not repeated."""
    note = {
        "mark": str(uuid.uuid4()),
        "cron": wanted.cron.text,
        "timezone": wanted.timezone,
        "content": _content(wanted),
        "enable": enable,
        "replaces": list(replaces),
    }
    config: dict[str, Any] = {"parameters": dict(wanted.arguments)}
    if wanted.pipeline_root:
        config["pipeline_root"] = wanted.pipeline_root
    body: dict[str, Any] = {
        "display_name": wanted.name,
        "description": f"{wanted.cron.text} ({wanted.timezone}), made by python -m pipelines.schedule "
        f"{_MARK}{json.dumps(note)}]",
        "experiment_id": wanted.experiment,
        "pipeline_version_reference": dict(wanted.version),
        "runtime_config": config,
        "trigger": {"cron_schedule": {"cron": wanted.cron.for_kubeflow()}},
        "max_concurrency": 1,
        "no_catchup": True,
        "mode": "ENABLE" if enable and not replaces else "DISABLE",
    }
    if wanted.service_account:
        body["service_account"] = wanted.service_account
    for pause in (1.0, 3.0, 6.0, None):
        try:
            return Schedule(connection.api.post(_RECURRING, body), note)
        except RemoteError as error:
            if not error.transient or pause is None:
                raise
        time.sleep(pause)
        for found in schedules(connection).get(wanted.name, ()):
            if found.note.get("mark") == note["mark"]:
                return found
    raise AssertionError("the last attempt returns or raises")


def _note(body: Mapping[str, Any]) -> dict[str, Any] | None:
    _, mark, rest = str(body.get("description") or "").rpartition(_MARK)
    if not mark:
        return None
    try:
        found = json.loads(rest.rstrip().removesuffix("]"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _content(wanted: Wanted) -> dict[str, Any]:
    """All that makes a schedule another one, as it survives the server; arguments may be long."""
    arguments = json.dumps(wanted.arguments, sort_keys=True).encode()
    return {
        "version": wanted.version["pipeline_version_id"],
        "arguments": hashlib.sha256(arguments).hexdigest(),
        "experiment": wanted.experiment,
        "account": wanted.service_account,
        "root": wanted.pipeline_root,
        "timezone": wanted.timezone,
    }
