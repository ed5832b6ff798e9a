"""How a step becomes a KFP component: one image, pinned packages, and the code it needs embedded canonically.

A component carries the modules of `clients/` that its step imports, and no others, inside the compiled YAML, so the
YAML needs no private image and no package of ours in an index. KFP can embed a folder itself, but its archive changes
with every compile (file times, owners, the gzip header); ours depends on the source alone.
"""

import ast
import base64
import bz2
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfp import dsl

#: Python of the pods. The laptop may run a newer one; the code is tested on 3.11.
IMAGE = "python:3.11.14-slim-bookworm"

#: What the engine's steps install, pinned as in constraints.txt (a test holds the two together).
ENGINE_PACKAGES = ("httptools==0.9.0", "orjson==3.13.0", "uvloop==0.23.0", "pyarrow==26.0.1", "jsonschema==4.26.0")
RESULTS_PACKAGES = ("orjson==3.13.0", "pyarrow==26.0.1")

_ROOT = Path(__file__).resolve().parent.parent

#: Runs in the pod before the component's own code. bz2 has one implementation, so its bytes are the same everywhere.
_PRELUDE = """
# The modules of clients/ that this step needs, as bz2-compressed JSON of name and source:
# {names}
import base64, bz2, json, pathlib, sys
_embedded = pathlib.Path(__file__).resolve().parent / "embedded"
for _name, _source in json.loads(bz2.decompress(base64.b64decode("{payload}"))).items():
    (_embedded / _name).parent.mkdir(parents=True, exist_ok=True)
    (_embedded / _name).write_text(_source, encoding="utf-8")
sys.path.insert(0, str(_embedded))
"""


def step(module: str, *, packages: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Make a function a component whose pod can import `module` and what that imports of `clients`.

    Args:
        module: The step, such as `clients.steps.gate`.
        packages: What the pod installs, as exact requirements. kfp itself is added by KFP.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        component = dsl.component(function, base_image=IMAGE, packages_to_install=list(packages))
        command = component.component_spec.implementation.container.command
        command[-1] = _prelude(module) + command[-1]
        return component

    return decorate


def embedded_modules(module: str) -> dict[str, str]:
    """The import closure of a module within `clients`: path below the root to source, sorted by path."""
    found: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        path = _path_of(name)
        if path is None or (key := path.relative_to(_ROOT).as_posix()) in found:
            continue
        found[key] = path.read_text(encoding="utf-8")
        todo.extend(_imports(found[key]))
        todo.extend(name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1))
    return dict(sorted(found.items()))


def _prelude(module: str) -> str:
    modules = embedded_modules(module)
    names = " ".join(modules)
    payload = bz2.compress(json.dumps(modules, ensure_ascii=False, sort_keys=True).encode(), 9)
    return _PRELUDE.replace("{names}", names).replace("{payload}", base64.b64encode(payload).decode())


def _imports(source: str) -> list[str]:
    """Names of `clients` modules that a source imports anywhere; a name that is no module is sorted out later."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "clients"]


def _path_of(name: str) -> Path | None:
    base = _ROOT.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
