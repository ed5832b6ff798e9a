"""Verbs on a task: each takes a task, changes one thing about how it runs, and returns it."""

from kfp import dsl


def prepare(task: dsl.PipelineTask, name: str, *, cpu: str = "500m", memory: str = "512Mi") -> dsl.PipelineTask:
    """Give a task what every task of ours has: a name in the UI, requests and limits, and no caching.

    A cached task would hand on the result of an earlier run: an endpoint that is gone, answers to other prompts.

    Args:
        task: The task.
        name: Its name in the UI.
        cpu: Requested CPU, as Kubernetes writes it. Not limited: a throttled engine leaves GPUs idle.
        memory: Requested memory, as Kubernetes writes it; the limit is four times as much.
    """
    number, unit = int(memory[:-2]), memory[-2:]
    return (
        task.set_display_name(name)
        .set_caching_options(False)
        .set_cpu_request(cpu)
        .set_memory_request(memory)
        .set_memory_limit(f"{4 * number}{unit}")
    )
