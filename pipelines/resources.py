"""Verbs on a task: each takes a task, changes one thing about how it runs, and returns it."""

from kfp import dsl, kubernetes

#: Where a stock Kubeflow has the keys of its own artifact store, in every namespace that runs pipelines.
_ARTIFACT_STORE = "mlpipeline-minio-artifact"
_ARTIFACT_KEYS = {"accesskey": "KLLM_STORE_ACCESS_KEY", "secretkey": "KLLM_STORE_SECRET_KEY"}

_STORAGE = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
)
_LANGFUSE = ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY", "LANGFUSE_BASE_URL", "LANGFUSE_HOST")


def prepare(
    task: dsl.PipelineTask, name: str, *, image: str, cpu: str = "500m", memory: str = "512Mi"
) -> dsl.PipelineTask:
    """Give a task what every task of ours has: a name in the UI, an image, requests and limits, and no caching.

    A cached task would hand on the result of an earlier run: an endpoint that is gone, answers to other prompts.

    Args:
        task: The task.
        name: Its name in the UI.
        image: Image that its pod runs; a pipeline parameter.
        cpu: Requested CPU, as Kubernetes writes it. Not limited: a throttled engine leaves GPUs idle.
        memory: Requested memory, as Kubernetes writes it; the limit is four times as much.
    """
    number, unit = int(memory[:-2]), memory[-2:]
    return (
        task.set_display_name(name)
        .set_container_image(image)
        .set_caching_options(False)
        .set_cpu_request(cpu)
        .set_memory_request(memory)
        .set_memory_limit(f"{4 * number}{unit}")
    )


def with_stores(task: dsl.PipelineTask, secret: str) -> dsl.PipelineTask:
    """Let a task reach Kubeflow's own object store by the Secret it comes with, others by this one; both may be absent.

    Args:
        task: The task.
        secret: Name of the Secret; a pipeline parameter.
    """
    _from_secret(task, _ARTIFACT_STORE, _ARTIFACT_KEYS)
    return _from_secret(task, secret, {key: key for key in _STORAGE})


def with_endpoint_key(task: dsl.PipelineTask, secret: str) -> dsl.PipelineTask:
    """Let a task use the key of the endpoint, if there is a Secret of this name."""
    return _from_secret(task, secret, {"OPENAI_API_KEY": "OPENAI_API_KEY"})


def with_langfuse(task: dsl.PipelineTask, secret: str) -> dsl.PipelineTask:
    """Let a task trace in Langfuse, if there is a Secret of this name."""
    return _from_secret(task, secret, {key: key for key in _LANGFUSE})


def _from_secret(task: dsl.PipelineTask, secret: str, variables: dict[str, str]) -> dsl.PipelineTask:
    return kubernetes.use_secret_as_env(task, secret, variables, optional=True)
