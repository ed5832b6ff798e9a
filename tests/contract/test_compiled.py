"""What the compiled YAML promises to Kubeflow: the file that people upload and that a local run executes."""

import ast
import base64
import bz2
import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components._embedding import CODE_VARIABLE, embedded_modules, without_comments
from components._factory import ENGINE_PACKAGES, IMAGE, RESULTS_PACKAGES, SERVING_PACKAGES
from pipelines.catalog import COMPILED, pipelines

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(COMPILED.glob("*.yaml"))

#: Parameters that are the names of Secrets, not what is in them.
SECRET_NAMES = ("hf_secret", "storage_secret", "endpoint_secret", "langfuse_secret")

#: Linux refuses one argument above 128 KiB, and the backend passes the same text on to its driver once more.
ARGUMENT_BUDGET = 64_000

#: The backend hands a step's whole container to its driver, as one argument.
WHOLE_BUDGET = 100_000


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


def embedded(container: dict[str, Any]) -> dict[str, str]:
    (payload,) = re.findall(r'_packed = "([A-Za-z0-9+/=]+)"', container["command"][-1])
    rest = {variable["name"]: variable["value"] for variable in container.get("env", [])}
    return json.loads(bz2.decompress(base64.b64decode(payload + rest.get(CODE_VARIABLE, ""))))


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
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", IMAGE)
        assert spec(path)["root"]["inputDefinitions"]["parameters"]["step_image"]["defaultValue"] == IMAGE
        for container in executors(path).values():
            install = container["command"][2]
            for requirement in re.findall(r"'([a-z-]+[=<>~!][^']*)'", install):
                assert "==" in requirement or requirement.startswith("typing-extensions"), requirement
        images = {container["image"] for container in executors(path).values()}
        assert all("step_image" in image for image in images), images

    def test_no_field_that_older_api_servers_refuse(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"ttlSeconds|activeDeadlineSeconds|activeDeadline", text)

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

    def test_each_step_embeds_the_modules_it_needs_and_no_others(self, path: Path) -> None:
        for name, container in executors(path).items():
            module = f"clients.steps.{name.removeprefix('exec-').replace('-', '_')}"
            assert embedded(container) == {
                name: without_comments(source) for name, source in embedded_modules(module).items()
            }

    def test_each_embedded_archive_imports_alone(self, path: Path, tmp_path: Path) -> None:
        for name, container in executors(path).items():
            for file, source in embedded(container).items():
                (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name / file).write_text(source, encoding="utf-8")
            module = f"clients.steps.{name.removeprefix('exec-').replace('-', '_')}"
            code = f"import {module} as m; assert m.__file__.startswith({str(tmp_path / name)!r})"
            code = f"import sys; sys.path.insert(0, {str(tmp_path / name)!r}); {code}"
            subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True)

    def test_each_pod_installs_what_its_code_imports(self, path: Path) -> None:
        """On a laptop everything is installed, so nothing else would notice."""
        brought_along = {"jsonschema": {"referencing"}}
        for name, container in executors(path).items():
            installed = set(re.findall(r"'([a-z0-9-]+)==", container["command"][2]))
            available = installed.union(*(brought_along.get(package, set()) for package in installed))
            imported = {
                module.split(".")[0]
                for source in embedded(container).values()
                for node in ast.walk(ast.parse(source))
                for module in imported_modules(node)
            }
            assert imported - sys.stdlib_module_names - {"clients"} <= available, name

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
    assert {*ENGINE_PACKAGES, *RESULTS_PACKAGES, *SERVING_PACKAGES} <= set(constraints)
