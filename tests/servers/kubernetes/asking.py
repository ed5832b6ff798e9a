"""Plain requests to the stand-in, and a small service to send, for tests of the stand-in itself."""

import http.client
import json
from typing import Any

from tests.servers.kubernetes.api import KubernetesServer
from tests.servers.kubernetes.kinds import Obj

SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/ml/inferenceservices"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


def ask(
    server: KubernetesServer,
    method: str,
    path: str,
    body: Any = None,
    *,
    kind: str = "application/json",
    token: str = "",
) -> tuple[int, Any]:
    """One request on a connection of its own: the status, and the JSON or text of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    return answer.status, text if answer.headers.get("Content-Type") == "text/plain" else json.loads(text)


def apply(
    server: KubernetesServer, obj: Obj, *, by: str = "us", force: bool = False, more: str = ""
) -> tuple[int, Any]:
    """Server-side apply of an InferenceService."""
    path = f"{SERVICES}/{obj['metadata']['name']}?fieldManager={by}&force={str(force).lower()}{more}"
    return ask(server, "PATCH", path, obj, kind=APPLY)


def service(name: str = "qwen", **predictor: Any) -> Obj:
    """An InferenceService of two replicas."""
    box = {"name": "kserve-container", "image": "vllm:1", "env": [{"name": "A", "value": "1"}]}
    notes = {"serving.kserve.io/deploymentMode": "Standard", "serving.kserve.io/autoscalerClass": "none"}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": notes},
        "spec": {"predictor": {"minReplicas": 2, "containers": [box], **predictor}},
    }


def watch(server: KubernetesServer, query: str) -> list[Obj]:
    """All events of a watch on InferenceServices, until it ends."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", f"{SERVICES}?watch=true&{query}")
        return [json.loads(line) for line in connection.getresponse().read().splitlines()]
    finally:
        connection.close()
