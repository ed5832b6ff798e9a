"""What a strict API server would say of an object, found offline: by CRD schemas, and by our own rules for core kinds.

The CRDs are looked for in the folder that KLLM_CRDS names, else in shared/crds beside the project; they are too large
to be kept here. Covers unknown fields, types, enums, quantities, labels and duplicate keys, what KServe's webhook
refuses, and what a Deployment of the same pod would be refused for. CEL rules are not evaluated.
"""

import functools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from clients.serving.quantity import number

Object = dict[str, Any]

GPU = "nvidia.com/gpu"

_ROOT = Path(__file__).resolve().parents[2]

#: Keywords that mean in a CRD what they mean in JSON Schema.
_SAME = ("pattern", "enum", "required", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

#: Fields beside apiVersion, kind and metadata that core kinds have, and those of their spec that are used here.
_CORE = {
    "ClusterRole": ("rules", "aggregationRule"),
    "ClusterRoleBinding": ("roleRef", "subjects"),
    "ConfigMap": ("data", "binaryData", "immutable"),
    "CronJob": ("spec", "status"),
    "Deployment": ("spec", "status"),
    "Namespace": ("spec", "status"),
    "PersistentVolumeClaim": ("spec", "status"),
    "Role": ("rules",),
    "RoleBinding": ("roleRef", "subjects"),
    "Secret": ("data", "stringData", "type", "immutable"),
    "Service": ("spec", "status"),
    "ServiceAccount": ("secrets", "imagePullSecrets", "automountServiceAccountToken"),
}


def crd_folder() -> Path | None:
    """Where the CRDs are, or None when there are none on this machine."""
    named = os.environ.get("KLLM_CRDS", "")
    found = Path(named) if named else _ROOT.parent / "shared" / "crds"
    return found if any(found.glob("*.yaml")) else None


def problems(manifest: Object) -> list[str]:
    """What is wrong with an object, a line each, beginning with the path of the field; empty when it would be taken."""
    kind = str(manifest.get("kind", ""))
    found = list(_metadata_problems(manifest.get("metadata"), "metadata"))
    if kind in _CORE:
        return [*found, *_core_problems(kind, manifest)]
    schema = _schema_of(str(manifest.get("apiVersion", "")), kind)
    if schema is None:
        return [*found, f"{manifest.get('apiVersion')}/{kind}: no such kind is known"]
    found += _schema_problems(manifest, schema)
    if found:
        return found  # what follows reads fields as the schema promises them
    if kind == "InferenceService":
        return [*_kserve_problems(manifest), *problems(deployment_of(manifest))]
    return [line for pod in pod_specs(manifest) for line in pod_problems(pod)]


def _kserve_problems(service: Object) -> Iterator[str]:
    """What KServe's webhook refuses, or the cluster once the pods are made."""
    name, predictor = service["metadata"]["name"], service["spec"].get("predictor", {})
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 48:
        yield f"metadata.name: {name!r} is no name for KServe, or too long for its labels"
    if predictor.get("minReplicas", 1) > predictor.get("maxReplicas", 1 << 31):
        yield "spec.predictor: minReplicas is above maxReplicas"
    if "model" in predictor and predictor.get("containers"):
        yield "spec.predictor: either model or containers"
    mode = service["metadata"].get("annotations", {}).get("serving.kserve.io/deploymentMode")
    if mode != "Standard" and "deploymentStrategy" in predictor:
        yield "spec.predictor: deploymentStrategy is for the mode Standard only"


def deployment_of(service: Object) -> Object:
    """The Deployment that KServe makes of an InferenceService in Standard mode."""
    predictor = dict(service["spec"]["predictor"])
    name = f"{service['metadata']['name']}-predictor"
    own = {"app": f"isvc.{name}", "serving.kserve.io/inferenceservice": service["metadata"]["name"]}
    labels = {**service["metadata"].get("labels", {}), **predictor.pop("labels", {}), **own}
    annotations = predictor.pop("annotations", {})
    replicas, _ = predictor.pop("minReplicas", 1), predictor.pop("maxReplicas", None)
    strategy = predictor.pop("deploymentStrategy", {"type": "RollingUpdate"})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": own["app"]}},
            "strategy": strategy,
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": predictor},
        },
    }


def pod_specs(manifest: Object) -> Iterator[Object]:
    """Every pod specification within an object of a kind that makes pods."""
    spec = manifest.get("spec") or {}
    kind = manifest.get("kind")
    if kind == "InferenceService":
        yield deployment_of(manifest)["spec"]["template"]["spec"]
    elif kind == "RayCluster":
        for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])):
            yield group["template"]["spec"]
    elif kind == "LeaderWorkerSet":
        template = spec["leaderWorkerTemplate"]
        yield from (template[role]["spec"] for role in ("leaderTemplate", "workerTemplate") if role in template)
    elif kind == "Deployment":
        yield spec["template"]["spec"]
    elif kind == "CronJob":
        yield spec["jobTemplate"]["spec"]["template"]["spec"]


def pod_problems(pod: Object) -> list[str]:
    """What the CRDs let through and a Deployment with this pod would be refused for."""
    containers = pod.get("containers") or []
    if not containers:
        return ["containers: there is none"]
    found: list[str] = []
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in (*containers, *pod.get("initContainers", [])):
        found += _container_problems(container, volumes)
    strays = volumes - {mount["name"] for each in containers for mount in each.get("volumeMounts", [])}
    return [*found, *(f"volumes: {name} is mounted nowhere" for name in sorted(strays))]


def _container_problems(container: Object, volumes: set[str]) -> Iterator[str]:
    name = container.get("name", "?")
    if len(name) > 63 or not _NAME.fullmatch(name):
        yield f"{name}: cannot be the name of a container"
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"{name}: volumeMount {mount['name']} has no volume"
    ports = container.get("ports", [])
    yield from (f"{name}: port {port['containerPort']} is out of range" for port in ports if _no_port(port))
    yield from _doubles(f"{name}: port name", (port.get("name") for port in ports))
    yield from _doubles(f"{name}: env", (variable["name"] for variable in container.get("env", [])))
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        handler = container.get(probe) or {}
        asked = (handler.get("httpGet") or handler.get("tcpSocket") or {}).get("port")
        if asked is not None and asked not in [port["containerPort"] for port in ports]:
            yield f"{name}: {probe} asks port {asked}, which is none of the container's"
    yield from _resource_problems(name, container.get("resources") or {})


def _resource_problems(name: str, resources: Object) -> Iterator[str]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    if requests.get(GPU) != limits.get(GPU):
        yield f"{name}: {GPU} is requested {requests.get(GPU)} and limited to {limits.get(GPU)}"
    for resource in ("cpu", "memory"):
        if resource not in requests or resource not in limits:
            yield f"{name}: {resource} is without a request or a limit"
    for resource, wanted in requests.items():
        if resource in limits and number(wanted) > number(limits[resource]):
            yield f"{name}: more {resource} is requested than its limit"


def _no_port(port: Object) -> bool:
    return not 1 <= port["containerPort"] <= 65535


def _doubles(what: str, names: Iterable[Any]) -> Iterator[str]:
    counted = Counter(name for name in names if name is not None)
    yield from (f"{what} {name} stands there twice" for name, times in counted.items() if times > 1)


# Metadata, which CRDs leave to the server.


def _metadata_problems(metadata: Any, path: str) -> Iterator[str]:
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        yield f"{path}.name: required"
        return
    if len(metadata["name"]) > 253 or not _NAME.fullmatch(metadata["name"]):
        yield f"{path}.name: {metadata['name']!r} is no name"
    known = {"name", "namespace", "labels", "annotations", "ownerReferences", "finalizers", "uid", "resourceVersion"}
    yield from (f"{path}.{field}: unknown field" for field in sorted(set(metadata) - known - {"generation"}))
    yield from _label_problems(metadata, path)


def _label_problems(metadata: Object, path: str) -> Iterator[str]:
    for kind in ("labels", "annotations"):
        for key, value in (metadata.get(kind) or {}).items():
            if not isinstance(key, str) or not _LABEL_KEY.fullmatch(key):
                yield f"{path}.{kind}: {key!r} is no key"
            if not isinstance(value, str) or (kind == "labels" and not _LABEL_VALUE.fullmatch(value)):
                yield f"{path}.{kind}.{key}: {value!r} is no value"


# Custom kinds.


@functools.cache
def _schema_of(api_version: str, kind: str) -> Object | None:
    folder = crd_folder()
    group, _, version = api_version.rpartition("/")
    for path in sorted(folder.glob("*.yaml")) if folder else ():
        text = path.read_text(encoding="utf-8")
        if "minimal" in path.name or f"\n    kind: {kind}\n" not in text:
            continue
        crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
        if crd["spec"]["group"] != group:
            continue
        for served in crd["spec"]["versions"]:
            if served["name"] == version and served["served"]:
                found: Object = served["schema"]["openAPIV3Schema"]
                return found
    return None


def _schema_problems(value: Any, schema: Object) -> list[str]:
    strict = _strict(schema)
    strict["properties"]["metadata"] = {"type": "object"}
    bare = _without_nulls(value)
    validator = jsonschema.Draft202012Validator(strict)
    found = [f"{error.json_path.removeprefix('$.')}: {error.message[:200]}" for error in validator.iter_errors(bare)]
    return found + list(_walk(bare, schema, ""))


def _strict(schema: Object) -> Object:
    """A structural schema as JSON Schema that knows no other fields than those named."""
    if schema.get("x-kubernetes-int-or-string"):
        text = {"type": "string", **({"pattern": schema["pattern"]} if "pattern" in schema else {})}
        return {"anyOf": [{"type": "integer"}, text]}
    found: Object = {word: schema[word] for word in _SAME if word in schema}
    found |= {word: [_loose(each) for each in schema[word]] for word in ("allOf", "anyOf", "oneOf") if word in schema}
    if "type" in schema:
        found["type"] = [schema["type"], "null"] if schema.get("nullable") else schema["type"]
    if schema.get("format") == "int32":
        found.setdefault("maximum", 2**31 - 1)
    if schema.get("type") == "object":
        found["properties"] = {name: _strict(each) for name, each in schema.get("properties", {}).items()}
        found["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
        if isinstance(schema.get("additionalProperties"), dict):
            found["additionalProperties"] = _strict(schema["additionalProperties"])
    if "items" in schema:
        found["items"] = _strict(schema["items"])
    return found


def _loose(schema: Object) -> Object:
    """Of a branch of allOf and the like: only what it demands; fields are known from outside."""
    return {word: schema[word] for word in (*_SAME, "type") if word in schema}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _walk(value: Any, schema: Object, path: str) -> Iterator[str]:
    """What JSON Schema cannot say: keys of list-maps are unique, and metadata within is metadata."""
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        if schema.get("x-kubernetes-list-type") == "map":
            yield from _doubles(f"{path}: key", (_key(each, schema) for each in value))
        if schema.get("x-kubernetes-list-type") == "set":
            yield from _doubles(f"{path}: item", (str(each) for each in value))
        for place, each in enumerate(value):
            yield from _walk(each, schema["items"], f"{path}[{place}]")
    elif isinstance(value, dict):
        for name, each in value.items():
            inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(inner, dict):
                below = f"{path}.{name}".removeprefix(".")
                if name == "metadata" and path and isinstance(each, dict):
                    yield from _label_problems(each, below)
                yield from _walk(each, inner, below)


def _key(item: Any, schema: Object) -> tuple[str, ...] | None:
    if not isinstance(item, dict):
        return None
    inner = schema["items"].get("properties", {})
    return tuple(str(item.get(key, inner.get(key, {}).get("default"))) for key in schema["x-kubernetes-list-map-keys"])


# Core kinds.


def _core_problems(kind: str, manifest: Object) -> Iterator[str]:
    known = {"apiVersion", "kind", "metadata", *_CORE[kind]}
    yield from (f"{field}: unknown field" for field in sorted(set(manifest) - known))
    for pod in pod_specs(manifest):
        schema = _schema_of("ray.io/v1", "RayCluster")
        if schema is not None:  # its template holds a whole pod specification
            head = schema["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]
            yield from _schema_problems({"spec": pod}, head["template"])
        yield from pod_problems(pod)
    rules = {
        "CronJob": _cron_problems,
        "Deployment": _deployment_problems,
        "PersistentVolumeClaim": _claim_problems,
        "Secret": _secret_problems,
        "Service": _service_problems,
    }
    if kind in rules:
        yield from rules[kind](manifest)
    elif "Role" in kind:
        yield from _role_problems(manifest)


def _cron_problems(manifest: Object) -> Iterator[str]:
    spec = manifest["spec"]
    if len(spec.get("schedule", "").split()) != 5:
        yield f"spec.schedule: {spec.get('schedule')!r} is no schedule"
    if spec.get("concurrencyPolicy", "Allow") not in ("Allow", "Forbid", "Replace"):
        yield f"spec.concurrencyPolicy: {spec['concurrencyPolicy']!r} is unknown"
    if spec["jobTemplate"]["spec"]["template"]["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
        yield "spec.jobTemplate: restartPolicy must be Never or OnFailure"


def _deployment_problems(manifest: Object) -> Iterator[str]:
    spec = manifest["spec"]
    labels = spec["template"]["metadata"].get("labels", {})
    yield from _label_problems(spec["template"]["metadata"], "spec.template.metadata")
    if not spec["selector"]["matchLabels"].items() <= labels.items():
        yield "spec.selector: does not select the pods of the template"
    strategy = spec.get("strategy", {})
    if strategy.get("type") not in ("Recreate", "RollingUpdate"):
        yield f"spec.strategy.type: {strategy.get('type')!r} is unknown"
    if strategy.get("type") == "Recreate" and "rollingUpdate" in strategy:
        yield "spec.strategy: Recreate takes no rollingUpdate"


def _claim_problems(manifest: Object) -> Iterator[str]:
    spec = manifest["spec"]
    modes = {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"}
    if not spec.get("accessModes") or not set(spec["accessModes"]) <= modes:
        yield f"spec.accessModes: {spec.get('accessModes')!r}"
    if number(spec.get("resources", {}).get("requests", {}).get("storage", "")) <= 0:
        yield "spec.resources.requests.storage: required"


def _secret_problems(manifest: Object) -> Iterator[str]:
    for field in ("data", "stringData"):
        for key, value in (manifest.get(field) or {}).items():
            if not isinstance(value, str):
                yield f"{field}.{key}: {value!r} is no text"


def _service_problems(manifest: Object) -> Iterator[str]:
    name, spec = manifest["metadata"]["name"], manifest["spec"]
    if len(name) > 63 or "." in name or name[0].isdigit():
        yield f"metadata.name: {name!r} cannot be a Service's"
    if name == "vllm":
        yield "metadata.name: a Service named vllm breaks vLLM"
    yield from _label_problems({"labels": spec.get("selector", {})}, "spec.selector")
    ports = spec.get("ports", [])
    yield from _doubles("spec.ports: name", (port.get("name", "") for port in ports))
    yield from _doubles("spec.ports: port", ((port["port"], port.get("protocol", "TCP")) for port in ports))
    yield from (f"spec.ports: {port['port']} out of range" for port in ports if not 1 <= port["port"] <= 65535)


def _role_problems(manifest: Object) -> Iterator[str]:
    verbs = {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
    for rule in manifest.get("rules", []):
        yield from (f"rules: unknown field {field}" for field in set(rule) - {"apiGroups", "resources", "verbs"})
        yield from (f"rules: unknown verb {verb}" for verb in set(rule["verbs"]) - verbs)
    if "roleRef" in manifest and set(manifest["roleRef"]) != {"apiGroup", "kind", "name"}:
        yield "roleRef: apiGroup, kind and name"
    for subject in manifest.get("subjects", []):
        if subject["kind"] == "ServiceAccount" and not subject.get("namespace"):
            yield f"subjects: ServiceAccount {subject['name']} is without a namespace"
