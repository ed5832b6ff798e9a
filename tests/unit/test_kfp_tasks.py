"""Task details as Kubeflow gives them become steps, states and pods."""

from typing import Any

import pytest

from pipelines.remote.parameters import Package
from pipelines.remote.tasks import pods_of, step_states, steps_of
from tests.servers.kfp.script import Frame, pod_name, task_details

CLIENT = steps_of(Package.named("batch_client").spec)
WHOLE = steps_of(Package.named("batch_inference").spec)


def names(pipeline: str) -> list[str]:
    return [step.task for step in steps_of(Package.named(pipeline).spec)]


def test_the_steps_of_nested_pipelines_stand_in_the_order_in_which_they_run() -> None:
    found = names("batch_client")
    order = ["check-prompts", "resolve-endpoint", "plan-shards", "run-shard", "merge-shards", "gate"]
    assert [name for name in found if name in order] == order
    assert names("batch_inference")[-1] == "release-service"
    titles = [step.title for step in CLIENT]
    assert titles[:3] == ["Bring engine code", "Bring prompts code", "Bring stores code"]
    assert titles[3:5] == ["Check prompts", "Resolve endpoint"]


def test_a_step_is_running_while_one_of_its_shards_is() -> None:
    frame = Frame(steps={"check-prompts": "SUCCEEDED", "run-shard": ["SUCCEEDED", "FAILED", "RUNNING", "PENDING"]})
    states = {each.step.task: each for each in step_states(CLIENT, task_details("wf", frame, with_pod_names=True))}
    assert states["check-prompts"].state == "SUCCEEDED"
    assert states["check-prompts"].has_ended
    assert states["run-shard"].state == "RUNNING"
    assert states["run-shard"].counts == {"SUCCEEDED": 1, "FAILED": 1, "RUNNING": 1}
    assert states["gate"].state == ""


def test_a_failed_shard_shows_once_none_runs_any_more() -> None:
    frame = Frame(steps={"run-shard": ["SUCCEEDED", "FAILED"]}, errors={"run-shard": "OOMKilled  (exit code 137)"})
    states = step_states(CLIENT, task_details("wf", frame, with_pod_names=True))
    (shard,) = [each for each in states if each.step.task == "run-shard"]
    assert (shard.state, shard.error) == ("FAILED", "OOMKilled (exit code 137)")


def test_a_step_whose_driver_runs_waits() -> None:
    states = step_states(CLIENT, task_details("wf", Frame(steps={"check-prompts": "PENDING"}), with_pod_names=True))
    assert {state.state for state in states if state.step.title == "Check prompts"} == {"PENDING"}


@pytest.mark.parametrize("retried", [False, True])
@pytest.mark.parametrize("with_pod_names", [False, True])
def test_the_pod_of_each_shard_is_found_whether_or_not_the_server_names_it(retried: bool, with_pod_names: bool) -> None:
    frame = Frame(steps={"check-prompts": "SUCCEEDED", "run-shard": ["SUCCEEDED", "RUNNING"]})
    retry = ("run-shard",) if retried else ()
    pods = pods_of(CLIENT, task_details("wf", frame, with_pod_names=with_pod_names, with_retry=retry))
    assert [pod.step.task for pod in pods] == ["check-prompts", "run-shard", "run-shard"]
    assert pod_name("wf", "check-prompts") in pods[0].names
    if with_pod_names or not retried:  # else the attempt's number is nowhere to be read
        for shard in (0, 1):
            assert pod_name("wf", "run-shard", shard, retried=retried) in pods[1 + shard].names
    if with_pod_names:
        assert all(len(pod.names) == 1 for pod in pods)


def test_details_that_are_strange_do_no_harm() -> None:
    strange: list[dict[str, Any]] = [
        {},
        {"display_name": "gate", "child_tasks": [{}, {"pod_name": "x"}]},
        {"display_name": None},
    ]
    assert pods_of(CLIENT, strange)[0].names == ("-system-container-impl-x", "-retry-system-container-impl-x")
    assert all(not each.has_ended for each in step_states(WHOLE, strange))
