"""What is seen of a service between two moments: the API server answers one question after the other."""

import copy
from typing import Any

from clients.serving.cluster import Cluster
from clients.serving.observe import Observer
from tests.servers.kubernetes import KubernetesServer
from tests.servers.kubernetes.verbs import Logs

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "llm-predictor-0", "namespace": "ml", "labels": {"serving.kserve.io/inferenceservice": "llm"}},
    "spec": {"nodeName": "gpu-0", "containers": [{"name": "kserve-container", "image": "vllm"}]},
    "status": {
        "containerStatuses": [
            {
                "name": "kserve-container",
                "restartCount": 0,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1}},
            }
        ]
    },
}


class Restarted(Logs):
    """A kubelet that has started the container again since its pod was listed; it has said nothing yet."""

    def read(self, pod: dict[str, Any], container: str, *, previous: bool) -> str:
        return "OSError: [Errno 28] No space left on device\n" if previous else ""


def test_the_last_words_of_a_container_are_kept_when_it_starts_again_at_that_moment(
    server: KubernetesServer, cluster: Cluster
) -> None:
    server.put(copy.deepcopy(POD))
    server.verbs.logs = Restarted()
    assert "No space left" in Observer(cluster, "llm").look().logs["llm-predictor-0"]
