"""The stand-in for a Kubernetes API server does what a real one was measured to do."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.kubernetes import KubernetesServer
from tests.servers.kubernetes.asking import APPLY, MERGE, SERVICES, apply, ask, service, watch

SECRETS = "/api/v1/namespaces/ml/secrets"
CLAIMS = "/api/v1/namespaces/ml/persistentvolumeclaims"

Obj = dict[str, Any]


def claim(size: str = "3Ti", storage: str = "fast") -> Obj:
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": storage, "resources": {"requests": {"storage": size}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "cache"}, "spec": spec}


def typos(obj: Obj) -> list[str]:
    """A schema that knows no field `typo` and wants minReplicas to be a number."""
    predictor = obj["spec"]["predictor"]
    found = [".spec.predictor.typo: field not declared in schema"] if "typo" in predictor else []
    if not isinstance(predictor.get("minReplicas", 1), int):
        found.append(".spec.predictor.minReplicas: expected numeric (int or float), got string")
    return found


@pytest.fixture
def server() -> Iterator[KubernetesServer]:
    with KubernetesServer(validator=typos) as running:
        yield running


# ---------------------------------------------------------------- what was measured


def test_apply_makes_an_object_with_uid_version_generation_and_manager(server: KubernetesServer) -> None:
    code, made = apply(server, service() | {"status": {"url": "http://mine"}})
    assert code == 201
    assert made["metadata"]["generation"] == 1
    assert made["metadata"]["uid"]
    assert "status" not in made
    [entry] = made["metadata"]["managedFields"]
    assert (entry["manager"], entry["operation"]) == ("us", "Apply")
    item = entry["fieldsV1"]["f:spec"]["f:predictor"]["f:containers"]['k:{"name":"kserve-container"}']
    assert set(item) == {".", "f:name", "f:image", "f:env"}


def test_an_unknown_field_in_an_apply_is_a_500_without_a_reason(server: KubernetesServer) -> None:
    code, status = apply(server, service(typo=1))
    assert code == 500
    assert status["message"] == (
        "failed to create typed patch object (ml/qwen; serving.kserve.io/v1beta1, Kind=InferenceService): "
        ".spec.predictor.typo: field not declared in schema"
    )
    assert "reason" not in status


def test_a_wrong_type_in_an_apply_is_a_500_too(server: KubernetesServer) -> None:
    code, status = apply(server, service(minReplicas="two"))
    assert code == 500
    assert "expected numeric" in status["message"]


def test_an_unknown_field_in_a_strict_post_is_a_400(server: KubernetesServer) -> None:
    code, status = ask(server, "POST", f"{SERVICES}?fieldValidation=Strict", service(typo=1))
    assert code == 400
    assert 'strict decoding error: unknown field "spec.predictor.typo"' in status["message"]


def test_an_unknown_field_in_a_plain_post_is_dropped(server: KubernetesServer) -> None:
    code, made = ask(server, "POST", SERVICES, service(typo=1))
    assert code == 201
    assert "typo" not in made["spec"]["predictor"]


def test_a_wrong_type_in_a_post_is_a_422(server: KubernetesServer) -> None:
    code, status = ask(server, "POST", SERVICES, service(minReplicas="two"))
    assert (code, status["reason"]) == (422, "Invalid")
    assert status["details"]["causes"][0]["field"] == "spec.predictor.minReplicas"


def test_apply_on_a_terminating_object_answers_200_and_the_object_vanishes(server: KubernetesServer) -> None:
    apply(server, service())
    server.change("InferenceService", "qwen", {"metadata": {"finalizers": ["a/b"]}})
    code, dying = ask(server, "DELETE", f"{SERVICES}/qwen")
    assert code == 200
    assert dying["metadata"]["deletionTimestamp"]
    code, seen = apply(server, service(minReplicas=3))
    assert code == 200
    assert seen["metadata"]["deletionTimestamp"]
    server.change("InferenceService", "qwen", {"metadata": {"finalizers": None}})
    assert ask(server, "GET", f"{SERVICES}/qwen")[0] == 404


def test_applying_the_same_again_changes_nothing(server: KubernetesServer) -> None:
    apply(server, service())
    server.change("InferenceService", "qwen", {"metadata": {"finalizers": ["a/b"]}}, manager="manager")
    before = server.get("InferenceService", "qwen")
    code, after = apply(server, service())
    assert code == 200
    assert after == before
    assert after["metadata"]["finalizers"] == ["a/b"]


def test_applying_another_value_raises_the_generation(server: KubernetesServer) -> None:
    _, before = apply(server, service())
    _, after = apply(server, service(minReplicas=3))
    assert after["metadata"]["generation"] == 2
    assert int(after["metadata"]["resourceVersion"]) > int(before["metadata"]["resourceVersion"])


def test_a_field_no_longer_applied_is_removed_but_not_what_others_own(server: KubernetesServer) -> None:
    apply(server, service(maxReplicas=4))
    server.change("InferenceService", "qwen", {"spec": {"predictor": {"timeout": 60}}})
    _, after = apply(server, service())
    assert after["spec"]["predictor"].keys() == {"minReplicas", "containers", "timeout"}


def test_apply_against_another_manager_is_a_conflict_that_names_the_field(server: KubernetesServer) -> None:
    apply(server, service(), by="them")
    code, status = apply(server, service(minReplicas=3))
    assert (code, status["reason"]) == (409, "Conflict")
    assert status["message"] == 'Apply failed with 1 conflict: conflict with "them": .spec.predictor.minReplicas'
    [cause] = status["details"]["causes"]
    assert (cause["field"], cause["message"]) == (".spec.predictor.minReplicas", 'conflict with "them"')


def test_a_plain_write_takes_a_field_over_and_conflicts_then(server: KubernetesServer) -> None:
    apply(server, service())
    server.change("InferenceService", "qwen", {"spec": {"predictor": {"minReplicas": 5}}}, manager="kubectl-edit")
    code, status = apply(server, service())
    assert code == 409
    assert 'conflict with "kubectl-edit" using serving.kserve.io/v1beta1 at ' in status["message"]


def test_force_takes_the_field_from_the_other_manager(server: KubernetesServer) -> None:
    apply(server, service(), by="them")
    code, after = apply(server, service(minReplicas=3), force=True)
    assert code == 200
    assert after["spec"]["predictor"]["minReplicas"] == 3
    assert apply(server, service(minReplicas=4))[0] == 200


def test_the_same_value_is_owned_by_both(server: KubernetesServer) -> None:
    apply(server, service(), by="them")
    code, after = apply(server, service())
    assert code == 200
    assert {entry["manager"] for entry in after["metadata"]["managedFields"]} == {"us", "them"}


def test_items_of_a_list_with_keys_are_merged(server: KubernetesServer) -> None:
    apply(server, service())
    other = service()
    other["spec"] = {"predictor": {"containers": [{"name": "kserve-container", "env": [{"name": "B", "value": "2"}]}]}}
    _, after = apply(server, other, by="them")
    [box] = after["spec"]["predictor"]["containers"]
    assert [entry["name"] for entry in box["env"]] == ["A", "B"]
    assert box["image"] == "vllm:1"


def test_a_dry_run_stores_nothing(server: KubernetesServer) -> None:
    assert apply(server, service(), more="&dryRun=All")[0] == 201
    assert ask(server, "GET", f"{SERVICES}/qwen")[0] == 404


def test_delete_with_another_uid_is_a_conflict(server: KubernetesServer) -> None:
    _, made = apply(server, service())
    code, status = ask(server, "DELETE", f"{SERVICES}/qwen", {"preconditions": {"uid": "another"}})
    assert (code, status["reason"]) == (409, "Conflict")
    assert "the UID in the precondition (another) does not match" in status["message"]
    wanted = {"preconditions": {"uid": made["metadata"]["uid"], "resourceVersion": "1"}}
    assert ask(server, "DELETE", f"{SERVICES}/qwen", wanted)[0] == 409
    wanted = {"preconditions": {"uid": made["metadata"]["uid"]}}
    assert ask(server, "DELETE", f"{SERVICES}/qwen", wanted)[1]["status"] == "Success"


def test_string_data_that_is_renamed_leaves_the_old_key_behind(server: KubernetesServer) -> None:
    for key in ("OLD", "NEW"):
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hf"}, "stringData": {key: "x"}}
        _, found = ask(server, "PATCH", f"{SECRETS}/hf?fieldManager=us", body, kind=APPLY)
    assert found["data"].keys() == {"OLD", "NEW"}
    assert "stringData" not in found


def test_a_secret_knows_its_fields(server: KubernetesServer) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hf"}, "dta": {}}
    code, status = ask(server, "PATCH", f"{SECRETS}/hf?fieldManager=us", body, kind=APPLY)
    assert code == 500
    assert status["message"].endswith("(ml/hf; v1, Kind=Secret): .dta: field not declared in schema")


@pytest.mark.parametrize("changed", [claim("1Ti"), claim(storage="slow")])
def test_a_claim_does_not_change(server: KubernetesServer, changed: Obj) -> None:
    server.put(claim() | {"status": {"phase": "Bound"}})
    code, status = ask(server, "PATCH", f"{CLAIMS}/cache?fieldManager=us&force=true", changed, kind=APPLY)
    assert code == 422
    assert "Forbidden" in status["message"]


def test_what_is_owned_is_collected_with_its_owner(server: KubernetesServer) -> None:
    _, made = apply(server, service())
    owner = {"apiVersion": made["apiVersion"], "kind": made["kind"], "name": "qwen", "uid": made["metadata"]["uid"]}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "owned", "ownerReferences": [owner]}}
    server.put(secret | {"metadata": {**secret["metadata"], "namespace": "ml"}})
    ask(server, "DELETE", f"{SERVICES}/qwen")
    assert server.get("Secret", "owned") is None


def test_names_and_labels_are_checked(server: KubernetesServer) -> None:
    code, status = apply(server, service("Bad_Name"))
    assert (code, status["reason"]) == (422, "Invalid")
    assert "a lowercase RFC 1123 subdomain" in status["message"]
    named = service()
    named["metadata"]["labels"] = {"run": "x" * 64}
    assert "must be no more than 63 characters" in apply(server, named)[1]["message"]


# ---------------------------------------------------------------- reading


def test_a_list_comes_in_pages_and_by_selectors(server: KubernetesServer) -> None:
    for number in range(5):
        meta = {"name": f"p{number}", "namespace": "ml", "labels": {"odd": str(number % 2)}}
        server.put({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}, "status": {"phase": "Running"}})
    pods = "/api/v1/namespaces/ml/pods"
    _, page = ask(server, "GET", f"{pods}?limit=3")
    _, rest = ask(server, "GET", f"{pods}?limit=3&continue={page['metadata']['continue']}")
    assert [len(page["items"]), len(rest["items"])] == [3, 2]
    assert "continue" not in rest["metadata"]
    for selector, count in (("odd=1", 2), ("odd%20in%20(0,1)", 5), ("odd!=1", 3), ("!odd", 0), ("odd", 5)):
        assert len(ask(server, "GET", f"{pods}?labelSelector={selector}")[1]["items"]) == count
    assert len(ask(server, "GET", f"{pods}?fieldSelector=metadata.name=p1")[1]["items"]) == 1
    assert len(ask(server, "GET", "/api/v1/pods?fieldSelector=status.phase=Running")[1]["items"]) == 5
    assert ask(server, "GET", f"{pods}?fieldSelector=spec.nonsense=1")[0] == 400
    server.forget_history()
    code, status = ask(server, "GET", f"{pods}?limit=3&continue={page['metadata']['continue']}")
    assert (code, status["reason"]) == (410, "Expired")


def test_a_watch_tells_what_happens_after_a_version(server: KubernetesServer) -> None:
    _, made = apply(server, service())
    version = made["metadata"]["resourceVersion"]
    found: list[Obj] = []
    query = f"resourceVersion={version}&timeoutSeconds=1&fieldSelector=metadata.name=qwen"
    thread = threading.Thread(target=lambda: found.extend(watch(server, query)))
    thread.start()
    time.sleep(0.1)
    apply(server, service(minReplicas=3))
    apply(server, service("other"))
    ask(server, "DELETE", f"{SERVICES}/qwen")
    thread.join()
    assert [event["type"] for event in found] == ["MODIFIED", "DELETED"]
    assert [event["type"] for event in watch(server, "timeoutSeconds=0.1")] == ["ADDED"]


def test_a_watch_from_an_old_version_ends_with_a_410(server: KubernetesServer) -> None:
    _, made = apply(server, service())
    server.forget_history()
    [event] = watch(server, f"resourceVersion={made['metadata']['resourceVersion']}&timeoutSeconds=5")
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")


def test_a_kind_that_is_not_installed_is_no_path_at_all() -> None:
    with KubernetesServer(installed=()) as server:
        assert ask(server, "GET", SERVICES) == (404, "404 page not found\n")
        assert ask(server, "GET", "/apis/serving.kserve.io")[0] == 404
        server.install("kserve")
        assert ask(server, "GET", SERVICES)[0] == 200
        assert ask(server, "GET", "/apis/serving.kserve.io")[1]["kind"] == "APIGroup"
        crds = ask(server, "GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")[1]["items"]
        assert "inferenceservices.serving.kserve.io" in [crd["metadata"]["name"] for crd in crds]


def test_what_is_not_there_is_told_by_its_kind_and_name(server: KubernetesServer) -> None:
    code, status = ask(server, "GET", f"{SERVICES}/nope")
    assert (code, status["reason"]) == (404, "NotFound")
    assert status["message"] == 'inferenceservices.serving.kserve.io "nope" not found'
    assert status["details"] == {"name": "nope", "group": "serving.kserve.io", "kind": "inferenceservices"}
    code, status = ask(server, "POST", SECRETS.replace("/ml/", "/elsewhere/"), {"metadata": {"name": "x"}})
    assert (code, status["message"]) == (404, 'namespaces "elsewhere" not found')


def test_a_second_object_of_a_name_and_an_old_state_are_conflicts(server: KubernetesServer) -> None:
    _, made = ask(server, "POST", SERVICES, service())
    code, status = ask(server, "POST", SERVICES, service())
    assert (code, status["reason"]) == (409, "AlreadyExists")
    server.change("InferenceService", "qwen", {"metadata": {"labels": {"a": "b"}}})
    code, status = ask(server, "PUT", f"{SERVICES}/qwen", made)
    assert (code, status["reason"]) == (409, "Conflict")


def test_a_status_is_written_by_its_own_path_and_raises_no_generation(server: KubernetesServer) -> None:
    apply(server, service())
    patch = {"status": {"url": "http://x"}, "spec": {"predictor": {"minReplicas": 9}}}
    code, found = ask(server, "PATCH", f"{SERVICES}/qwen/status", patch, kind=MERGE)
    assert code == 200
    assert found["status"] == {"url": "http://x"}
    assert found["spec"]["predictor"]["minReplicas"] == 2
    assert found["metadata"]["generation"] == 1


def test_the_stand_in_imports_nothing_of_the_project() -> None:
    words = "import tests.servers.kubernetes, sys; print([m for m in sys.modules if m.split('.')[0] == 'clients'])"
    found = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
