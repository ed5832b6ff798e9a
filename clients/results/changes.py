"""A comparison of two runs in plain words: for the report, the Markdown page and the terminal."""

from collections.abc import Callable
from typing import NamedTuple

from clients.records import Outcome
from clients.results.comparison import Comparison, is_notable
from clients.results.format import NOTHING, count, moment, rate, seconds, significant
from clients.results.summary import Summary

#: A change below half a per cent, or a twentieth of a point, is none that a person wants to read about.
_LEAST, _LEAST_POINTS = 0.005, 0.0005


class Words(NamedTuple):
    """How a measure is told.

    Attributes:
        title: Its name for people.
        show: A value of it.
        more: What more of it is; `less` likewise.
    """

    title: str
    show: Callable[[float | None], str]
    more: str
    less: str


class Line(NamedTuple):
    """One line of the table; text as it stands, not escaped."""

    title: str
    before: str
    now: str
    change: str
    worse: bool


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{significant(100 * value)} %"


def _rows_per_s(value: float | None) -> str:
    return rate(value, "rows")


def _tokens_per_s(value: float | None) -> str:
    return rate(value, "tokens")


def _gpu_hours(value: float | None) -> str:
    return NOTHING if value is None else significant(value / 3600)


_WORDS = {
    "rows": Words("rows", count, "more", "fewer"),
    "ok_rate": Words("rows that are ok", _percent, "more", "fewer"),
    "error_rate": Words("rows that went wrong", _percent, "more", "fewer"),
    "completion_tokens_p50": Words("median answer length", count, "longer", "shorter"),
    "completion_tokens_p95": Words("p95 answer length", count, "longer", "shorter"),
    "prompt_tokens": Words("prompt tokens", count, "more", "fewer"),
    "completion_tokens": Words("output tokens", count, "more", "fewer"),
    "rows_per_s": Words("throughput", _rows_per_s, "faster", "slower"),
    "output_tokens_per_s": Words("output rate", _tokens_per_s, "faster", "slower"),
    "latency_p50_s": Words("median latency", seconds, "slower", "faster"),
    "latency_p95_s": Words("p95 latency", seconds, "slower", "faster"),
    "gpu_seconds_held": Words("GPU hours", _gpu_hours, "more", "fewer"),
    "gpu_seconds_per_row": Words("GPU time a row", seconds, "more", "less"),
}

_SHARES = ("ok_rate", "error_rate")

#: What one line has room for, and the words that make a sentence part of each.
_TOLD = {
    "rows": "{change} rows",
    "error_rate": "rows that went wrong from {before} to {now}",
    "completion_tokens_p50": "answers {change}",
    "rows_per_s": "throughput {change}",
    "latency_p95_s": "p95 latency {change}",
    "gpu_seconds_per_row": "{change} GPU time a row",
}


def comparison_lines(comparison: Comparison) -> list[Line]:
    """The measures that either run has, then the outcomes but `ok` whose rows are not as many as before."""
    lines = [
        Line(
            words.title,
            words.show(change["before"]),
            words.show(change["now"]),
            _change_words(name, change["change"]),
            change["worse"],
        )
        for name, words in _WORDS.items()
        if (change := comparison["changes"].get(name)) is not None
    ]
    for word, (before, now) in comparison["outcomes"].items():
        if before != now and word != Outcome.OK:  # that one has its measure
            told = f"{count(abs(now - before))} {'more' if now > before else 'fewer'}"
            lines.append(Line(f"{word} rows", count(before), count(now), told, worse=False))
    return lines


def _change_words(name: str, change: float | None) -> str:
    if change is None:
        return ""
    words = _WORDS[name]
    side = words.more if change > 0 else words.less
    if name in _SHARES:
        return "same" if abs(change) < _LEAST_POINTS else f"{significant(abs(100 * change))} points {side}"
    if abs(change) < _LEAST:
        return "same"
    return f"{abs(100 * change):,.0f} % {side}"


def compared_with(comparison: Comparison) -> str:
    """Which run it was compared with."""
    when = f" of {moment(comparison['finished_at'])}" if comparison["finished_at"] else ""
    return f"the run before{when}"


def comparison_fact(summary: Summary) -> str:
    """One line with what changed notably; "" for a first run."""
    found = summary.get("comparison")
    if not found:
        return ""
    told = [
        text.format(
            before=_WORDS[name].show(change["before"]),
            now=_WORDS[name].show(change["now"]),
            change=_change_words(name, change["change"]),
        )
        for name, text in _TOLD.items()
        if (change := found["changes"].get(name)) is not None and is_notable(name, change["change"])
    ]
    return f"Beside {compared_with(found)}: {', '.join(told) or 'no notable change'}"


def worse_fact(comparison: Comparison) -> str:
    """What got worse, as a sentence."""
    changes = comparison["changes"]
    worse = [words.title for name, words in _WORDS.items() if name in changes and changes[name]["worse"]]
    return f"Look at: {', '.join(worse)}." if worse else "Nothing got notably worse."
