"""Steps of a compiled pipeline as pods: processes that share nothing but an object store.

A pod gets the code that stands in the YAML, an empty folder and the variables that a cluster would give it. What
Kubeflow's launcher does is done here: artifacts are brought to a pod, and kept once it has ended well.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from clients.events import parse

ROOT = Path(__file__).resolve().parents[2]

#: Where the launcher mounts artifacts is fixed in kfp; on this machine each pod has a place of its own.
_MOUNT = """
import os
from kfp.dsl.types import artifact_types
artifact_types._MINIO_LOCAL_MOUNT_PREFIX = os.environ["POD_MOUNT"] + "/minio/"
"""

_SECRETS = ("AWS_", "OPENAI_", "LANGFUSE_", "KLLM_", "COV_", "PYTHON", "KUBECONFIG")


@functools.cache
def compiled(name: str = "batch_client") -> dict[str, Any]:
    """The first document of a compiled pipeline."""
    text = (ROOT / f"compiled/{name}.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = next(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    return found


@dataclass(kw_only=True)
class Pod:
    """A step that has been started.

    Attributes:
        name: Also the access key by which the store knows it.
        log: What it wrote; read it after `wait`.
        code: Its exit code, after `wait`.
        outputs: Its output parameters, after it has ended well.
    """

    name: str
    process: subprocess.Popen[str]
    folder: Path
    uris: dict[str, str]
    log: str = ""
    code: int | None = None
    outputs: dict[str, Any] = field(default_factory=dict)

    def kill(self) -> None:
        """End it as an eviction without grace, or a dying node, would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, timeout_s: float = 90.0) -> "Pod":
        """Wait until it has ended."""
        try:
            self.log, _ = self.process.communicate(timeout=timeout_s)
        finally:
            self.kill()
            self.process.wait()
        self.code = self.process.returncode
        told = self.folder / "output.json"
        if self.code == 0 and told.exists():
            self.outputs = json.loads(told.read_text(encoding="utf-8")).get("parameterValues", {})
        return self

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it said of one kind."""
        return [event for line in self.log.splitlines() if (event := parse(line)) and event["event"] == name]

    @property
    def error(self) -> str:
        """The one line with which the step failed."""
        (event,) = self.events("step.failed")
        return str(event["error"])

    def artifact(self, name: str) -> Path:
        """An output artifact's file."""
        return self.folder / "minio" / self.uris[name].removeprefix("minio://")

    def metadata(self, name: str) -> dict[str, Any]:
        """What it says of an output artifact."""
        told = json.loads((self.folder / "output.json").read_text(encoding="utf-8"))
        found: dict[str, Any] = told["artifacts"][name]["artifacts"][0]["metadata"]
        return found


@dataclass(kw_only=True)
class Cluster:
    """A namespace whose pods reach one store and one model.

    Attributes:
        folder: For the pods' own folders.
        store_url: Where `minio://` leads to.
        endpoint: What `resolve_endpoint` returned.
        secrets: Environment of every pod beside the keys of Kubeflow's own store.
        keys: Whether there is a Secret with those keys.
    """

    folder: Path
    store_url: str
    endpoint: str
    secrets: dict[str, str] = field(default_factory=dict)
    keys: bool = True

    def start(
        self, step: str, name: str, *, run: str, root: str, inputs: dict[str, Any], artifacts: dict[str, Path]
    ) -> Pod:
        """Start a step.

        Args:
            step: Such as `run-shard`.
            name: Of the pod.
            run: Id of the run.
            root: URI below which Kubeflow keeps the artifacts of all runs of the pipeline.
            inputs: Its parameters.
            artifacts: Its input artifacts, from earlier pods.
        """
        component = compiled()["components"][f"comp-{step}"]
        container = compiled()["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        for inner in ("work", "start", "tmp"):
            (folder / inner).mkdir(parents=True)
        (folder / "start/sitecustomize.py").write_text(_MOUNT, encoding="utf-8")
        place = f"{root}/{run}/{step}/{name}"
        made = component.get("outputDefinitions", {}).get("artifacts", {})
        uris = {output: f"{place}/{output}" for output in made}
        for uri in uris.values():
            (folder / "minio" / uri.removeprefix("minio://")).parent.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {}
        for input_name, path in artifacts.items():
            uri = f"minio://inputs/{name}/{input_name}"
            target = folder / "minio" / uri.removeprefix("minio://")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            found[input_name] = {"artifacts": [_artifact(input_name, uri)]}
        told = {
            "inputs": {"parameterValues": inputs, "artifacts": found},
            "outputs": {
                "parameters": {"Output": {"outputFile": str(folder / "work/output")}},
                "artifacts": {
                    output: {"artifacts": [_artifact(output, uri) | {"type": made[output]["artifactType"]}]}
                    for output, uri in uris.items()
                },
                "outputFile": str(folder / "output.json"),
            },
        }
        command = [*container["command"][3:], *container["args"]]  # without the packages: they are installed
        assert command[0] == "sh"
        process = subprocess.Popen(
            [json.dumps(told) if text == "{{$}}" else text for text in command],
            cwd=folder / "work",
            env=self._environment(name, folder, container),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return Pod(name=name, process=process, folder=folder, uris=uris)

    def _environment(self, name: str, folder: Path, container: dict[str, Any]) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(_SECRETS)}
        keys = {"KLLM_STORE_ACCESS_KEY": name, "KLLM_STORE_SECRET_KEY": "secret"} if self.keys else {}
        return {
            **clean,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": str(folder / "start"),
            "POD_MOUNT": str(folder),
            "AWS_EC2_METADATA_DISABLED": "true",
            **keys,
            **self.secrets,
            **{variable["name"]: variable["value"] for variable in container.get("env", [])},
        }


def _artifact(name: str, uri: str) -> dict[str, Any]:
    return {"name": name, "type": {"schemaTitle": "system.Artifact"}, "uri": uri, "metadata": {}}


@dataclass(kw_only=True)
class Run:
    """One run of the batch client pipeline, step by step.

    Attributes:
        run: Its id.
        parameters: Of the pipeline, as far as they differ from the defaults.
    """

    cluster: Cluster
    run: str
    parameters: dict[str, Any]
    root: str = "minio://mlpipeline/v2/artifacts/batch-client"
    checked: Pod | None = None
    planned: Pod | None = None
    finished: Pod | None = None
    merged: Pod | None = None

    def check(self, name: str = "check") -> Pod:
        """Start the first step that does something; `checked` is what it left, once it has ended."""
        self.checked = self._start(
            "check-prompts",
            name,
            stores_code=self._brought("stores-code"),
            prompts_code=self._brought("prompts-code"),
            engine_code=self._brought("engine-code"),
        )
        return self.checked

    def plan(self, name: str = "plan") -> Pod:
        """Start the second."""
        code = _file(self.checked, "code")
        self.planned = self._start("plan-shards", name, checked=_file(self.checked, "checked"), code=code)
        return self.planned

    def specs(self) -> list[str]:
        """The strings that the shards' pods get."""
        assert self.planned is not None
        found = self.planned.outputs["Output"]
        specs: list[str] = found if isinstance(found, list) else json.loads(found)
        return specs

    def shard(self, number: int, name: str = "") -> Pod:
        """Start a shard's pod."""
        values = {"spec": self.specs()[number]}
        return self._start("run-shard", name or f"shard-{number}", values=values, code=self._code())

    def finish(self, name: str = "finish") -> Pod:
        """Start the step after the shards."""
        self.finished = self._start("finish-shards", name, plan=_file(self.planned, "plan"), code=self._code())
        return self.finished

    def merge(self, name: str = "merge") -> Pod:
        """Start the step that joins the parts."""
        finished, part = _file(self.finished, "finished"), _file(self.finished, "part")
        self.merged = self._start("merge-shards", name, finished=finished, part=part, code=self._code())
        return self.merged

    def gate(self, name: str = "gate") -> Pod:
        """Start the last step."""
        assert self.merged is not None
        return self._start("gate", name, values={"summary": self.merged.outputs["Output"]}, code=self._code())

    def to_plan(self) -> None:
        """Let the first two steps happen."""
        for begin in (self.check, self.plan):
            _well(begin())

    def to_shards(self) -> None:
        """Let the steps up to the shards happen, side by side as in a cluster."""
        self.to_plan()
        for pod in [self.shard(number) for number in range(len(self.specs()))]:
            _well(pod)

    def from_finish(self) -> Path:
        """Let the steps after the shards happen; returns the results' file."""
        for begin in (self.finish, self.merge, self.gate):
            _well(begin())
        return _file(self.merged, "results")

    def whole(self) -> Path:
        """Let all of it happen; returns the results' file."""
        self.to_shards()
        return self.from_finish()

    def _code(self) -> Path:
        return _file(self.planned, "more_code")

    def _brought(self, step: str) -> Path:
        """The code that a step brings along, which is the same in every run."""
        path = self.cluster.folder / f"{step}.zip"
        if not path.is_file():
            pod = self._start(step, step)
            _well(pod)
            shutil.copyfile(pod.artifact("code"), path)
        return path

    def _start(self, step: str, name: str, *, values: dict[str, Any] | None = None, **artifacts: Path) -> Pod:
        return self.cluster.start(
            step,
            f"{self.run}-{name}",
            run=self.run,
            root=self.root,
            inputs=self._inputs(step) | (values or {}),
            artifacts=artifacts,
        )

    def _inputs(self, step: str) -> dict[str, Any]:
        """What the pipeline would hand to a step: its own parameters, by their names."""
        wanted = compiled()["components"][f"comp-{step}"].get("inputDefinitions", {}).get("parameters", {})
        given = compiled()["root"]["inputDefinitions"]["parameters"]
        defaults = {name: one["defaultValue"] for name, one in given.items() if "defaultValue" in one}
        known = {
            **defaults,
            "store_endpoint": self.cluster.store_url,
            "endpoint": self.cluster.endpoint,
            "run": self.run,
            **self.parameters,
        }
        return {name: known[name] for name in wanted if name in known}


def _well(pod: Pod) -> None:
    pod.wait()
    assert pod.code == 0, pod.log


def _file(pod: Pod | None, name: str) -> Path:
    assert pod is not None
    return pod.artifact(name)
