"""Python source with less in it: what only people and type checkers read stays at home."""

import ast
import io
import tokenize
from collections.abc import Iterator


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
