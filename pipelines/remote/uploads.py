"""A compiled pipeline as a version of one pipeline on the server: the same content is uploaded once."""

from typing import Any

from pipelines.remote.api import RemoteError
from pipelines.remote.connection import Connection
from pipelines.remote.parameters import Package

_PIPELINES = "/apis/v2beta1/pipelines"


def uploaded(connection: Connection, package: Package) -> dict[str, str]:
    """The ids of a pipeline and of the version with the package's content, uploaded if they are not there.

    Names are such as Kubernetes takes them, since newer servers can keep pipelines there.

    Args:
        connection: The server.
        package: The compiled pipeline.

    Raises:
        RemoteError: the server refused.
    """
    pipeline = _pipeline(connection, package)
    name = version_name(package)
    if (found := _version(connection, pipeline, name)) is None:
        query = {"name": name, "pipelineid": pipeline, "description": f"Content {package.digest}"}
        try:
            made = connection.api.upload(
                f"{_PIPELINES}/upload_version", query, name=f"{package.name}.yaml", data=package.data
            )
            found = str(made["pipeline_version_id"])
        except RemoteError as error:
            # Somebody else uploaded the same content just now, or the answer to this upload got lost.
            if error.status != 409 and not error.transient:
                raise
            found = _version(connection, pipeline, name)
            if found is None:
                raise
    return {"pipeline_id": pipeline, "pipeline_version_id": found}


def version_name(package: Package) -> str:
    """The name of the version with the package's content."""
    return f"{package.title}-{package.digest}"


def _pipeline(connection: Connection, package: Package) -> str:
    name, shown = f"kubeflow-llm-inference-{package.title}", f"kubeflow-llm-inference {package.name}"
    if (found := _named(connection, _PIPELINES, "pipelines", name, shown, namespace=connection.namespace)) is None:
        body = {
            "name": name,
            "display_name": shown,
            "description": str(package.documents[0]["pipelineInfo"].get("description", "")),
        }
        if connection.namespace:
            body["namespace"] = connection.namespace
        try:
            found = connection.api.post(_PIPELINES, body)
        except RemoteError as error:
            if error.status != 409 and not error.transient:
                raise
            found = _named(connection, _PIPELINES, "pipelines", name, shown, namespace=connection.namespace)
            if found is None:
                raise
    return str(found["pipeline_id"])


def _version(connection: Connection, pipeline: str, name: str) -> str | None:
    found = _named(connection, f"{_PIPELINES}/{pipeline}/versions", "pipeline_versions", name, name)
    return None if found is None else str(found["pipeline_version_id"])


def _named(connection: Connection, path: str, key: str, name: str, shown: str, **query: Any) -> dict[str, Any] | None:
    """An object by its name, which older servers keep as the name that is shown."""
    for found in connection.listed(path, key, sort_by="created_at desc", **query):
        if found.get("name") == name or found.get("display_name") in (name, shown):
            return found
    return None
