"""Create a run, once, whatever happens to the answer; and find out how an earlier one was asked."""

import datetime as dt
import time
import uuid
from collections.abc import Mapping
from typing import Any

from clients.errors import SettingsError
from pipelines.remote.api import RemoteError
from pipelines.remote.connection import Connection
from pipelines.remote.parameters import Package, packages, title_of

_RUNS = "/apis/v2beta1/runs"

#: Pauses, in seconds, before a run that was not created is created again.
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)


def create_run(connection: Connection, body: Mapping[str, Any]) -> str:
    """Create a run and return its id.

    A request whose answer got lost may have created it, so each carries a mark that is looked for before it is sent
    again.

    Args:
        connection: The server.
        body: The run as the API takes it, without a description.

    Raises:
        RemoteError: the server refused, or stayed away for half a minute.
    """
    mark = f"python -m pipelines.run {uuid.uuid4()}"
    for pause in (*_PAUSES_S, None):
        try:
            return str(connection.api.post(_RUNS, {**body, "description": mark})["run_id"])
        except RemoteError as error:
            if not error.transient or pause is None:
                raise
        time.sleep(pause)
        if (found := _marked(connection, mark, str(body["experiment_id"]))) is not None:
            return found
    raise AssertionError("the last attempt returns or raises")


def linked(arguments: Mapping[str, Any], connection: Connection) -> dict[str, Any]:
    """A pipeline's arguments with the address of the run's page, to which its traces link, where there are pages.

    Args:
        arguments: The pipeline's.
        connection: The server.
    """
    if not connection.has_pages():
        return dict(arguments)
    return {**arguments, "options": {"run_url": connection.run_url("{run}"), **(arguments.get("options") or {})}}


def run_body(
    *,
    experiment: str,
    name: str,
    arguments: Mapping[str, Any],
    package: Package | None = None,
    version: Mapping[str, Any] | None = None,
    service_account: str = "",
    pipeline_root: str = "",
) -> dict[str, Any]:
    """A run as the API takes it. Caching stays as it was compiled: an override here reaches outer steps only.

    Args:
        experiment: Its id.
        name: What people see.
        arguments: The pipeline's parameters.
        package: The pipeline, or None for a version that the server has.
        version: Ids of the pipeline and its version, or None.
        service_account: Account of the pods; "" for the namespace's.
        pipeline_root: Where artifacts go; "" for the namespace's.
    """
    config: dict[str, Any] = {"parameters": dict(arguments)}
    if pipeline_root:
        config["pipeline_root"] = pipeline_root
    body: dict[str, Any] = {"experiment_id": experiment, "display_name": name, "runtime_config": config}
    if package is not None:
        body["pipeline_spec"] = package.spec
    if version is not None:
        body["pipeline_version_reference"] = dict(version)
    if service_account:
        body["service_account"] = service_account
    return body


def get_run(connection: Connection, run: str, *, patient: bool = True) -> dict[str, Any]:
    """Read a run.

    Args:
        connection: The server.
        run: The run's id.
        patient: Whether to try again a few times after a passing fault.

    Raises:
        SettingsError: there is none of that id.
        RemoteError: the server refused or did not answer.
    """
    try:
        return connection.api.get(f"{_RUNS}/{run}", patient=patient)
    except RemoteError as error:
        if error.status == 404 or (error.status == 400 and "not found" in str(error).lower()):
            raise SettingsError(
                f"there is no run {run}. Its id stands at the end of its page's address: /#/runs/details/ID"
            ) from error
        raise


def package_of(connection: Connection, run: Mapping[str, Any]) -> Package:
    """The pipeline of this checkout that an earlier run was a run of.

    Raises:
        SettingsError: it was none of ours.
    """
    title = title_of(spec_of(connection, run))
    if title not in packages():
        known = ", ".join(packages())
        raise SettingsError(f"run {run['run_id']} is of the pipeline {title or 'without a name'}, not of {known}")
    return Package.named(packages()[title])


def spec_of(connection: Connection, run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pipeline that a run carries, or that the version it refers to carries; empty when there is none."""
    if spec := run.get("pipeline_spec"):
        return dict(spec)
    version = run.get("pipeline_version_reference") or {}
    if not version.get("pipeline_id") or not version.get("pipeline_version_id"):
        return {}
    path = f"/apis/v2beta1/pipelines/{version['pipeline_id']}/versions/{version['pipeline_version_id']}"
    return dict(connection.api.get(path).get("pipeline_spec") or {})


def stamp() -> str:
    """The time, for names of runs."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _marked(connection: Connection, mark: str, experiment: str) -> str | None:
    query = {"experiment_id": experiment, "sort_by": "created_at desc", "page_size": 50}
    try:
        page = connection.api.get(_RUNS, query)
    except RemoteError:
        return None
    return next((str(run["run_id"]) for run in page.get("runs") or () if run.get("description") == mark), None)
