"""Verbs on a task: each takes a task, changes one thing about how it runs, and returns it."""

from kfp import dsl, kubernetes

from clients.steps.secrets import ARTIFACT_STORE, MOUNT_ROOT

#: Ask the two usual autoscalers to leave the node of a long step alone until the step has ended. A pod that one of them
#: drains is deleted, and by Argo's own policy a pod is tried again that failed, not one that was deleted.
#: Source: the FAQ of the Cluster Autoscaler, Karpenter's page on disruption, Argo's page on retries.
_STAYS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}

#: Timeouts in hours: of steps that read the whole input or all results, that wait for a model, and that send rows; and
#: of all others, which are over in a minute.
READING_H, WAITING_H, SENDING_H = 12, 24, 14 * 24
_SHORT_H = 2


def prepare(
    task: dsl.PipelineTask,
    name: str,
    *,
    image: str,
    cpu: str = "500m",
    memory: str = "512Mi",
    timeout_h: int = _SHORT_H,
) -> dsl.PipelineTask:
    """Give a task what all of ours have: a name in the UI, labels, an image, resources, a timeout, no caching.

    A cached task would hand on the result of an earlier run: an endpoint that is gone, answers to other prompts.

    Args:
        task: The task.
        name: Its name in the UI.
        image: Image that its pod runs; a pipeline parameter.
        cpu: Requested CPU, as Kubernetes writes it. Not limited: a throttled engine leaves GPUs idle.
        memory: Requested memory, as Kubernetes writes it; the limit is four times as much.
        timeout_h: Hours after which Kubernetes ends a pod that hangs, the pull of its image included. Steps that wait
            or send have limits of their own, which are to end them long before.
    """
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "kubeflow-llm-inference")
    if timeout_h > _SHORT_H:
        for key, value in _STAYS.items():
            kubernetes.add_pod_annotation(task, key, value)
    kubernetes.set_timeout(task, timeout_h * 3600)
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
    _mount(task, ARTIFACT_STORE, "artifact-store")
    return _mount(task, secret, "storage")


def with_endpoint_key(task: dsl.PipelineTask, secret: str) -> dsl.PipelineTask:
    """Let a task use the key of the endpoint, if there is a Secret of this name."""
    return _mount(task, secret, "endpoint")


def with_langfuse(task: dsl.PipelineTask, secret: str) -> dsl.PipelineTask:
    """Let a task trace in Langfuse, if there is a Secret of this name."""
    return _mount(task, secret, "langfuse")


def _mount(task: dsl.PipelineTask, secret: str, folder: str) -> dsl.PipelineTask:
    """Give a task a Secret as files; see `clients.steps.secrets`."""
    return kubernetes.use_secret_as_volume(task, secret, f"{MOUNT_ROOT}/{folder}", optional=True)
