"""A stand-in for a Kubernetes cluster: its API server, and what runs in it."""

from tests.servers.kubernetes.api import KubernetesServer

__all__ = ["KubernetesServer"]
