"""The code that a component carries: the modules of `clients/` that its step imports, and no others.

It stands inside the compiled YAML, so the YAML needs no private image and no package of ours in an index. KFP can embed
a folder itself, but its archive changes with every compile (file times, owners, the gzip header); ours depends on the
source alone. Comments and docstrings stay at home, for Linux limits the length of an argument; lines keep their
numbers, so a traceback from a pod names the line of the source.
"""

import ast
import base64
import bz2
import io
import json
import tokenize
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent

#: Characters of the packed code that stand in the component's own source; the rest is an environment variable. Linux
#: limits each to 128 KiB, and half of that leaves room for what a backend adds.
_IN_SOURCE = 48_000

#: The environment variable with the rest.
CODE_VARIABLE = "KLLM_CODE"

#: Runs in the pod before the component's own code. bz2 has one implementation, so its bytes are the same everywhere.
_PRELUDE = """
# The modules of clients/ that this step needs, without comments, as bz2-compressed JSON of name and source:
# {names}
import base64, bz2, json, os, pathlib, sys
_packed = "{payload}" + os.environ.pop("KLLM_CODE", "")
_embedded = pathlib.Path(__file__).resolve().parent / "embedded"
for _name, _source in json.loads(bz2.decompress(base64.b64decode(_packed))).items():
    (_embedded / _name).parent.mkdir(parents=True, exist_ok=True)
    (_embedded / _name).write_text(_source, encoding="utf-8")
sys.path.insert(0, str(_embedded))
"""


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


def prelude(module: str) -> tuple[str, str]:
    """What makes `module` importable in a pod.

    Returns:
        Python source to run first, and the value of CODE_VARIABLE that it needs; "" for none.
    """
    modules = {name: without_comments(source) for name, source in embedded_modules(module).items()}
    names = " ".join(modules)
    packed = base64.b64encode(
        bz2.compress(json.dumps(modules, ensure_ascii=False, sort_keys=True).encode(), 9)
    ).decode()
    return _PRELUDE.replace("{names}", names).replace("{payload}", packed[:_IN_SOURCE]), packed[_IN_SOURCE:]


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
