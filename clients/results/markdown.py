"""The summary as a few lines of Markdown, which Kubeflow shows beside the run."""

import re

from clients.results.advice import ADVICE
from clients.results.changes import compared_with, comparison_lines, worse_fact
from clients.results.format import count, duration, rate, seconds, share
from clients.results.summary import Summary
from clients.results.traces import trace_fact

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~-])")


def render_markdown(summary: Summary, *, title: str, location: str) -> str:
    """The page. Nothing in the summary is trusted: what came from outside shows as it is.

    Args:
        summary: As `render_report`'s.
        title: Headline.
        location: Where the results lie; "" when only Kubeflow has them.
    """
    rows, outcomes = summary["rows"], {word: number for word, number in summary["outcomes"].items() if number}
    latency, models = summary["latency_s"], ", ".join(list(summary["models"])[:3])
    facts = [
        ("rows", count(rows)),
        ("model", _plain(models)),
        ("active time", duration(summary["duration_s"])),
        ("throughput", rate(summary["rows_per_s"], "rows") if summary["rows_per_s"] else ""),
        ("output tokens", count(summary["completion_tokens"])),
        ("latency p50, p95", f"{seconds(latency['p50'])}, {seconds(latency['p95'])}" if latency else ""),
        ("traces", _plain(trace_fact(summary))),
        ("results", _plain(location)),
        ("stopped early", _plain(summary["stopped_early"] or "")),
    ]
    advice = {word.value: text for word, text in ADVICE.items()}
    lines = [f"# {_plain(title)}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts if value]
    lines += ["", "| outcome | rows | share | what it means |", "|---|---:|---:|---|"]
    lines += [
        f"| {_plain(word)} | {count(number)} | {share(number, rows)} | {_plain(advice.get(word, ''))} |"
        for word, number in outcomes.items()
    ]
    if summary["error_codes"]:
        codes = [f"{_plain(code)} {count(number)}" for code, number in list(summary["error_codes"].items())[:12]]
        lines += ["", f"Error codes: {', '.join(codes)}."]
    return "\n".join([*lines, *_comparison(summary)]) + "\n"


def _comparison(summary: Summary) -> list[str]:
    """The lines about the run before; none for a first one."""
    found = summary.get("comparison")
    if not found:
        return []
    lines = ["", f"Compared with {_plain(compared_with(found))}. {_plain(worse_fact(found))}"]
    lines += [f"**{_plain(sentence)}**" for sentence in found["regressions"]]
    lines += ["", "| | before | now | change |", "|---|---:|---:|---:|"]
    return lines + [
        f"| {_plain(line.title)} | {_plain(line.before)} | {_plain(line.now)} | {change} |"
        for line in comparison_lines(found)
        for change in (f"**{_plain(line.change)}**" if line.worse else _plain(line.change),)
    ]


def _plain(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
