"""The code of the steps: the modules of `clients/` that they import, within the compiled YAML.

So the YAML needs no private image and no package of ours in an index. KFP can embed a folder itself, but its archive
changes with every compile (file times, owners, the gzip header); ours depends on the source alone. Comments and
docstrings stay at home; lines keep their numbers, so a traceback from a pod names the line of the source.

A module stands in the YAML once. Kubeflow copies a step's container, code and all, some five times into the object
that describes a run, and Argo ends a run whose object grows beyond 1 MiB. What a driver's pod is handed, the container
twice, has to fit into one argument of Linux, 128 KiB. So early steps bring code along for later ones and hand it on as
an artifact, each a part that is far below these limits.
"""

import ast
import base64
import bz2
import inspect
import io
import json
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent

#: Runs in the pod before the component's own code. bz2 has one implementation, so its bytes are the same everywhere.
_PRELUDE = """
# Modules of clients/, without comments, as bz2-compressed JSON of name and source:
# {names}
_BROUGHT = "{payload}"

{use_code}
"""


def use_code(earlier: Any = None, kept: Any = None) -> None:
    """Make the code of a step importable in its pod, and hand it on; a component calls it first.

    It runs in pods only, where this source stands before the component's own.

    Args:
        earlier: Artifact with the code that earlier steps brought along; None for none.
        kept: Artifact that is to hold all of it, for later steps; None for none.
    """
    import base64
    import bz2
    import json
    import pathlib
    import shutil
    import sys
    import zipfile

    archive = pathlib.Path(__file__).resolve().parent / "code.zip"
    if earlier is not None:
        shutil.copyfile(earlier.path, archive)
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        brought = bz2.decompress(base64.b64decode(_BROUGHT)) if _BROUGHT else b"{}"
        for name, source in json.loads(brought).items():
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
    """What these modules import, but for what others import whose code is there already; without comments."""
    known = {name for module in there for name in embedded_modules(module)}
    found = {name: source for module in modules for name, source in embedded_modules(module).items()}
    return {name: without_comments(found[name]) for name in sorted(found.keys() - known)}


def prelude(modules: Mapping[str, str]) -> str:
    """Python source that a component's own follows, with the modules in it and `use_code`."""
    text = json.dumps(modules, ensure_ascii=False, sort_keys=True).encode()
    packed = base64.b64encode(bz2.compress(text, 9)).decode() if modules else ""
    source = without_comments(inspect.getsource(use_code)).replace(": Any", "")
    source = "\n".join(line for line in source.split("\n") if line.strip())
    filled = _PRELUDE.replace("{names}", " ".join(modules)).replace("{use_code}", source)
    return filled.replace("{payload}", packed)


def without_comments(source: str) -> str:
    """Python source without comments and docstrings, each line at its old number."""
    lines = source.split("\n")
    for first, start, last, instead in sorted([*_comments(source), *_docstrings(source)], reverse=True):
        lines[first - 1 : last] = [(lines[first - 1][:start] + instead).rstrip(), *[""] * (last - first)]
    return "\n".join(lines)


def _comments(source: str) -> Iterator[tuple[int, int, int, str]]:
    """Line and column where each begins, the line where it ends, and what stands there instead."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.start[1], token.end[0], ""


def _docstrings(source: str) -> Iterator[tuple[int, int, int, str]]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = node.body[0] if node.body else None
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
            yield text.lineno, text.col_offset, text.end_lineno or text.lineno, '""'


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
