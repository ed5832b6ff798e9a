"""What is asked of a cluster, in the order in which it is shown."""

import functools

from pipelines.checks import access, cluster, gpus, operators, storage
from pipelines.checks.scene import Scene
from pipelines.checks.verdict import Question, Status


def api_question(scene: Scene) -> Question:
    """The first question: without an answer, the others need not be asked."""
    return Question("Kubernetes API", lambda: cluster.api_server(scene), late=Status.FAILED)


def cluster_questions(scene: Scene, *, ray: bool, lws: bool) -> list[Question]:
    """What is asked of a cluster that answers.

    Args:
        scene: The cluster, and what is to run there.
        ray: Whether KubeRay is needed.
        lws: Whether LeaderWorkerSet is needed.
    """
    asked = [
        ("Kubernetes version", cluster.kubernetes_version),
        ("Namespace", cluster.namespace),
        ("KServe", operators.kserve),
        ("KServe controller", operators.kserve_controller),
        *([("KubeRay", operators.kuberay)] if ray else []),
        *([("LeaderWorkerSet", operators.leader_worker_set)] if lws else []),
        ("GPU nodes", gpus.gpu_nodes),
        ("Room for the model", gpus.room),
        ("Quota", access.quota),
        ("Storage class", storage.storage_class),
        ("Model cache", storage.model_cache),
        ("Hugging Face token", access.secret),
        ("Rights", access.rights),
        ("Sweep", operators.sweep),
        ("Prometheus", operators.prometheus),
    ]
    return [Question(name, functools.partial(check, scene)) for name, check in asked]
