"""What a run's task details say: which step is how far, and in which pods.

Kubeflow 2.14 to 2.17 hands out the nodes of the Argo workflow as they are. A step `run-shard` is a node of that name,
once for each shard; beside it stands its driver `run-shard-driver`, and below it the node `executor` (with a retry
`executor(0)`, `executor(1)`, ...), whose pod runs our code. A child is named by its node, `workflow-1234`, and a pod by
its node and template, `workflow-system-container-impl-1234`; the number at the end is what they share.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: Templates of the node whose pod runs a step; tried where the server does not name pods.
_TEMPLATES = ("system-container-impl", "retry-system-container-impl")

ENDED = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})


@dataclasses.dataclass(frozen=True)
class Step:
    """A step as the pipeline defines it.

    Attributes:
        task: Its name in the pipeline and in Argo, such as run-shard.
        title: Its name for people, such as Run shard.
    """

    task: str
    title: str


@dataclasses.dataclass(frozen=True)
class Pod:
    """A pod that runs, or ran, a step.

    Attributes:
        names: Its name, or the names that it may have where the server does not tell.
        step: The step.
        state: The step's state, in Kubeflow's words.
    """

    names: tuple[str, ...]
    step: Step
    state: str


@dataclasses.dataclass(frozen=True)
class StepState:
    """How far a step is, over all its shards.

    Attributes:
        step: The step.
        state: RUNNING while one runs, then FAILED if one failed; in Kubeflow's words. "" while it has not begun.
        counts: States and how many shards are in each.
        started, ended: Times in RFC 3339; "" where there is none.
        error: What Kubeflow says went wrong; often "".
    """

    step: Step
    state: str
    counts: Mapping[str, int]
    started: str = ""
    ended: str = ""
    error: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens in it."""
        return self.state in ENDED


def steps_of(spec: Mapping[str, Any]) -> list[Step]:
    """The steps of a pipeline in the order in which they run, those of nested pipelines in their places."""
    inner = spec.get("pipeline_spec") or spec
    return list(_walk(inner["root"], inner.get("components") or {}))


def step_states(steps: Sequence[Step], details: Sequence[Mapping[str, Any]]) -> list[StepState]:
    """How far each step is."""
    nodes: dict[str, list[Mapping[str, Any]]] = {}
    for node in details:
        nodes.setdefault(str(node.get("display_name") or ""), []).append(node)
    return [_state_of(step, nodes.get(step.task, []), nodes.get(f"{step.task}-driver", [])) for step in steps]


def pods_of(steps: Sequence[Step], details: Sequence[Mapping[str, Any]]) -> list[Pod]:
    """The pods that run the steps, in the order of the steps."""
    by_number = {_number(str(node["pod_name"])): node for node in details if node.get("pod_name")}
    found: list[Pod] = []
    for step in steps:
        for node in details:
            if node.get("display_name") == step.task:
                found += [
                    Pod(names, step, str(node.get("state") or "")) for names in _pod_names(node, by_number, set())
                ]
    return found


def _walk(component: Mapping[str, Any], components: Mapping[str, Any]) -> Iterator[Step]:
    tasks = (component.get("dag") or {}).get("tasks") or {}
    for name in _in_order(tasks):
        task = tasks[name]
        inner = components.get(task["componentRef"]["name"]) or {}
        if "dag" in inner:
            yield from _walk(inner, components)
        else:
            yield Step(name, str((task.get("taskInfo") or {}).get("name") or name))


def _in_order(tasks: Mapping[str, Any]) -> list[str]:
    """Names of tasks, each after those it depends on."""
    done: list[str] = []
    waiting = list(tasks)
    while waiting:
        ready = [name for name in waiting if set(tasks[name].get("dependentTasks") or ()) <= set(done)]
        if not ready:
            return done + waiting
        done.append(ready[0])
        waiting.remove(ready[0])
    return done


def _state_of(step: Step, nodes: Sequence[Mapping[str, Any]], drivers: Sequence[Mapping[str, Any]]) -> StepState:
    counts: dict[str, int] = {}
    for node in nodes:
        state = str(node.get("state") or "")
        counts[state] = counts.get(state, 0) + 1
    failed_drivers = [driver for driver in drivers if driver.get("state") == "FAILED"]
    if failed_drivers:
        counts["FAILED"] = counts.get("FAILED", 0) + len(failed_drivers)
    elif not nodes and drivers:
        counts["PENDING"] = len(drivers)
    errors = [_error(node) for node in [*nodes, *failed_drivers]]
    return StepState(
        step,
        _joined(counts),
        counts,
        started=min((str(node.get("start_time") or "~") for node in nodes), default="").replace("~", ""),
        ended=max((str(node.get("end_time") or "") for node in nodes), default=""),
        error=next(filter(None, errors), ""),
    )


def _joined(counts: Mapping[str, int]) -> str:
    for state in ("RUNNING", "PENDING", "CANCELING", "PAUSED", "FAILED", "CANCELED", "SUCCEEDED", "SKIPPED"):
        if counts.get(state):
            return state
    return ""


def _error(node: Mapping[str, Any]) -> str:
    said = str((node.get("error") or {}).get("message") or "")
    for entry in node.get("state_history") or ():
        said = said or str((entry.get("error") or {}).get("message") or "")
    return " ".join(said.split())


def _pod_names(
    node: Mapping[str, Any], by_number: Mapping[str, Mapping[str, Any]], seen: set[str]
) -> Iterator[tuple[str, ...]]:
    for child in node.get("child_tasks") or ():
        name = str(child.get("pod_name") or "")
        if not name or name in seen:
            continue
        seen.add(name)
        known = by_number.get(_number(name))
        if known is None:
            workflow, _, number = name.rpartition("-")
            yield tuple(f"{workflow}-{template}-{number}" for template in _TEMPLATES)
        elif str(known.get("display_name") or "").startswith("executor"):
            attempts = [str(each.get("pod_name") or "") for each in known.get("child_tasks") or ()]
            attempts = [
                each
                for each in attempts
                if str(by_number.get(_number(each), {}).get("display_name") or "").startswith("executor(")
            ]
            if attempts:
                yield from _pod_names(known, by_number, seen)
            else:
                yield (str(known["pod_name"]),)


def _number(name: str) -> str:
    return name.rpartition("-")[2]
