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
import io
import json
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyppmd

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


def shipped(source: str) -> str:
    """Python source as a pod gets it: without comments, docstrings and the types of functions, lines as they were."""
    return without_types(without_comments(source))


def without_comments(source: str) -> str:
    """Python source without comments and docstrings, each line at its old number."""
    lines = source.split("\n")
    for first, start, last, instead in sorted([*_comments(source), *_docstrings(source)], reverse=True):
        lines[first - 1 : last] = [(lines[first - 1][:start] + instead).rstrip(), *[""] * (last - first)]
    return "\n".join(lines)


def without_blanks(source: str) -> str:
    """Python source without its empty lines, where the numbers of lines mean nothing to anybody."""
    return "\n".join(line for line in source.split("\n") if line.strip()) + "\n"


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


def without_types(source: str) -> str:
    """Python source without what functions say about the types of what they take, return and keep in variables.

    Those of classes stay: they make the fields of dataclasses.
    """
    lines = [line.encode() for line in source.split("\n")]
    for first, start, last, end in sorted(_types(source), reverse=True):
        if first == last:
            lines[first] = lines[first][:start] + lines[first][end:]
        else:
            lines[first] = lines[first][:start]
            lines[first + 1 : last] = [b""] * (last - first - 1)
            lines[last] = lines[last][end:]
    return b"\n".join(lines).decode()


def _types(source: str) -> Iterator[tuple[int, int, int, int]]:
    """Line (from 0) and byte where each begins, with its colon or arrow, and line and byte where it ends."""
    lines = source.encode().split(b"\n")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        named = node.args
        for one in [*named.posonlyargs, *named.args, *named.kwonlyargs, named.vararg, named.kwarg]:
            if one is not None and one.annotation is not None:
                start = one.col_offset + len(one.arg.encode())
                yield one.lineno - 1, start, *_end(one.annotation)
        if node.returns is not None:
            line = node.returns.lineno - 1
            arrow = lines[line].rfind(b"->", 0, node.returns.col_offset)
            if arrow >= 0 and node.returns.end_lineno == node.returns.lineno:
                yield line, len(lines[line][:arrow].rstrip()), *_end(node.returns)
        for inner in _own_statements(node):
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name) and inner.value is not None:
                yield inner.lineno - 1, inner.target.end_col_offset or 0, *_end(inner.annotation)


def _own_statements(function: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function, but for what stands in functions and classes inside it."""
    todo = list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        yield node
        todo += ast.iter_child_nodes(node)


def _end(node: ast.expr) -> tuple[int, int]:
    return (node.end_lineno or 0) - 1, node.end_col_offset or 0


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
