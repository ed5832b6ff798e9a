"""A stand-in for a Kubernetes cluster: its API server, and what runs in it."""

from tests.servers.kubernetes.api import KubernetesServer
from tests.servers.kubernetes.cluster import FakeCluster
from tests.servers.kubernetes.scenarios import SCENARIOS, Scenario, Timing
from tests.servers.kubernetes.scheduler import gpu_node

__all__ = ["SCENARIOS", "FakeCluster", "KubernetesServer", "Scenario", "Timing", "gpu_node"]
