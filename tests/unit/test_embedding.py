"""What travels to a pod is the source, less what only people read."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

from components._embedding import without_comments

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "clients").rglob("*.py"))


def code(source: str) -> str:
    """The program with its line numbers, docstrings emptied."""
    tree = ast.parse(source)
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
