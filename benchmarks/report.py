"""Rows of measurements, and how they are shown and kept."""

import dataclasses
import datetime as dt
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
from rich.console import Console
from rich.table import Table

_PACKAGES = ("kubeflow-llm-inference", "aiohttp", "openai", "orjson", "pandas", "pyarrow", "uvloop")
_COUNTED = ("rows", "requests", "times")


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What a measurement should be.

    Attributes:
        side: Whether `value` is the most or the least.
        value: The bound, itself allowed.
    """

    side: Literal["most", "least"]
    value: float

    def met_by(self, measured: float) -> bool:
        """Whether it is on the right side."""
        return measured <= self.value if self.side == "most" else measured >= self.value


def at_most(value: float) -> Target:
    """No more than this."""
    return Target("most", value)


def at_least(value: float) -> Target:
    """No less than this."""
    return Target("least", value)


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """One line of a table.

    Attributes:
        what: What was measured.
        client: Of whom.
        measured: The value.
        unit: Of the value and the target.
        target: None where there is none.
    """

    what: str
    client: str
    measured: float
    unit: str
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is; None without one."""
        return None if self.target is None else self.target.met_by(self.measured)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {
            "what": self.what,
            "client": self.client,
            "measured": round(self.measured, 6),
            "unit": self.unit,
            "target": None if self.target is None else {self.target.side: self.target.value},
            "met": self.met,
        }


def show(console: Console, title: str, measurements: Sequence[Measurement]) -> None:
    """Print one table."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name, side in (("what", "left"), ("client", "left"), ("measured", "right"), ("target", "right"), ("", "left")):
        table.add_column(name, justify="right" if side == "right" else "left")
    for one in measurements:
        target, mark = "", ""
        if one.target is not None:
            target = f"{'≤' if one.target.side == 'most' else '≥'} {_number(one.target.value, one.unit, brief=True)}"
            mark = "[green]✓ met[/]" if one.met else "[red]✗ missed[/]"
        table.add_row(one.what, one.client, f"{_number(one.measured, one.unit)} {one.unit}".rstrip(), target, mark)
    console.print(table)


def document(results: dict[str, list[Measurement]], *, quick: bool, seconds: float) -> dict[str, Any]:
    """Everything of one run, for the file.

    Args:
        results: By benchmark.
        quick: Whether it was the small version, for which the targets are not meant.
        seconds: What it took.
    """
    return {
        "date": dt.datetime.now(tz=dt.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "seconds": round(seconds),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "benchmarks": {name: [one.to_json() for one in rows] for name, rows in results.items()},
    }


def save(path: Path, content: dict[str, Any]) -> None:
    """Write the file; benchmarks that were not run this time keep what stands there, with the date of their run."""
    before = _earlier(path)
    kept = {name: rows for name, rows in before.get("benchmarks", {}).items() if name not in content["benchmarks"]}
    if kept and before.get("quick") == content["quick"]:
        dates = before.get("dates", {})
        content = {
            **content,
            "dates": {name: dates.get(name, before["date"]) for name in kept},
            "benchmarks": {**kept, **content["benchmarks"]},
        }
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _earlier(path: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: float, unit: str, *, brief: bool = False) -> str:
    if brief:
        return f"{value:g}"
    if unit in _COUNTED:
        return f"{value:,.0f}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3
    return f"{value:,.{digits}f}"
