"""What happens in a run, frame by frame, and how Kubeflow's API shows it: the nodes of an Argo workflow.

A node's id is `workflow-1234`, its pod's name `workflow-template-1234`. A step has a driver beside it and its pod in a
node `executor` below it. Servers from 2.15 on name pods, older ones name only the nodes of children.
"""

import dataclasses
import datetime as dt
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

#: States of a step: one word, or one for each of its shards.
States = Mapping[str, str | Sequence[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """How a run is at one look.

    Attributes:
        state: Of the run.
        steps: Steps that have begun and their states.
        logs: Step, or `step#shard`, and the events on its log so far.
        error: What the run's `error` says; "" for none.
        errors: Step and what its node's error says.
    """

    state: str = "RUNNING"
    steps: States = dataclasses.field(default_factory=dict)
    logs: Mapping[str, Sequence[Mapping[str, Any] | str]] = dataclasses.field(default_factory=dict)
    error: str = ""
    errors: Mapping[str, str] = dataclasses.field(default_factory=dict)


_TOOK = dt.timedelta(seconds=95)
_NOT_ENDED = "1970-01-01T00:00:00Z"
_BEGAN = "2026-11-25T13:00:00Z"


def number(*words: str) -> str:
    """The number at the end of a node's id, from what the node is."""
    return str(zlib.crc32("/".join(words).encode()))


def task_details(
    workflow: str, frame: Frame, *, with_pod_names: bool, with_retry: Sequence[str] = (), began: str = _BEGAN
) -> list[Any]:
    """The nodes of a run that began at a time, as the API lists them."""
    nodes = [_node(workflow, "", workflow, frame.state, [], with_pod_names), _driver(workflow, "root", with_pod_names)]
    for step, states in frame.steps.items():
        for shard, state in enumerate([states] if isinstance(states, str) else states):
            nodes += _step(workflow, step, shard, state, frame, with_pod_names, retried=step in with_retry)
    return [node | _times(began, node["state"]) for node in nodes]


def _times(began: str, state: str) -> dict[str, Any]:
    ended = (dt.datetime.fromisoformat(began) + _TOOK).isoformat().replace("+00:00", "Z")
    return {
        "create_time": began,
        "start_time": began,
        "end_time": _NOT_ENDED if state in ("RUNNING", "PENDING") else ended,
        "state_history": [{"update_time": began, "state": state}],
    }


def pod_name(workflow: str, step: str, shard: int = 0, *, retried: bool = False) -> str:
    """The name of the pod that runs a step."""
    if retried:
        return f"{workflow}-retry-system-container-impl-{number(step, str(shard), 'attempt')}"
    return f"{workflow}-system-container-impl-{number(step, str(shard), 'executor')}"


def log_text(frame: Frame, step: str, shard: int = 0) -> str | None:
    """What the pod of a step wrote so far, with what the launcher writes around it; None for no pod."""
    entries = frame.logs.get(f"{step}#{shard}", frame.logs.get(step) if shard == 0 else None)
    if entries is None:
        return None
    lines = [each if isinstance(each, str) else json.dumps(each) for each in entries]
    head = ["I1125 13:00:01.000000      18 launcher_v2.go:90] input ComponentSpec:{", "[KFP Executor INFO]: Looking"]
    return "\n".join([*head, *lines, ""])


def _step(
    workflow: str, step: str, shard: int, state: str, frame: Frame, with_pod_names: bool, *, retried: bool
) -> list[Any]:
    if state == "PENDING":
        return [_driver(workflow, step, with_pod_names, state="RUNNING")]
    executor = f"{workflow}-{number(step, str(shard), 'executor')}"
    attempt = f"{workflow}-{number(step, str(shard), 'attempt')}"
    nodes = [
        _driver(workflow, step, with_pod_names),
        _node(workflow, "system-container-executor", step, state, [executor], with_pod_names, (step, str(shard))),
        _node(
            workflow,
            "retry-system-container-impl" if retried else "system-container-impl",
            "executor",
            state,
            [attempt] if retried else [],
            with_pod_names,
            (step, str(shard), "executor"),
        ),
    ]
    if retried:
        identity = (step, str(shard), "attempt")
        template = "retry-system-container-impl"
        nodes.append(_node(workflow, template, "executor(0)", state, [], with_pod_names, identity))
    if message := frame.errors.get(step):
        nodes[1]["error"] = {"code": 13, "message": message}
    return nodes


def _driver(workflow: str, step: str, with_pod_names: bool, state: str = "SUCCEEDED") -> dict[str, Any]:
    return _node(workflow, "system-container-driver", f"{step}-driver", state, [], with_pod_names)


def _node(
    workflow: str,
    template: str,
    name: str,
    state: str,
    children: Sequence[str],
    with_pod_names: bool,
    identity: tuple[str, ...] = (),
) -> dict[str, Any]:
    own = number(*(identity or (name,)))
    found: dict[str, Any] = {
        "run_id": "",
        "task_id": f"00000000-0000-4000-8000-{int(own):012d}",
        "display_name": name,
        "state": state,
        "child_tasks": [{"pod_name": child} for child in children],
    }
    if with_pod_names:
        found["pod_name"] = f"{workflow}-{template}-{own}" if template else workflow
    return found
