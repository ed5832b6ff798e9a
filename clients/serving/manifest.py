"""The Kubernetes objects of a service, made from its spec: pure, and the same as the files in kserve/vllm/."""

import math
from typing import Any

from clients.serving import vllm_arguments
from clients.serving.labels import GPU_PRODUCT, SERVICE_LABEL
from clients.serving.quantity import number
from clients.serving.spec import HF_TOKEN_KEY, PROFILES, ServingSpec
from clients.serving.vllm_arguments import Argument, argument

Object = dict[str, Any]

#: Resource name of a GPU.
GPU = "nvidia.com/gpu"

#: vLLM serves requests and metrics on one port; 8080 is what KServe expects of a container.
_PORT = 8080

#: Where Prometheus and the guide look for metrics; a port of the Service only.
_METRICS_PORT = 8000

#: Seconds that a first start may take. The weights of the default model, 31 GB, come in an hour at 70 Mbit/s; larger
#: models, slower mirrors and 16 pods that wait for one download need the rest.
_STARTUP_S = 3 * 3600

_STARTUP_PERIOD_S = 10

#: Seconds between the stop and the server's hearing of it, in which it still answers while its address is taken out of
#: the Service; afterwards new requests get 500.
_LEAVE_S = 5

#: Seconds that the engine's processes need to end when nothing is in flight any more.
_EXIT_S = 25

_CACHE_PATH = "/cache"

#: GPUs of a node of the guide: a replica that takes as many has the node to itself.
_NODE_GPUS = 8


def inference_service(spec: ServingSpec) -> Object:
    """The InferenceService."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": spec.name,
            "labels": spec.labels,
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": "none",
                "serving.kserve.io/enable-prometheus-scraping": "false",
            },
        },
        "spec": {"predictor": _predictor(spec)},
    }


def for_kserve_0_15(service: Object) -> Object:
    """The same InferenceService as KServe 0.15 takes it, which refuses ours.

    It calls the mode Standard by its old name, and may know no autoscaler class `none`; its default then makes an
    autoscaler of as many replicas at least as at most. KServe from 0.16 on refuses the old name together with a
    deployment strategy, so no one document suits both.
    """
    metadata = service["metadata"]
    annotations = {**metadata["annotations"], "serving.kserve.io/deploymentMode": "RawDeployment"}
    del annotations["serving.kserve.io/autoscalerClass"]
    return {**service, "metadata": {**metadata, "annotations": annotations}}


def metrics_service(spec: ServingSpec) -> Object:
    """The Service on whose port 8000 the metrics of all replicas are found."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{spec.name}-metrics", "labels": spec.labels},
        "spec": {
            "selector": {SERVICE_LABEL: spec.name},
            "ports": [{"name": "metrics", "port": _METRICS_PORT, "targetPort": _PORT, "protocol": "TCP"}],
        },
    }


def model_cache(spec: ServingSpec) -> Object:
    """The claim for downloaded models, which all replicas mount."""
    claim: Object = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": spec.cache_size}},
    }
    if spec.storage_class:
        claim["storageClassName"] = spec.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": spec.model_cache},
        "spec": claim,
    }


def vllm_command_line(spec: ServingSpec) -> list[str]:
    """What stands after `vllm serve`."""
    return [spec.model_id, *(word for each in _arguments(spec) for word in each.words)]


def _arguments(spec: ServingSpec) -> tuple[Argument, ...]:
    ours = [
        argument("--served-model-name", spec.served_model_name),
        argument("--port", str(_PORT)),
        argument("--tensor-parallel-size", str(spec.tensor_parallel)),
    ]
    if spec.expert_parallel:
        ours.append(argument("--enable-expert-parallel"))
    if spec.max_model_len:
        ours.append(argument("--max-model-len", str(spec.max_model_len)))
    if spec.reasoning_parser:
        ours.append(argument("--reasoning-parser", spec.reasoning_parser))
    ours += PROFILES[spec.profile].arguments
    ours += [
        argument("--enable-request-id-headers"),
        argument("--disable-access-log-for-endpoints", "/health,/metrics,/ping"),
        argument("--shutdown-timeout", str(spec.drain_s)),
    ]
    return vllm_arguments.merge(ours, spec.extra_arguments)


def _predictor(spec: ServingSpec) -> Object:
    return {
        "labels": {"sidecar.istio.io/inject": "false"},  # the label `app` of the pods belongs to KServe
        "annotations": {
            "sidecar.istio.io/inject": "false",
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(_PORT),
            "prometheus.io/path": "/metrics",
        },
        "minReplicas": spec.replicas,
        "maxReplicas": spec.replicas,
        "deploymentStrategy": {"type": "Recreate"},
        "terminationGracePeriodSeconds": _LEAVE_S + spec.drain_s + _EXIT_S,
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        **_placement(spec),
        "containers": [_container(spec)],
        "volumes": _volumes(spec),
    }


def _placement(spec: ServingSpec) -> Object:
    """On which nodes the pods may run, and not beside one another."""
    product = {GPU_PRODUCT: spec.gpu_product} if spec.gpu_product else {}
    selector = {**product, **spec.node_selector}
    toleration = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
    return {
        **({"nodeSelector": selector} if selector else {}),
        "tolerations": [toleration, *(dict(each) for each in spec.tolerations if each != toleration)],
        "affinity": {"podAntiAffinity": _apart(spec)},
    }


def _apart(spec: ServingSpec) -> Object:
    term = {
        "labelSelector": {"matchLabels": {SERVICE_LABEL: spec.name}},
        "topologyKey": "kubernetes.io/hostname",
    }
    if spec.gpus_per_replica >= _NODE_GPUS:
        return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}


def _container(spec: ServingSpec) -> Object:
    return {
        "name": "kserve-container",
        "image": spec.image,
        "command": ["vllm", "serve"],
        "args": vllm_command_line(spec),
        "ports": [{"name": "http", "containerPort": _PORT, "protocol": "TCP"}],
        "env": _environment(spec),
        "resources": _resources(spec),
        "securityContext": _security(spec),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_LEAVE_S)]}}},
        **_probes(),
        "volumeMounts": [
            {"name": "model-cache", "mountPath": _CACHE_PATH},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - memory that the GPUs' processes share
        ],
    }


def _environment(spec: ServingSpec) -> list[Object]:
    plain = {
        "HF_HOME": f"{_CACHE_PATH}/huggingface",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(_STARTUP_S),
    }
    if spec.gpus_per_replica > 1:
        plain |= {
            "NCCL_DEBUG": "WARN",
            "NCCL_SOCKET_IFNAME": "eth0",
            "NCCL_IB_DISABLE": "0",
            "NCCL_IB_HCA": "mlx5",
        }
    found: list[Object] = [{"name": name, "value": value} for name, value in plain.items()]
    if spec.hf_secret:
        reference = {"name": spec.hf_secret, "key": HF_TOKEN_KEY}
        found.insert(0, {"name": HF_TOKEN_KEY, "valueFrom": {"secretKeyRef": reference}})
    return found


def _resources(spec: ServingSpec) -> Object:
    """Requests equal limits: such pods are the last that a node under pressure evicts."""
    gpus = spec.gpus_per_replica
    wanted = {
        "cpu": spec.cpu or str(8 * gpus),
        "memory": spec.memory or f"{64 * gpus}Gi",
        "ephemeral-storage": _disk(spec),
        GPU: str(gpus),
    }
    return {"requests": wanted, "limits": dict(wanted)}


def _disk(spec: ServingSpec) -> str:
    """A node's disk for compiled graphs and logs, and for the models when there is no claim for them."""
    own = 32
    return f"{own if spec.model_cache else own + math.ceil(number(spec.cache_size) / 2**30)}Gi"


def _security(spec: ServingSpec) -> Object:
    """What the container may do.

    The image runs as root, and its caches are under /root: another user could not start. Nor is a seccomp profile
    set: the runtime's usual one forbids pidfd_getfd, by which the processes of several GPUs hand memory to each other.
    """
    found: Object = {"allowPrivilegeEscalation": False}
    if spec.ipc_lock and spec.gpus_per_replica > 1:
        found["capabilities"] = {"add": ["IPC_LOCK"]}
    return found


def _probes() -> Object:
    """The port is closed until the model is ready; then /health answers 200, or 503 when the engine has died."""
    return {
        "startupProbe": {
            **_health(),
            "periodSeconds": _STARTUP_PERIOD_S,
            "timeoutSeconds": 5,
            "failureThreshold": _STARTUP_S // _STARTUP_PERIOD_S,
        },
        "readinessProbe": {**_health(), "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 3},
        "livenessProbe": {**_health(), "periodSeconds": 30, "timeoutSeconds": 20, "failureThreshold": 6},
    }


def _health() -> Object:
    return {"httpGet": {"path": "/health", "port": _PORT}}


def _volumes(spec: ServingSpec) -> list[Object]:
    cache: Object = {"emptyDir": {"sizeLimit": spec.cache_size}}
    if spec.model_cache:
        cache = {"persistentVolumeClaim": {"claimName": spec.model_cache}}
    shared_gib = max(8, 4 * spec.gpus_per_replica)
    return [
        {"name": "model-cache", **cache},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared_gib}Gi"}},
    ]
