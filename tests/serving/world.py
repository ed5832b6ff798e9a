"""What tests of serving put into a cluster."""

import base64
import datetime as dt
from typing import Any

from clients.serving.cluster import Cluster
from clients.serving.deploy import deploy
from clients.serving.deployed import Deployed
from clients.serving.spec import ServingSpec
from tests.servers.kubernetes import KubernetesServer

RUN = "3f2a9c1b-7d4e-4a5f-9b8c-0123456789ab"
OTHER_RUN = "0a1b2c3d-0000-4a5f-9b8c-0123456789ab"


def secret(token: str = "hf_realtoken", name: str = "hf-secret") -> dict[str, Any]:
    data = {"HF_TOKEN": base64.b64encode(token.encode()).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "ml"}, "data": data}


def ready_to_deploy(server: KubernetesServer) -> None:
    server.put(secret())


def deployed(cluster: Cluster, spec: ServingSpec | None = None, *, run: str = RUN, **choices: Any) -> Deployed:
    settings: dict[str, Any] = {"after_run": "delete", "lease_s": 3600.0, **choices}
    return deploy(cluster, spec or ServingSpec(), run=run, **settings)


def workflow(run: str, phase: str = "Running") -> dict[str, Any]:
    metadata = {"name": f"batch-{run[:8]}", "namespace": "ml", "labels": {"pipeline/runid": run}}
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": metadata,
        "spec": {},
        "status": {"phase": phase},
    }


def run_pod(
    run: str, phase: str = "Running", *, ended_s_ago: float | None = None, name: str = "step"
) -> dict[str, Any]:
    """A pod of a pipeline run."""
    status: dict[str, Any] = {"phase": phase}
    if ended_s_ago is not None:
        moment = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=ended_s_ago)
        ended = {"terminated": {"exitCode": 0, "finishedAt": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}}
        status["containerStatuses"] = [{"name": "main", "state": ended}]
    metadata = {"name": f"{name}-{run[:8]}", "namespace": "ml", "labels": {"pipeline/runid": run}}
    spec = {"containers": [{"name": "main", "image": "python:3.11.14-slim-bookworm"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}
