"""A cluster to talk to, and a kubeconfig for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.serving.cluster import Cluster
from clients.serving.connection import Connection, find_config
from tests.servers.kubernetes import KubernetesServer


@pytest.fixture
def server() -> Iterator[KubernetesServer]:
    with KubernetesServer() as running:
        yield running


@pytest.fixture
def kubeconfig(server: KubernetesServer, tmp_path: Path) -> str:
    return str(server.kubeconfig(tmp_path / "config"))


@pytest.fixture
def cluster(kubeconfig: str) -> Iterator[Cluster]:
    with impatient(kubeconfig) as connected:
        yield connected


def impatient(kubeconfig: str, patience_s: float = 2.0) -> Cluster:
    """A cluster whose requests are tried again for so long only."""
    config, in_cluster = find_config(kubeconfig, "")
    return Cluster(Connection(config, in_cluster=in_cluster, patience_s=patience_s), config.namespace)
