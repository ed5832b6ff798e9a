"""A schema check's findings in the words of the server.

A check may be stricter than the server and may word things as JSON Schema does: what is not about a field of the object
itself is left out here, and the rest is sorted into what the server tells apart.
"""

import re
from collections.abc import Iterable

_EXTRA = re.compile(r"^(?P<path>\S*): Additional properties are not allowed \((?P<names>.+) (?:was|were) unexpected\)$")
_UNKNOWN = re.compile(r"^(?P<path>\S+): unknown field$")
_TYPE = re.compile(r"^(?P<path>\S+): (?P<value>.+) is not of type (?P<types>.+)$", re.DOTALL)
_TWICE = re.compile(r"^(?P<path>\S+): (?:key|item) (?P<key>.+) stands there twice$")
_FIELD = re.compile(r"^\.?(metadata|spec|data|status)\b(?!\.(template|strategy|selector))")

UNKNOWN = "field not declared in schema"


def worded(problems: Iterable[str], *, loose: bool = False) -> list[str]:
    """Problems as `.path: words`; `loose` keeps those of a template too, for kinds that have one."""
    return [line for problem in problems if loose or _FIELD.match(problem) for line in _lines(problem)]


def _lines(problem: str) -> list[str]:
    if match := _EXTRA.match(problem):
        names = re.findall(r"'([^']*)'", match["names"])
        return [f"{_dotted(match['path'])}.{name}: {UNKNOWN}" for name in names]
    if match := _UNKNOWN.match(problem):
        return [f"{_dotted(match['path'])}: {UNKNOWN}"]
    if match := _TYPE.match(problem):
        wanted = "numeric (int or float)" if "integer" in match["types"] or "number" in match["types"] else None
        wanted = wanted or re.sub(r"[^a-z, ]", "", match["types"].replace("object", "map").replace("array", "list"))
        return [f"{_dotted(match['path'])}: expected {wanted}, got &value.valueUnstructured{{Value:{match['value']}}}"]
    if match := _TWICE.match(problem):
        return [f"{_dotted(match['path'])}: duplicate entries for key [{match['key']}]"]
    return [problem if problem.startswith(".") else f".{problem}"]


def _dotted(path: str) -> str:
    return path if path.startswith(".") else f".{path}"


def is_unknown(problem: str) -> bool:
    return problem.endswith(UNKNOWN)


def is_untyped(problem: str) -> bool:
    """Whether server-side apply cannot even read the object for it, and answers 500."""
    return is_unknown(problem) or ": expected " in problem or ": duplicate entries " in problem
