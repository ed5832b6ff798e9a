"""The object that Argo keeps of a run, at its end: what Kubeflow submits, and a node for each task, as far as large.

By the sources of Kubeflow's compiler (argocompiler) and of Argo: the driver of a step is a pod whose node holds what it
was given (component, task, container) and the patch of the pod that it returned, which holds the container again; the
step is a DAG with that patch, and within it the pod with that patch, and where it may be tried again one node more. The
nodes stand under ids with a hash in them, so in no order, and are compressed when the object would be too large.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

#: Beyond it Argo's controller ends the run (`DefaultMaxWorkflowSize`).
MOST_BYTES = 1 << 20

#: Linux takes no more in one variable of a process.
MOST_BYTES_OF_VARIABLE = 128 << 10

#: How far deflate looks back for text that it had before.
WINDOW_BYTES = 32 << 10

#: Templates and whatever else Kubeflow's compiler writes around what was submitted.
_AROUND_BYTES = 25_000

#: What a pod's template is given of how often it may be tried again.
_TRIES = ("retry-max-count", "retry-backoff-duration", "retry-backoff-factor", "retry-backoff-max-duration")

_NAME, _ID = "batch-inference-x7k2p", "0" * 36

Parameters = dict[str, str]


class Workflow:
    """A run of a compiled pipeline that succeeded.

    Args:
        path: The compiled pipeline.
        pods: How often each loop ran.
        given: Parameters of the run, which every step is supposed to get that has one of the name.
    """

    def __init__(self, path: Path, *, pods: int, given: Mapping[str, str]) -> None:
        self._documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        self._spec = self._documents[0]
        self._config = self._documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self._pods, self._given = pods, given
        self._nodes: dict[str, dict[str, Any]] = {}
        told = {"component": json.dumps(self._spec["root"]), "runtime-config": json.dumps({"parameterValues": given})}
        self._pod(f"{_NAME}.root-driver", "system-dag-driver", told, {"execution-id": "1", "condition": "true"})
        self._group(f"{_NAME}.root", "DAG", {"parent-dag-id": "1"})
        self._dag(f"{_NAME}.root", self._spec["root"]["dag"])

    def bytes(self) -> int:
        """Size of the object."""
        nodes = json.dumps(dict(sorted(self._nodes.items())), separators=(",", ":"))
        packed = base64.b64encode(gzip.compress(nodes.encode(), 6))
        submitted = [json.dumps(json.dumps(document)) for document in (*self._documents, dict(self._given))]
        return len(packed) + sum(map(len, submitted)) + _AROUND_BYTES

    def distances(self) -> Iterator[tuple[str, int]]:
        """Each step that carries code, and the bytes from it to the second copy of it in the same node."""
        for node in self._nodes.values():
            if node["templateName"] != "system-container-driver":
                continue
            text = json.dumps(node)
            before, found, after = text.partition("_BROUGHT = ")
            payload = after.split('"', 2)[1].strip("\\")
            if found and payload:
                yield node["displayName"], text.index(payload, len(before) + len(payload)) - text.index(payload)

    def longest_variable(self) -> int:
        """Bytes of the template that Argo puts into a pod's environment: what its node was given, and that again."""
        pods = [node for node in self._nodes.values() if node["type"] == "Pod"]
        return max(2 * len(json.dumps(json.dumps(pod["inputs"]))) for pod in pods)

    def _dag(self, name: str, dag: Mapping[str, Any]) -> None:
        for key, task in dag["tasks"].items():
            component = self._spec["components"][task["componentRef"]["name"]]
            if "parameterIterator" in task:
                self._group(f"{name}.{key}", "DAG", {"parent-dag-id": "1"})
                self._driver(f"{name}.{key}.iteration", component, task)
                self._group(f"{name}.{key}.iterations", "TaskGroup", {})
                for number in range(self._pods):
                    one = f"{name}.{key}.iterations({number}:{number})"
                    self._group(one, "DAG", {"parent-dag-id": "1", "iteration-index": str(number)})
                    self._nested(f"{one}.iteration-item", component, task)
            elif "dag" in component:
                self._nested(f"{name}.{key}", component, task)
            else:
                self._step(f"{name}.{key}", component, task)

    def _nested(self, name: str, component: Mapping[str, Any], task: Mapping[str, Any]) -> None:
        self._driver(name, component, task)
        self._group(name, "DAG", {"parent-dag-id": "1", "condition": "true"})
        self._dag(name, component["dag"])

    def _driver(self, name: str, component: Mapping[str, Any], task: Mapping[str, Any]) -> None:
        told = {"component": json.dumps(component), "task": json.dumps(task), "parent-dag-id": "1"}
        self._pod(f"{name}-driver", "system-dag-driver", told, {"execution-id": "1", "condition": "true"})

    def _step(self, name: str, component: Mapping[str, Any], task: Mapping[str, Any]) -> None:
        label = component["executorLabel"]
        container = self._spec["deploymentSpec"]["executors"][label]["container"]
        told = {"component": json.dumps(component), "task": json.dumps(task), "container": json.dumps(container)}
        told |= {"parent-dag-id": "1", "kubernetes-config": json.dumps(self._config.get(label, {}))}
        patch = {"pod-spec-patch": self._patch(component, container), "cached-decision": "false"}
        self._pod(f"{name}-driver", "system-container-driver", told, patch)
        executor = patch | self._labels(label) | dict.fromkeys(_TRIES if "retryPolicy" in task else (), "3")
        self._group(name, "DAG", executor)
        if "retryPolicy" in task:
            self._group(f"{name}.executor", "Retry", executor)
        self._pod(f"{name}.executor(0)", "system-container-impl", executor, {})

    def _labels(self, label: str) -> dict[str, str]:
        """The labels and annotations of a pod, as its template is given them: each key and each value by itself."""
        found: dict[str, str] = {}
        for kind, pairs in self._config.get(label, {}).get("podMetadata", {}).items():
            for number, pair in enumerate(pairs.items(), 1):
                for part, text in zip(("key", "val"), pair, strict=True):
                    found[f"pod-metadata-{kind.removesuffix('s')}-{part}-{number}"] = text
        return found

    def _patch(self, component: Mapping[str, Any], container: Mapping[str, Any]) -> str:
        inputs, outputs = component.get("inputDefinitions", {}), component.get("outputDefinitions", {})
        values = {name: self._value(name) for name in inputs.get("parameters", {})}
        artifacts = [*inputs.get("artifacts", {}), *outputs.get("artifacts", {})]
        places = {name: f"minio://mlpipeline/v2/artifacts/batch-inference/{_ID}/{name}/{_ID}" for name in artifacts}
        told = json.dumps({"inputs": {"parameterValues": values, "artifacts": places}, "outputs": outputs})
        launcher = ["/kfp-launcher/launch", "--run_id", _ID, "--executor_input", told]
        launcher += ["--component_spec", json.dumps(component), "--mlmd_server_address", "metadata-grpc-service", "--"]
        main = {**container, "name": "main", "command": [*launcher, *container["command"]]}
        return json.dumps({"containers": [main], "volumes": [{"secret": {"secretName": "storage-credentials"}}] * 3})

    def _value(self, name: str) -> str:
        return self._given.get(name.removeprefix("pipelinechannel--"), "a value of usual length, forty of them")

    def _group(self, name: str, kind: str, told: Parameters) -> None:
        self._node(name, kind, kind, told, {"children": [f"{_NAME}-{number}" for number in range(2)]})

    def _pod(self, name: str, template: str, told: Parameters, returned: Parameters) -> None:
        log = {"name": "main-logs", "s3": {"key": f"private-artifacts/{_NAME}/2026/11/25/{self._hash(name)}/main.log"}}
        listed = [{"name": key, "value": value} for key, value in returned.items()]
        outputs = {"parameters": listed, "artifacts": [log], "exitCode": "0"}
        self._node(name, "Pod", template, told, {"outputs": outputs, "hostNodeName": "node-7"})

    def _node(self, name: str, kind: str, template: str, told: Parameters, more: Mapping[str, Any]) -> None:
        key = f"{_NAME}-{self._hash(name)}"
        minute = f"2026-11-25T12:{self._hash(name) % 60:02}:{self._hash(name) % 59:02}Z"
        self._nodes[key] = {
            "id": key,
            "name": name,
            "displayName": name.rpartition(".")[2],
            "type": kind,
            "templateName": template,
            "templateScope": f"local/{_NAME}",
            "phase": "Succeeded",
            "boundaryID": f"{_NAME}-{self._hash(name.rpartition('.')[0])}",
            "startedAt": minute,
            "finishedAt": minute,
            "progress": "1/1",
            "resourcesDuration": {"cpu": self._hash(name) % 97, "memory": self._hash(name) % 9973},
            "inputs": {"parameters": [{"name": key, "value": value} for key, value in told.items()]},
            **more,
        }

    @staticmethod
    def _hash(name: str) -> int:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
