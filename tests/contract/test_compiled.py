"""What the compiled YAML promises to Kubeflow: the file that people upload and that a local run executes."""

import ast
import functools
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components._bare_source import shipped, without_comments
from components._embedding import embedded_modules, unpack
from components._factory import CODE_PACKAGES, ENGINE_PACKAGES, IMAGE, RESULTS_PACKAGES, SERVING_PACKAGES
from pipelines.catalog import COMPILED, pipelines

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(COMPILED.glob("*.yaml"))

#: Parameters that are the names of Secrets, not what is in them.
SECRET_NAMES = ("hf_secret", "storage_secret", "endpoint_secret", "langfuse_secret")

#: Linux refuses one argument above 128 KiB, and the backend passes the same text on to its driver once more.
ARGUMENT_BUDGET = 32_000

#: A driver's pod gets the container twice in one variable, next to some 10 kB; Linux refuses it above 128 KiB, and only
#: later versions of Argo, with a right that Kubeflow does not give it, put it into a ConfigMap.
WHOLE_BUDGET = 32_000


@functools.cache
def spec(path: Path) -> dict[str, Any]:
    return next(yaml.load_all(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def executors(path: Path) -> dict[str, dict[str, Any]]:
    return {name: executor["container"] for name, executor in spec(path)["deploymentSpec"]["executors"].items()}


def tasks(node: Any) -> Iterator[dict[str, Any]]:
    """Every task of every DAG, nested ones included."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "tasks":
                yield from value.values()
            yield from tasks(value)


def parameters(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "parameters" and isinstance(value, dict):
                yield from value
            yield from parameters(value)


def brought(container: dict[str, Any]) -> dict[str, str]:
    """The modules that stand in a step's own container."""
    (payload,) = re.findall(r'_BROUGHT = "([A-Za-z0-9+/=]*)"', container["command"][-1])
    return unpack(payload) if payload else {}


#: Steps that only bring code along.
BRINGERS = ("stores-code", "prompts-code", "engine-code", "serving-code")

#: From which steps a step has code; follows from the pipelines' sources.
BEFORE = {
    "check-prompts": ("stores-code", "prompts-code", "engine-code"),
    "resolve-endpoint": ("check-prompts",),
    "deploy-service": ("check-prompts", "serving-code"),
    "wait-service": ("check-prompts", "serving-code"),
    "plan-shards": ("check-prompts",),
    "run-shard": ("plan-shards",),
    "finish-shards": ("plan-shards",),
    "merge-shards": ("plan-shards",),
    "gate": ("plan-shards",),
}


def embedded(path: Path, step: str) -> dict[str, str]:
    """The modules that a step's pod has: its own, and those that were handed on to it."""
    found: dict[str, str] = {}
    todo = [step]
    while todo:
        one = todo.pop()
        own = brought(executors(path)[f"exec-{one}"])
        assert not own.keys() & found.keys(), "a module stands in the YAML twice"
        found |= own
        todo += BEFORE.get(one, ())
    return found


def steps_of(path: Path) -> list[str]:
    """The steps that do something with code of ours."""
    return [name for key in executors(path) if (name := key.removeprefix("exec-")) not in BRINGERS]


def code_sources(node: Any) -> Iterator[tuple[str, set[str]]]:
    """Each step that takes code, and the steps whose output that is; "" for the input of the pipeline around it."""
    for component in [node["root"], *node["components"].values()]:
        for step, task in component.get("dag", {}).get("tasks", {}).items():
            given = {
                name: source.get("taskOutputArtifact", {}).get("producerTask", "")
                for name, source in task.get("inputs", {}).get("artifacts", {}).items()
                if name == "code" or name.endswith("_code")
            }
            if given:
                yield step, set(given.values())


def producers(task: dict[str, Any]) -> set[str]:
    """The tasks whose outputs a task takes."""
    given = [source for kind in task.get("inputs", {}).values() for source in kind.values()]
    return {inner["producerTask"] for source in given for inner in source.values() if "producerTask" in inner}


def imported_modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_every_pipeline_of_the_catalog_is_compiled_and_nothing_else() -> None:
    assert {path.stem for path in FILES} == set(pipelines())


def test_the_compiled_files_are_what_the_source_compiles_to() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.compile", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.slow
def test_a_stale_file_is_noticed(tmp_path: Path) -> None:
    """The check is run on a copy of the project in which one embedded module has changed."""
    for folder in ("clients", "components", "pipelines", "compiled"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "clients/steps/gate.py").open("a") as file:
        file.write("# changed\n")
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.compile", "--check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "compiled/batch_inference.yaml is stale; run: python -m pipelines.compile" in done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestCompiledFile:
    """Each test holds for every compiled file."""

    def test_no_argument_is_near_the_limit_of_linux(self, path: Path) -> None:
        for name, container in executors(path).items():
            variables = [variable["value"] for variable in container.get("env", [])]
            sizes = [len(text.encode()) for text in [*container["command"], *container["args"], *variables]]
            assert max(sizes) <= ARGUMENT_BUDGET, name
            assert len(json.dumps(container)) <= WHOLE_BUDGET, name

    def test_nothing_is_cached(self, path: Path) -> None:
        found = list(tasks(spec(path)))
        assert len(found) >= 6
        assert not [task for task in found if task.get("cachingOptions", {}).get("enableCache")]

    def test_no_parameter_is_named_like_a_secret(self, path: Path) -> None:
        names = set(parameters(spec(path)))
        assert "prompts" in names
        assert not [
            name
            for name in names
            if re.search(r"secret|token|password|credential|api_?key", name)
            and name.removeprefix("pipelinechannel--") not in ("max_tokens", *SECRET_NAMES)
        ]

    def test_a_parameter_about_a_secret_is_the_name_of_one(self, path: Path) -> None:
        for component in [spec(path)["root"], *spec(path)["components"].values()]:
            for name, parameter in component.get("inputDefinitions", {}).get("parameters", {}).items():
                if name.endswith("_secret") and not name.startswith("pipelinechannel--"):
                    assert name in SECRET_NAMES
                    assert re.match("Name of (a|the) Secret", parameter["description"])

    def test_images_have_a_full_version_and_packages_an_exact_one(self, path: Path) -> None:
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", IMAGE)
        assert spec(path)["root"]["inputDefinitions"]["parameters"]["step_image"]["defaultValue"] == IMAGE
        for container in executors(path).values():
            install = container["command"][2]
            for requirement in re.findall(r"'([a-z-]+[=<>~!][^']*)'", install):
                assert "==" in requirement or requirement.startswith("typing-extensions"), requirement
        images = {container["image"] for container in executors(path).values()}
        assert all("step_image" in image for image in images), images

    def test_no_field_that_older_api_servers_refuse(self, path: Path) -> None:
        assert not re.search(r"ttlSeconds|activeDeadline", json.dumps(spec(path)))

    def test_every_pod_has_a_timeout(self, path: Path) -> None:
        _, platform = yaml.safe_load_all(path.read_text(encoding="utf-8"))
        found = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        hours = {step: int(config["activeDeadlineSeconds"]) / 3600 for step, config in found.items()}
        assert hours.keys() == executors(path).keys()
        assert all(hours["exec-run-shard"] > hours["exec-check-prompts"] > hours["exec-gate"] >= 1 for _ in hours)

    def test_only_the_exit_task_of_a_handler_ignores_failures_before_it(self, path: Path) -> None:
        """Kubeflow's compiler takes such a task out of its DAG and hangs it on those before it, unless that is a loop.

        What depends on such a task then depends on nothing that there is, and Argo refuses the workflow.
        """
        for component in [spec(path)["root"], *spec(path)["components"].values()]:
            listed = component.get("dag", {}).get("tasks", {})
            exits = {name for name, task in listed.items() if "strategy" in task.get("triggerPolicy", {})}
            assert exits <= {"release-service"}
            for name, task in listed.items():
                before = {*task.get("dependentTasks", ()), *producers(task)}
                assert not before & exits, name
                if name in exits:
                    assert all(one.startswith("exit-handler") for one in before)

    def test_a_shard_is_tried_again(self, path: Path) -> None:
        (loop,) = [component for name, component in spec(path)["components"].items() if name == "comp-for-loop-1"]
        assert loop["dag"]["tasks"]["run-shard"]["retryPolicy"]["maxRetryCount"] == 3

    def test_loop_bodies_take_no_parameter_of_an_upstream_task(self, path: Path) -> None:
        """In local runs such a parameter is silently replaced by the loop item; those of the pipeline are not."""
        own = {
            f"pipelinechannel--{name}"
            for name in spec(path)["components"]["comp-run-shards"]["inputDefinitions"]["parameters"]
        }
        for name, component in spec(path)["components"].items():
            if not name.startswith("comp-for-loop"):
                continue
            for task in component["dag"]["tasks"].values():
                for argument in task["inputs"].get("parameters", {}).values():
                    source = argument.get("componentInputParameter", "-loop-item")  # a constant is as harmless
                    assert source.endswith("-loop-item") or source in own, source

    def test_code_is_handed_on_as_these_tests_follow_it(self, path: Path) -> None:
        found = {step: sources for step, sources in code_sources(spec(path)) if step != "for-loop-1"}
        inner = {step: {""} for step, sources in BEFORE.items() if sources == ("plan-shards",)}  # by run-shards
        wanted = {step: set(sources) for step, sources in BEFORE.items() if f"exec-{step}" in executors(path)}
        assert found == {**wanted, **inner, "run-shards": {"plan-shards"}}

    def test_each_pod_has_the_modules_it_needs(self, path: Path) -> None:
        for step in steps_of(path):
            needed = embedded_modules(f"clients.steps.{step.replace('-', '_')}")
            found = embedded(path, step)
            assert {file: found.get(file) for file in needed} == {
                file: shipped(source) for file, source in needed.items()
            }, step

    def test_no_module_stands_in_the_yaml_that_no_step_needs(self, path: Path) -> None:
        steps = [step.replace("-", "_") for step in steps_of(path)]
        needed = {file for step in steps for file in embedded_modules(f"clients.steps.{step}")}
        assert {file for container in executors(path).values() for file in brought(container)} <= needed

    def test_each_pods_code_imports_alone(self, path: Path, tmp_path: Path) -> None:
        for step in steps_of(path):
            archive = tmp_path / f"{step}.zip"
            with zipfile.ZipFile(archive, "w") as opened:
                for file, source in embedded(path, step).items():
                    opened.writestr(file, source)
            module = f"clients.steps.{step.replace('-', '_')}"
            code = f"import {module} as m; assert m.__file__.startswith({str(archive)!r})"
            code = f"import sys; sys.path.insert(0, {str(archive)!r}); {code}"
            subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True)

    def test_each_pod_installs_what_its_code_imports(self, path: Path) -> None:
        """On a laptop everything is installed, so nothing else would notice."""
        brought_along = {"jsonschema": {"referencing"}}
        for step in steps_of(path):
            container = executors(path)[f"exec-{step}"]
            installed = set(re.findall(r"'([a-z0-9-]+)==", container["command"][2]))
            available = installed.union(*(brought_along.get(package, set()) for package in installed))
            imported = {
                module.split(".")[0]
                for source in embedded_modules(f"clients.steps.{step.replace('-', '_')}").values()
                for node in ast.walk(ast.parse(without_comments(source)))
                for module in imported_modules(node)
            }
            assert imported - sys.stdlib_module_names - {"clients"} <= available, step
            assert ("pyppmd" in installed) == bool(brought(container)), step

    def test_every_parameter_is_described(self, path: Path) -> None:
        found = spec(path)
        for name, parameter in found["root"]["inputDefinitions"]["parameters"].items():
            assert parameter.get("description"), name
        for name, component in found["components"].items():
            for parameter_name, parameter in component.get("inputDefinitions", {}).get("parameters", {}).items():
                assert parameter.get("description") or parameter_name.startswith("pipelinechannel--"), (
                    name,
                    parameter_name,
                )


def test_steps_that_touch_no_gpu_carry_no_engine() -> None:
    assert not [name for name in embedded_modules("clients.steps.gate") if name.startswith("clients/batch")]
    assert not [name for name in embedded_modules("clients.steps.run_shard") if "report" in name]


def test_pods_install_the_versions_that_are_tested() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert {*CODE_PACKAGES, *ENGINE_PACKAGES, *RESULTS_PACKAGES, *SERVING_PACKAGES} <= set(constraints)
