"""Who may import whom: pipelines -> components -> kfp, and inside a component's body clients."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("clients", "components", "pipelines") for path in (ROOT / folder).rglob("*.py"))

#: Entry points and what only they use; no pod ever imports these.
LAPTOP_ONLY = (
    "api",
    "display",
    "preflight_view",
    "wide_help",
    "workplace",
    "local_server",
    "local_model",
    "local_cache",
    "local_server_process",
)

#: Ranks within clients: a module may import modules of its own rank or lower ones.
RANKS = {
    "errors": 0,
    "records": 0,
    "endpoint": 0,
    "events": 0,
    "storage": 1,
    "models": 1,
    "prompts": 2,
    "results": 2,
    "serving": 2,
    "tracing": 2,
    "batch": 3,
    "steps": 4,
}


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield node.module or ""


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_imports_only_what_stands_below_it(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    found = set(imports(path))
    forbidden = {"clients": ("kfp", "components", "pipelines"), "components": ("pipelines",), "pipelines": ()}[package]
    assert not [name for name in found if name.split(".")[0] in forbidden]
    if package == "components":
        allowed = {"kfp", "typing", "components"} | (
            {
                "ast",
                "base64",
                "inspect",
                "io",
                "json",
                "shutil",
                "sys",
                "tokenize",
                "collections",
                "pathlib",
                "pyppmd",
                "zipfile",
            }
            if path.name.startswith("_")
            else set()
        )
        assert {name.split(".")[0] for name in imports(path, top_level_only=True)} <= allowed
    if package in ("components", "pipelines"):
        assert "__future__" not in found, "artifact annotations stop working when they are text"


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "clients"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_within_clients_the_rooms_are_in_order(path: Path) -> None:
    own = path.relative_to(ROOT / "clients").parts[0].removesuffix(".py")
    if own in LAPTOP_ONLY or own not in RANKS or path.name in ("__main__.py", "arguments.py"):
        return
    for name in imports(path):
        if name.startswith("clients."):
            assert room(name) not in LAPTOP_ONLY, f"{path.name} runs in pods"
            assert RANKS[room(name)] <= RANKS[own], f"{own} may not know {room(name)}"


def test_only_the_edges_read_the_environment() -> None:
    edges = {
        "clients/batch/footprint.py",  # which allocator Arrow is to use
        "clients/steps/boundary.py",
        "clients/serving/__main__.py",
        "clients/langfuse_utils.py",  # the replay of traces, an entry point of its own
        "clients/openai_client.py",  # the one-prompt client, an entry point of its own
        "clients/query_vllm.py",
        "clients/local_cache.py",  # XDG_CACHE_HOME, and what pip inherits
        "clients/local_server.py",  # what the server process inherits
        "components/_embedding.py",  # in the text of the program that pods run first
        "pipelines/doctor.py",
        "pipelines/settings.py",
        "pipelines/local_run.py",  # what the runner process inherits
    }
    readers = {
        path.relative_to(ROOT).as_posix() for path in SOURCES if "os.environ" in path.read_text(encoding="utf-8")
    }
    assert readers <= edges


@pytest.mark.parametrize("package", ["clients", "components", "pipelines"])
def test_importing_a_package_imports_nothing_else(package: str) -> None:
    heavy = ("kfp", "aiohttp", "pyarrow", "openai")
    code = f"import sys, {package}; print(sum(name.split('.')[0] in {heavy} for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
