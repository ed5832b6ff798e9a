"""What travels to a pod is the source, less what only people read."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

from components._bare_source import without_comments, without_types
from components._embedding import pack, unpack

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "clients").rglob("*.py"))


def code(source: str) -> str:
    """The program with its line numbers, docstrings emptied."""
    return code_of(ast.parse(source))


def code_of(tree: ast.AST) -> str:
    """See `code`."""
    for node in ast.walk(tree):
        text = (
            node.body[0]
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            else None
        )
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
            text.value.value = ""
    return "\n".join(f"{getattr(node, 'lineno', 0)} {ast.dump(node)}" for node in ast.walk(tree))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_program_and_its_line_numbers_stay(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    bare = without_comments(source)
    assert code(bare) == code(source)
    assert "#" not in {token.string[:1] for token in tokenize.generate_tokens(io.StringIO(bare).readline)}


def test_text_that_looks_like_a_comment_stays() -> None:
    source = 'a = "# no comment"  # one\n\n\ndef f():\n    """Doc.\n\n    더.\n    """\n    return """#"""\n'
    assert without_comments(source) == 'a = "# no comment"\n\n\ndef f():\n    ""\n\n\n\n    return """#"""\n'


class WithoutTypes(ast.NodeTransformer):
    """The program as it is when functions say nothing about types, by Python's own parser."""

    def __init__(self) -> None:
        self._within = [""]

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            self._within.append(type(node).__name__)
            self.generic_visit(node)
            self._within.pop()
            return node
        self.generic_visit(node)
        in_function = self._within[-1].endswith("FunctionDef")
        if in_function and isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            return ast.copy_location(ast.Assign(targets=[node.target], value=node.value), node)
        return node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_without_types_the_program_and_its_line_numbers_stay(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert code(without_types(source)) == code_of(WithoutTypes().visit(ast.parse(source)))


@pytest.mark.parametrize(
    ("source", "bare"),
    [
        ("def f(a: int, *b: str, c: dict[str, int] = {}, **d: Any) -> None: ...", "def f(a, *b, c = {}, **d): ..."),
        ('def f(글: "글") -> "한글": ...', "def f(글): ..."),
        ("def f(\n    a: dict[\n        str, int\n    ] = {},\n) -> int: ...", "def f(\n    a\n\n = {},\n): ..."),
        ("def f():\n    a: int = 1\n    b: int\n    c.d: int = 1", "def f():\n    a = 1\n    b: int\n    c.d: int = 1"),
        ("class A:\n    a: int = 1\n    b: str", "class A:\n    a: int = 1\n    b: str"),
        ("a: int = 1\nf = lambda b: b", "a: int = 1\nf = lambda b: b"),
    ],
)
def test_types_of_functions_go_and_those_of_classes_stay(source: str, bare: str) -> None:
    assert without_types(source) == bare


def test_what_is_packed_is_read_back() -> None:
    modules = {"clients/__init__.py": "", "clients/글.py": 'a = "한글"\n' * 1000}
    text = pack(modules)
    assert unpack(text) == modules
    assert text == pack(dict(reversed(modules.items())))
    assert len(text) < 500
