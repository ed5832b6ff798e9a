"""The code of the steps: the modules of `clients/` that they import, within the compiled YAML.

So the YAML needs no private image and no package of ours in an index. KFP can embed a folder itself, but its archive
changes with every compile (file times, owners, the gzip header); ours depends on the source alone. Comments, docstrings
and what functions say about types stay at home; lines keep their numbers, so a traceback from a pod names the line of
the source.

A module stands in the YAML once. Kubeflow copies a step's container, code and all, some five times into the object
that describes a run, and Argo ends a run whose object grows beyond 1 MiB. What a driver's pod is handed, the container
twice, has to fit into one argument of Linux, 128 KiB. So early steps bring code along for later ones and hand it on as
an artifact, each a part that is far below these limits; and it is packed with PPMd, which makes of source a seventh
less than bz2 does.
"""

import ast
import base64
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyppmd

from components._bare_source import shipped, without_blanks

_ROOT = Path(__file__).resolve().parent.parent

#: How PPMd packs: so many characters of context, and memory for what it learned, here and in the pod.
_ORDER = 16
_MEMORY_BYTES = 16 << 20

#: Runs in the pod before the component's own code. PPMd has one implementation, so its bytes are the same everywhere.
_PRELUDE = """
# Modules of clients/ without comments: JSON of name and source, packed with PPMd (variant I, order 16, 16 MiB).
_BROUGHT = "{payload}"

{use_code}
"""


def use_code(*earlier: Any, kept: Any = None) -> None:
    """Make the code of a step importable in its pod, and hand it on; a component calls it first.

    It runs in pods only, where this source stands before the component's own.

    Args:
        earlier: Artifacts with the code that earlier steps brought along.
        kept: Artifact that is to hold all of it, for later steps; None for none.
    """
    import base64
    import json
    import pathlib
    import shutil
    import sys
    import zipfile

    archive = pathlib.Path(__file__).resolve().parent / "code.zip"
    modules: dict[str, bytes | str] = {}
    for artifact in earlier:
        with zipfile.ZipFile(artifact.path) as given:
            modules |= {name: given.read(name) for name in given.namelist()}
    if _BROUGHT:
        import pyppmd

        modules |= json.loads(pyppmd.decompress(base64.b64decode(_BROUGHT), max_order=16, mem_size=16 << 20))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, source in modules.items():
            opened.writestr(name, source)
    if kept is not None:
        shutil.copyfile(archive, kept.path)
    sys.path.insert(0, str(archive))


#: Stands for the code that a pod has; see `prelude`.
_BROUGHT = ""


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


def modules_to_bring(modules: Sequence[str], there: Sequence[str]) -> dict[str, str]:
    """What these modules import, but for what others import whose code is there already; as it is shipped."""
    known = {name for module in there for name in embedded_modules(module)}
    found = {name: source for module in modules for name, source in embedded_modules(module).items()}
    return {name: shipped(found[name]) for name in sorted(found.keys() - known)}


def prelude(modules: Mapping[str, str]) -> str:
    """Python source that a component's own follows, with the modules in it and `use_code`."""
    payload = pack(modules) if modules else ""
    source = shipped(inspect.getsource(use_code))
    filled = _PRELUDE.replace("{use_code}", without_blanks(source))
    return filled.replace("{payload}", payload)


def pack(modules: Mapping[str, str]) -> str:
    """Modules as text for a container."""
    text = json.dumps(modules, ensure_ascii=False, sort_keys=True)
    return base64.b64encode(pyppmd.compress(text.encode(), max_order=_ORDER, mem_size=_MEMORY_BYTES)).decode()


def unpack(payload: str) -> dict[str, str]:
    """The modules that `pack` made a text of, as a pod reads them."""
    text = pyppmd.decompress(base64.b64decode(payload), max_order=_ORDER, mem_size=_MEMORY_BYTES)
    found: dict[str, str] = json.loads(text)
    return found


def _imports(source: str) -> list[str]:
    """Names of `clients` modules that a source imports when it runs; a name that is no module is sorted out later."""
    names: list[str] = []
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
    return [name for name in names if name.split(".")[0] == "clients"]


def _path_of(name: str) -> Path | None:
    base = _ROOT.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
