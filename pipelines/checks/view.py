"""How the checks are shown: a line each, and under it how to mend what is not well."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from pipelines.checks.verdict import Check, Status

_STYLES = {
    Status.OK: ("✓", "+", "green"),
    Status.WARNING: ("!", "!", "yellow"),
    Status.FAILED: ("✗", "x", "bold red"),
    Status.UNKNOWN: ("?", "?", "cyan"),
    Status.SKIPPED: ("·", "-", "dim"),
}

_NAME_CELLS = 18

#: Cells before what was found: symbol, word, name, and the gaps.
_INDENT = 2 + 9 + _NAME_CELLS + 1

#: Cells before how to mend it.
_MEND_INDENT = 11


def print_checks(checks: Sequence[Check], console: Console, *, where: Mapping[str, str]) -> None:
    """Print where was looked, the checks, and how many went how.

    Args:
        checks: In the order of the screen.
        console: Where to.
        where: `context` and `namespace`; empty when nothing was looked at.
    """
    if where:
        console.print(Text(f"Context {where['context']}, namespace {where['namespace']}", style="bold"), soft_wrap=True)
        console.print()
    for check in checks:
        _print(check, console)
    console.print()
    console.print(_summary(checks))


def _print(check: Check, console: Console) -> None:
    verdict = check.verdict
    symbol, plain, style = _STYLES[verdict.status]
    first, *rest = _wrapped(verdict.found, console.width - _INDENT)
    mark = plain if console.options.ascii_only else symbol
    line = Text.assemble((f"{mark} {verdict.status:<9}", style), f"{check.name:<{_NAME_CELLS}} {first}")
    console.print(line, soft_wrap=True)
    for more in rest:
        console.print(Text(" " * _INDENT + more), soft_wrap=True)
    indent = " " * _MEND_INDENT
    mend = f"{verdict.mend}:" if verdict.command else verdict.mend
    arrow = "->" if console.options.ascii_only else "→"
    for number, words in enumerate(_wrapped(f"{arrow} {mend}", console.width - _MEND_INDENT) if verdict.mend else []):
        console.print(Text(f"{indent}{'  ' if number else ''}{words}", style="dim"), soft_wrap=True)
    if verdict.command:  # never wrapped by us: it is there to be copied
        console.print(Text(f"{indent}  {verdict.command}", style="bold"), soft_wrap=True)
    for detail in verdict.details:
        console.print(Text(f"{indent}  {detail}"), soft_wrap=True)


def _wrapped(words: str, cells: int) -> list[str]:
    return textwrap.wrap(words, max(24, cells - 2), break_long_words=False, break_on_hyphens=False) or [""]


def _summary(checks: Sequence[Check]) -> Text:
    counts = Counter(check.verdict.status for check in checks)
    line = Text()
    for status in Status:
        if counts[status]:
            line.append(", " if line.plain else "")
            line.append(f"{counts[status]} {status}", style=_STYLES[status][2] if status is not Status.OK else "")
    line.append(f". {_conclusion(counts)}")
    return line


def _conclusion(counts: Counter[Status]) -> str:
    if counts[Status.FAILED]:
        return "Mend what failed before a run."
    seen = "that was seen " if counts[Status.UNKNOWN] else ""
    return f"Nothing {seen}stands in the way of a run."
