"""What Kubernetes refuses to create, and what KServe says or does not say."""

from typing import Any

import pytest

from clients.serving.diagnose import Finding
from tests.unit.serving_objects import ago, cause, condition, deployment, event, find, pod, quota, service


class TestRefusals:
    @staticmethod
    def refused(said: str, *, age: float = 60) -> dict[str, Any]:
        failed = condition("ReplicaFailure", "True", age=age, reason="FailedCreate", message=said)
        return {"deployments": (deployment(wanted=2, replicas=0, conditions=[failed]),)}

    def test_a_quota_that_is_full_is_waited_for(self) -> None:
        found = cause(2, **self.refused(quota(8, 16, 16)))
        assert (found.kind, found.fatal) == ("quota", False)
        assert "quota gpus allows requests.nvidia.com/gpu=16, 16 are used, 8 more asked" in found.message

    def test_a_quota_in_words_of_a_newer_kind_is_still_a_quota(self) -> None:
        assert cause(2, **self.refused("exceeded quota: something new")).kind == "quota"

    @pytest.mark.parametrize(("wanted", "limited"), [(1, 4), (2, 8)])
    def test_a_quota_that_is_too_small_for_all_replicas_is_final(self, wanted: int, limited: int) -> None:
        found = cause(wanted, **self.refused(quota(8, 0, limited)))
        assert found.fatal
        assert f"allows requests.nvidia.com/gpu={limited}, and {wanted} x 8 are asked for" in found.message

    def test_events_of_the_replica_set_tell_it_too(self) -> None:
        said = "Error creating: " + quota(8, 16, 16)
        events = (event("FailedCreate", said, kind="ReplicaSet", name="llm-predictor-5d4"),)
        seen: dict[str, Any] = {"deployments": (deployment(replicas=0),)}
        assert cause(2, events=events, **seen).kind == "quota"
        later = event("SuccessfulCreate", "Created pod", kind="ReplicaSet", name="llm-predictor-5d4", age=5)
        assert find(2, events=(*events, later), **seen).cause is None

    @pytest.mark.parametrize(
        ("said", "kind", "final"),
        [
            ('violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false', "admission", True),
            ("maximum memory usage per Container is 8Gi, but limit is 64Gi", "admission", True),
            ("failed quota: gpus: must specify limits.cpu for: kserve-container", "quota", True),
            ('error looking up service account ml/x: serviceaccount "x" not found', "admission", True),
            ('admission webhook "validate.kyverno.svc" denied the request: no', "admission", True),
            ('failed calling webhook "x": connect: connection refused', "admission", False),
        ],
    )
    def test_policies(self, said: str, kind: str, final: bool) -> None:
        found = cause(2, **self.refused(f'pods "llm-predictor-5d4-a" is forbidden: {said}', age=21))
        assert (found.kind, found.fatal) == (kind, final)
        assert said[:30] in found.message
        assert not cause(2, **self.refused(f'pods "a" is forbidden: {said}', age=19)).fatal


class TestKServe:
    def test_a_service_that_is_gone(self) -> None:
        assert (cause(service=None).kind, cause(service=None).fatal) == ("deleted", True)
        assert cause(service=service(deletionTimestamp=ago(5))).kind == "deleted"

    def test_a_service_that_somebody_stopped(self) -> None:
        found = cause(service=service(annotations={"serving.kserve.io/stop": "true"}))
        assert (found.kind, found.fatal) == ("stopped", True)

    def test_a_controller_that_does_not_answer(self) -> None:
        assert find(service=service(conditions=[], age=29)).cause is None
        found = cause(service=service(conditions=[], age=31))
        assert (found.kind, found.fatal) == ("kserve_silent", False)

    @pytest.mark.parametrize(("age", "fatal"), [(29, False), (31, True)])
    def test_a_specification_that_kserve_refuses(self, age: float, fatal: bool) -> None:
        refused = service(managedFields=[{"time": ago(age)}, {"time": ago(1), "subresource": "status"}])
        failure = {"reason": "RuntimeNotRecognized", "message": "no such runtime"}
        refused["status"]["modelStatus"] = {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure}
        found = cause(service=refused)
        assert (found.kind, found.fatal) == ("kserve_error", fatal)
        assert "no such runtime" in found.message

    def test_errors_of_the_controller(self) -> None:
        said = 'fails to reconcile predictor: Deployment.apps "llm-predictor" is invalid: spec.template: odd'

        def told(message: str, first: float = 60) -> Finding:
            about = event("InternalError", message, kind="InferenceService", name="llm", first=first, age=5)
            return find(events=(about,))

        found = told(said).cause
        assert found is not None
        assert (found.kind, found.fatal) == ("kserve_error", True)
        assert told("the object has been modified; please apply your changes").cause is None
        assert (told("fails to reconcile predictor: timeout").cause or found).fatal is False

    def test_a_condition_with_words_is_passed_on(self) -> None:
        failed = condition("IngressReady", "False", reason="IngressError", message="no gateway class")
        found = cause(service=service(conditions=[failed]))
        assert (found.kind, found.fatal) == ("kserve_error", False)
        assert "IngressReady is False: no gateway class" in found.message

    def test_the_progress_deadline_alone_ends_nothing(self) -> None:
        late = condition("Progressing", "False", reason="ProgressDeadlineExceeded", message="timed out")
        found = cause(pods=(pod(),), deployments=(deployment(conditions=[late], availableReplicas=0),))
        assert (found.kind, found.fatal) == ("progress_deadline", False)
