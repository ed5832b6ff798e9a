"""Talking to an API server: what is retried, what is not, and what refusals become."""

import threading
from pathlib import Path

import pytest
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster as ApiServer
from lightkube.config.models import User

from clients.errors import ApiError, ConflictError, ForbiddenError, MissingKindError, SettingsError, UnreachableApiError
from clients.serving.cluster import Cluster
from clients.serving.connection import Connection
from tests.servers.kubernetes import KubernetesServer
from tests.serving.conftest import impatient

CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "cache"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
}


def service(name: str = "vllm-a", **spec: object) -> dict[str, object]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"predictor": {"minReplicas": 1, **spec}},
    }


class TestObjects:
    def test_an_object_that_is_not_there_is_none(self, cluster: Cluster) -> None:
        assert cluster.get("Secret", "nothing") is None

    def test_what_was_created_is_read_and_listed(self, cluster: Cluster) -> None:
        cluster.create("PersistentVolumeClaim", CLAIM)
        found = cluster.get("PersistentVolumeClaim", "cache")
        assert found is not None
        assert found["spec"]["accessModes"] == ["ReadWriteMany"]
        assert [each["metadata"]["name"] for each in cluster.list("PersistentVolumeClaim")] == ["cache"]

    def test_a_long_list_is_read_page_by_page(self, server: KubernetesServer, cluster: Cluster) -> None:
        for number in range(1203):
            server.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c{number}", "namespace": "ml"}})
        assert len(cluster.list("ConfigMap")) == 1203
        assert len(server.seen("GET", "/configmaps")) == 3

    def test_a_list_begins_anew_when_its_version_is_too_old(self, server: KubernetesServer, cluster: Cluster) -> None:
        for number in range(700):
            server.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c{number}", "namespace": "ml"}})
        server.fail(status=410, path="/configmaps.*continue=")
        assert len(cluster.list("ConfigMap")) == 700

    def test_applying_the_same_again_changes_nothing(self, cluster: Cluster) -> None:
        first = cluster.apply("InferenceService", service())
        again = cluster.apply("InferenceService", service())
        assert first["metadata"]["resourceVersion"] == again["metadata"]["resourceVersion"]

    def test_a_dry_run_leaves_things_as_they_are(self, cluster: Cluster) -> None:
        cluster.apply("InferenceService", service())
        asked = cluster.apply("InferenceService", service(minReplicas=3), dry_run=True)
        stands = cluster.get("InferenceService", "vllm-a")
        assert asked["spec"]["predictor"]["minReplicas"] == 3
        assert stands is not None
        assert stands["spec"]["predictor"]["minReplicas"] == 1

    def test_only_the_object_that_was_looked_at_is_deleted(self, cluster: Cluster) -> None:
        made = cluster.apply("InferenceService", service())
        with pytest.raises(ConflictError):
            cluster.delete("InferenceService", "vllm-a", uid="another")
        with pytest.raises(ConflictError):
            cluster.delete("InferenceService", "vllm-a", uid=made["metadata"]["uid"], resource_version="1")
        cluster.delete("InferenceService", "vllm-a", uid=made["metadata"]["uid"])
        assert cluster.get("InferenceService", "vllm-a") is None
        cluster.delete("InferenceService", "vllm-a", uid=made["metadata"]["uid"])  # gone already: fine


class TestRefusals:
    def test_a_field_of_another_owner_is_told_with_both_names(self, server: KubernetesServer, cluster: Cluster) -> None:
        server.put({**service(), "metadata": {"name": "vllm-a", "namespace": "ml"}}, manager="kubectl")
        with pytest.raises(ConflictError, match=r"minReplicas.*kubectl.*another service name"):
            cluster.apply("InferenceService", service(minReplicas=2))
        cluster.apply("InferenceService", service(minReplicas=2), force=True)

    def test_a_missing_right_is_told_with_the_rule_to_add(self, server: KubernetesServer, tmp_path: Path) -> None:
        server.grant("reader", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}])
        with impatient(str(server.kubeconfig(tmp_path / "reader", token="reader"))) as reader:
            with pytest.raises(ForbiddenError) as refused:
                reader.apply("InferenceService", service())
            assert reader.list("Pod") == []
            assert reader.allowed("Pod", "list")
            assert not reader.allowed("InferenceService", "create")
        assert 'apiGroups: ["serving.kserve.io"], resources: ["inferenceservices"], verbs: [create, patch]' in str(
            refused.value
        )

    def test_a_kind_that_is_not_installed_names_what_brings_it(self, tmp_path: Path) -> None:
        with KubernetesServer(installed=()) as bare, impatient(str(bare.kubeconfig(tmp_path / "config"))) as cluster:
            with pytest.raises(MissingKindError, match="KServe is not installed"):
                cluster.get("InferenceService", "vllm-a")
            with pytest.raises(MissingKindError, match="KServe is not installed"):
                cluster.apply("InferenceService", service())

    def test_a_token_that_nobody_knows(self, server: KubernetesServer, tmp_path: Path) -> None:
        server.grant("good")
        path = str(server.kubeconfig(tmp_path / "config2", token="bad"))
        with impatient(path) as cluster, pytest.raises(ApiError, match="does not know these credentials") as refused:
            cluster.list("Pod")
        assert refused.value.status == 401
        assert "bad" not in str(refused.value)


class TestFaults:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_a_server_that_falters_is_asked_again(
        self, server: KubernetesServer, cluster: Cluster, status: int
    ) -> None:
        server.fail(status=status, times=2)
        assert cluster.list("Pod") == []

    def test_a_connection_that_is_cut_is_made_again(self, server: KubernetesServer, cluster: Cluster) -> None:
        server.fail(reset=True, times=2)
        assert cluster.list("Pod") == []

    def test_a_typo_that_the_server_calls_its_own_error_is_not_sent_again(
        self, server: KubernetesServer, cluster: Cluster
    ) -> None:
        words = "failed to create typed patch object (ml/a; v1, Kind=Pod): .spec.typo: field not declared in schema"
        server.fail(status=500, message=words, times=9, method="PATCH")
        with pytest.raises(ApiError, match="field not declared in schema"):
            cluster.apply("InferenceService", service())
        assert len(server.seen("PATCH")) == 1

    def test_a_server_that_stays_away_is_given_up_with_its_address(
        self, server: KubernetesServer, cluster: Cluster
    ) -> None:
        server.stop()
        with pytest.raises(UnreachableApiError, match=r"127\.0\.0\.1:\d+ does not answer"):
            cluster.list("Pod")

    def test_a_server_that_restarts_is_waited_for(self, server: KubernetesServer, cluster: Cluster) -> None:
        server.stop()
        back = threading.Timer(0.6, server.start)
        back.start()
        assert cluster.list("Pod") == []
        back.join()


def test_a_token_that_rotates_is_read_again(server: KubernetesServer, tmp_path: Path) -> None:
    """A pod's token is replaced in its file from time to time; the old one is refused soon after."""
    token = tmp_path / "token"
    token.write_text("first")
    server.grant("first")
    user = User(token="first", token_file=str(token))
    config = KubeConfig.from_one(cluster=ApiServer(server=server.url), user=user, namespace="ml").get()
    assert config is not None
    with Cluster(Connection(config, patience_s=2.0), "ml") as cluster:
        assert cluster.list("Pod") == []
        token.write_text("second")
        server.rotate("first", "second")
        assert cluster.list("Pod") == []


class TestKubeconfig:
    def test_without_any_cluster_the_way_to_one_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="Set KUBECONFIG"):
            Cluster.connect(kubeconfig=str(tmp_path / "absent"))

    @pytest.mark.parametrize("text", ["", "]", "clusters: 3", "apiVersion: v1\nkind: Config\n"])
    def test_a_broken_file_is_named(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "broken"
        path.write_text(text)
        with pytest.raises(SettingsError, match="broken"):
            Cluster.connect(kubeconfig=str(path))

    def test_the_first_of_several_files_counts(self, kubeconfig: str, tmp_path: Path) -> None:
        with Cluster.connect(kubeconfig=f"{tmp_path}/absent:{kubeconfig}") as cluster:
            assert cluster.list("Pod") == []

    def test_an_unknown_context_is_named(self, kubeconfig: str) -> None:
        with pytest.raises(SettingsError, match="elsewhere"):
            Cluster.connect(kubeconfig=kubeconfig, context="elsewhere")
