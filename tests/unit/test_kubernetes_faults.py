"""The stand-in for a Kubernetes API server refuses, falters and comes back as a real one does."""

import http.client
import threading
import time
from collections.abc import Iterator

import pytest

from tests.servers.kubernetes import KubernetesServer
from tests.servers.kubernetes.asking import APPLY, SERVICES, apply, ask, service, watch

READER = {"apiGroups": ["serving.kserve.io"], "resources": ["inferenceservices"], "verbs": ["get", "list", "patch"]}


@pytest.fixture
def server() -> Iterator[KubernetesServer]:
    with KubernetesServer() as running:
        yield running


def test_without_the_right_the_answer_says_who_cannot_do_what(server: KubernetesServer) -> None:
    user = "system:serviceaccount:ml:runner"
    server.grant("t1", [READER | {"namespaces": ["ml"]}], user=user)
    assert ask(server, "GET", SERVICES)[0] == 401
    assert ask(server, "GET", SERVICES, token="t1")[0] == 200
    code, status = ask(server, "POST", SERVICES, service(), token="t1")
    assert (code, status["reason"]) == (403, "Forbidden")
    assert status["message"] == (
        f'inferenceservices.serving.kserve.io is forbidden: User "{user}" cannot create resource "inferenceservices" '
        'in API group "serving.kserve.io" in the namespace "ml"'
    )
    body = service()
    code, status = ask(server, "PATCH", f"{SERVICES}/qwen?fieldManager=us", body, kind=APPLY, token="t1")
    assert code == 403  # an apply that makes the object needs the right to create
    assert "cannot create resource" in status["message"]
    _, status = ask(server, "GET", "/api/v1/nodes", token="t1")
    assert status["message"].endswith('cannot list resource "nodes" in API group "" at the cluster scope')


def test_a_review_of_ones_own_rights_answers_from_the_same_rules(server: KubernetesServer) -> None:
    server.grant("t1", [READER])
    for verb, yes in (("get", True), ("delete", False)):
        wanted = {"verb": verb, "group": "serving.kserve.io", "resource": "inferenceservices", "namespace": "ml"}
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        _, found = ask(server, "POST", path, {"spec": {"resourceAttributes": wanted}}, token="t1")
        assert found["status"]["allowed"] is yes


def test_a_rotated_token_is_refused(server: KubernetesServer) -> None:
    server.grant("old")
    server.rotate("old", "new")
    assert ask(server, "GET", SERVICES, token="old")[0] == 401
    assert ask(server, "GET", SERVICES, token="new")[0] == 200


def test_faults_are_played_as_often_as_asked_and_where_asked(server: KubernetesServer) -> None:
    server.fail(status=429, times=2, method="GET", path="inferenceservices", retry_after_s=3)
    for _ in range(2):
        code, status = ask(server, "GET", SERVICES)
        assert (code, status["details"]["retryAfterSeconds"]) == (429, 3)
    assert ask(server, "GET", SERVICES)[0] == 200
    server.fail(reset=True)
    with pytest.raises(ConnectionError):
        ask(server, "GET", SERVICES)
    server.fail(reset=True, after=True, method="POST")
    with pytest.raises(ConnectionError):
        ask(server, "POST", SERVICES, service())
    assert server.get("InferenceService", "qwen")
    started = time.monotonic()
    server.fail(hang_s=0.2)
    assert ask(server, "GET", SERVICES)[0] == 200
    assert time.monotonic() - started >= 0.2


def test_a_server_that_restarts_keeps_its_port_and_its_objects(server: KubernetesServer) -> None:
    apply(server, service())
    port = server.port
    failures: list[Exception] = []

    def listen() -> None:
        try:
            watch(server, "timeoutSeconds=30")
        except (OSError, http.client.HTTPException) as error:
            failures.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    time.sleep(0.1)
    server.stop()
    thread.join()
    assert failures
    with pytest.raises(ConnectionError):
        ask(server, "GET", SERVICES)
    server.start()
    assert server.port == port
    assert ask(server, "GET", f"{SERVICES}/qwen")[0] == 200


def test_connections_that_are_cut_end_a_watch_without_its_last_word(server: KubernetesServer) -> None:
    timer = threading.Timer(0.2, server.cut_connections)
    timer.start()
    with pytest.raises((OSError, http.client.HTTPException)):
        watch(server, "timeoutSeconds=30")
    timer.join()
    assert ask(server, "GET", SERVICES)[0] == 200
