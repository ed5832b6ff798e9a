"""What a Kubeflow Pipelines API keeps, and what it refuses, by the rules of the real one (2.14 to 2.17)."""

import dataclasses
import datetime as dt
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from google.protobuf import json_format  # type: ignore[import-untyped]
from kfp.pipeline_spec import pipeline_spec_pb2

from tests.servers.kfp.script import Frame, log_text, pod_name, task_details


class RefusedError(Exception):
    """The API says no.

    Attributes:
        status: HTTP status.
        code: gRPC code in the body.
    """

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def invalid(message: str) -> RefusedError:
    return RefusedError(400, 3, f"Invalid input error: {message}")


def not_found(kind: str, name: str) -> RefusedError:
    return RefusedError(404, 5, f"ResourceNotFoundError: {kind} {name} not found.")


@dataclasses.dataclass
class Run:
    """A run and what will happen in it."""

    body: dict[str, Any]
    frames: list[Frame]
    workflow: str
    looks: int = 0
    ended_by_hand: str = ""

    @property
    def frame(self) -> Frame:
        return self.frames[min(max(self.looks - 1, 0), len(self.frames) - 1)]


@dataclasses.dataclass
class Store:
    """Everything that was created.

    Attributes:
        multi_user: Whether namespaces are needed.
        namespaces: Those the person may use, where they are needed.
        script: What happens in a run, from its request.
        with_pod_names: Whether task details name pods.
        with_retry: Steps whose pods are attempts of a retry.
        macros: Whether macros such as [[CurrentTime]] are replaced in the runs of a schedule, as from 2.16 on.
    """

    multi_user: bool = False
    namespaces: Sequence[str] = ("ml",)
    script: Callable[[Mapping[str, Any]], list[Frame]] = lambda _: [Frame(state="SUCCEEDED")]
    with_pod_names: bool = True
    with_retry: Sequence[str] = ()
    macros: bool = True
    experiments: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._clock = dt.datetime.now(dt.UTC).replace(microsecond=0)

    def new_id(self) -> str:
        return f"{next(self._numbers):08x}-0000-4000-8000-000000000000"

    def now(self) -> str:
        """Each thing is a second younger than the one before."""
        self._clock += dt.timedelta(seconds=1)
        return self._clock.isoformat().replace("+00:00", "Z")

    # ------------------------------------------------------------ namespaces

    def check_namespace(self, namespace: str) -> str:
        if not self.multi_user:
            if namespace:
                raise invalid("In single-user mode, resources cannot be filtered by namespace")
            return "kubeflow"
        if not namespace:
            raise invalid("Namespace cannot be empty in multi-user mode")
        if namespace not in self.namespaces:
            message = f"User 'ann@example.com' is not authorized with reason:  (request: namespace {namespace})"
            raise RefusedError(403, 7, f"PermissionDenied: {message}")
        return namespace

    # ----------------------------------------------------------- experiments

    def create_experiment(self, body: dict[str, Any]) -> dict[str, Any]:
        namespace = self.check_namespace(body.get("namespace", ""))
        name = body.get("display_name")
        if not name:
            raise invalid("Experiment name is empty")
        if any(each["display_name"] == name and each["namespace"] == namespace for each in self.experiments.values()):
            raise RefusedError(409, 6, f"Already exist error: The name {name} already exists.")
        made = {
            "experiment_id": self.new_id(),
            "display_name": name,
            "namespace": namespace,
            "created_at": self.now(),
            "storage_state": "AVAILABLE",
        }
        self.experiments[made["experiment_id"]] = made
        return made

    # -------------------------------------------------------------- pipelines

    def create_pipeline(self, body: dict[str, Any]) -> dict[str, Any]:
        namespace = self.check_namespace(body.get("namespace", ""))
        name = body.get("name") or body.get("display_name")
        if any(each["name"] == name and each["namespace"] == namespace for each in self.pipelines.values()):
            raise RefusedError(409, 6, f"Already exist error: pipeline {name}")
        made: dict[str, Any] = {
            "pipeline_id": self.new_id(),
            "name": name,
            "display_name": body.get("display_name") or name,
            "description": body.get("description", ""),
            "namespace": namespace,
            "created_at": self.now(),
        }
        self.pipelines[made["pipeline_id"]] = made
        return made

    def create_version(self, pipeline: str, name: str, description: str, data: bytes) -> dict[str, Any]:
        if pipeline not in self.pipelines:
            raise not_found("Pipeline", pipeline)
        if any(each["name"] == name and each["pipeline_id"] == pipeline for each in self.versions.values()):
            raise RefusedError(409, 6, f"Already exist error: pipeline version {name}")
        documents = list(yaml.safe_load_all(data))
        spec = documents[0] if len(documents) == 1 else {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        check_spec(spec)
        made: dict[str, Any] = {
            "pipeline_id": pipeline,
            "pipeline_version_id": self.new_id(),
            "name": name,
            "display_name": name,
            "description": description,
            "pipeline_spec": spec,
            "created_at": self.now(),
        }
        self.versions[made["pipeline_version_id"]] = made
        return made

    # ------------------------------------------------------------------- runs

    def create_run(self, body: dict[str, Any]) -> dict[str, Any]:
        spec = self._spec_of(body)
        check_arguments(spec, (body.get("runtime_config") or {}).get("parameters") or {})
        self._check_experiment(body)
        run = self.new_id()
        made = {**body, "run_id": run, "created_at": self.now(), "storage_state": "AVAILABLE"}
        title = (spec.get("pipeline_spec") or spec)["pipelineInfo"]["name"]
        self.runs[run] = Run(made, self.script(body), f"{title}-{run[:5]}")
        return self.shown(run)

    def look(self, run: str) -> dict[str, Any]:
        """As `shown`, and the run goes on to its next frame."""
        if run not in self.runs:
            raise not_found("Run", run)
        self.runs[run].looks += 1
        return self.shown(run)

    def shown(self, run: str) -> dict[str, Any]:
        found = self.runs[run]
        frame = found.frame
        body = {**found.body, "state": found.ended_by_hand or frame.state}
        if frame.error:
            body["error"] = {"code": 13, "message": frame.error}
        if found.looks:
            details = task_details(
                found.workflow,
                frame,
                with_pod_names=self.with_pod_names,
                with_retry=self.with_retry,
                began=body["created_at"],
            )
            body["run_details"] = {"task_details": details}
        # Through JSON and protobuf, whole numbers may come back with a point.
        config = json.loads(json.dumps(body.get("runtime_config") or {}), parse_int=float)
        return {**body, "runtime_config": config}

    def log(self, run: str, pod: str) -> str | None:
        found = self.runs.get(run)
        if found is None:
            return None
        for step, states in found.frame.steps.items():
            for shard in range(1 if isinstance(states, str) else len(states)):
                if pod == pod_name(found.workflow, step, shard, retried=step in self.with_retry):
                    return log_text(found.frame, step, shard)
        return None

    # --------------------------------------------------------- recurring runs

    def create_recurring(self, body: dict[str, Any]) -> dict[str, Any]:
        self._check_experiment(body)
        spec = self._spec_of(body)
        check_arguments(spec, (body.get("runtime_config") or {}).get("parameters") or {})
        if not 1 <= int(body.get("max_concurrency") or 0) <= 10:
            raise invalid("Max concurrency of a recurring run must be at leas 1 and at most 10")
        check_cron(body.get("trigger", {}).get("cron_schedule", {}).get("cron", ""))
        if body.get("mode") not in ("ENABLE", "DISABLE"):
            raise invalid("Recurring run's mode is not specified")
        made = {**body, "recurring_run_id": self.new_id(), "created_at": self.now(), "updated_at": self.now()}
        made["max_concurrency"] = str(body["max_concurrency"])
        made["status"] = "ENABLED" if body["mode"] == "ENABLE" else "DISABLED"
        made["namespace"] = self.experiments[body["experiment_id"]]["namespace"]
        self.recurring[made["recurring_run_id"]] = made
        return made

    def set_mode(self, recurring: str, mode: str) -> None:
        if recurring not in self.recurring:
            raise not_found("RecurringRun", recurring)
        self.recurring[recurring] |= {"mode": mode, "status": f"{mode}D", "updated_at": self.now()}

    @property
    def enabled(self) -> list[str]:
        """Ids of the recurring runs that fire."""
        return [name for name, each in self.recurring.items() if each["mode"] == "ENABLE"]

    def fire(self, recurring: str) -> str:
        """Let a recurring run make a run, as its schedule would."""
        made = self.recurring[recurring]
        keys = ("experiment_id", "runtime_config", "pipeline_version_reference", "pipeline_spec")
        body = json.loads(json.dumps({key: made[key] for key in keys if key in made}))
        if self.macros:
            parameters = body["runtime_config"]["parameters"]
            today = f"{self._clock:%Y-%m-%d}"
            for name, value in parameters.items():
                if isinstance(value, str):
                    parameters[name] = value.replace("[[CurrentTime.2006-01-02]]", today)
        run = self.create_run({**body, "display_name": f"{made['display_name']}-run"})["run_id"]
        self.runs[run].body["recurring_run_id"] = recurring
        return str(run)

    # ---------------------------------------------------------------- checks

    def _check_experiment(self, body: Mapping[str, Any]) -> None:
        if body.get("experiment_id") not in self.experiments:
            raise not_found("Experiment", str(body.get("experiment_id")))

    def _spec_of(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if reference := body.get("pipeline_version_reference"):
            found = self.versions.get(reference.get("pipeline_version_id", ""))
            if found is None or found["pipeline_id"] != reference.get("pipeline_id"):
                raise not_found("PipelineVersion", str(reference))
            return dict(found["pipeline_spec"])
        if not body.get("pipeline_spec"):
            raise invalid("Pipeline spec source is missing")
        check_spec(body["pipeline_spec"])
        return dict(body["pipeline_spec"])


def check_spec(spec: Mapping[str, Any]) -> None:
    """Parse a pipeline as strictly as the server does."""
    try:
        json_format.ParseDict(dict(spec.get("pipeline_spec") or spec), pipeline_spec_pb2.PipelineSpec())
        json_format.ParseDict(dict(spec.get("platform_spec") or {}), pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise invalid(f"Failed to parse the pipeline spec: {error}") from error
    executors = (spec.get("pipeline_spec") or spec).get("deploymentSpec", {}).get("executors", {})
    platforms = (spec.get("platform_spec") or {}).get("platforms", {})
    for name in platforms.get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {}):
        if name not in executors:
            raise invalid(f"the platform spec is about {name}, which the pipeline does not have")


def check_arguments(spec: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Refuse a missing parameter. Unknown ones pass, as on the real server."""
    inner = spec.get("pipeline_spec") or spec
    for name, definition in inner["root"].get("inputDefinitions", {}).get("parameters", {}).items():
        if name not in arguments and not definition.get("isOptional") and "defaultValue" not in definition:
            raise invalid(f"parameter {name} is not optional, yet has neither default value nor user provided value")


def check_cron(text: str) -> None:
    """Refuse what robfig/cron version 1 refuses. Five fields pass, and are read with the seconds first."""
    if text.startswith("@"):
        return
    fields = text.split()
    if not 5 <= len(fields) <= 6:
        raise invalid(f"Schedule cron is not a supported format. Error: Expected 5 to 6 fields, found {len(fields)}")
    bounds = [(0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
    names = re.compile(r"\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|sun|mon|tue|wed|thu|fri|sat)\b", re.I)
    for field, (low, high) in zip(fields, bounds, strict=False):
        for part in field.split(","):
            span = names.sub("", part.partition("/")[0])
            ends = [int(end) for end in span.split("-") if end.isdecimal()]
            if any(not low <= end <= high for end in ends) or ends != sorted(ends):
                raise invalid(
                    f"Schedule cron is not a supported format. Error: range {part} is not within {low}-{high}"
                )
