"""Bar charts as inline SVG: x in per cent of the width and y in pixels, so that text keeps its size on any screen."""

import math
from collections.abc import Callable, Sequence

from clients.results.distribution import Histogram, Spread, nice_step
from clients.results.format import compact, counted, duration, seconds
from clients.results.page import escape
from clients.results.timeline import Throughput

#: A bar from `left` to `right` (shares of the width), its height in the unit of the y axis, and its tooltip.
Bar = tuple[float, float, float, str]
#: A position (share of the width) and its label.
Mark = tuple[float, str]

_HEIGHT = 150
_TOP = 48


def bar_chart(
    bars: Sequence[Bar], *, describe: str, ticks: Sequence[Mark], marks: Sequence[Mark] = (), whole: bool = False
) -> str:
    """One chart with a y axis that starts at zero.

    Args:
        bars: At least one.
        describe: What a screen reader says instead.
        ticks: Labels below the x axis.
        marks: Labelled vertical lines, each label on a line of its own so that none overlaps.
        whole: The bars are counts, so half a unit makes no grid line.
    """
    peak = max(bar[2] for bar in bars) or 1
    step = nice_step(peak, 4, whole=whole)
    top = _TOP if marks else 10
    floor = top + _HEIGHT
    parts = []
    for index in range(math.floor(peak / step) + 1):
        y = floor - _HEIGHT * index * step / peak
        parts.append(f'<line class="grid" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="end" x="-8" y="{y + 4:.1f}">{compact(index * step)}</text>')
    for left, right, value, tip in bars:
        if value > 0:
            high = max(1.5, _HEIGHT * value / peak)
            where = f'x="{100 * left:.2f}%" width="{100 * (right - left):.2f}%" y="{floor - high:.1f}"'
            parts.append(f'<rect {where} height="{high:.1f}"><title>{escape(tip)}</title></rect>')
    for x, label in ticks:
        parts.append(f'<text class="mid" x="{100 * x:.2f}%" y="{floor + 18}">{escape(label)}</text>')
    body = "".join(parts) + _mark_lines(marks, floor)
    return f'<div class="plot"><svg role="img" aria-label="{escape(describe)}" height="{floor + 24}">{body}</svg></div>'


def _mark_lines(marks: Sequence[Mark], floor: int) -> str:
    lines, labels = "", ""
    for index, (x, label) in enumerate(marks):
        y = 10 + 14 * (index % 3)
        side, shift = ("end", -5) if x > 0.6 else ("start", 5)
        at = f"{100 * x:.2f}%"
        lines += f'<line class="mark" x1="{at}" x2="{at}" y1="{y - 9}" y2="{floor}"/>'
        labels += f'<text class="{side} strong" x="{at}" dx="{shift}" y="{y}">{escape(label)}</text>'
    return lines + labels


def histogram_chart(histogram: Histogram, spread: Spread, *, describe: str, show: Callable[[float], str]) -> str:
    """A distribution with its median and tail marked; `show` writes a value with its unit.

    Args:
        histogram: Edges and counts; the scale of its x axis is `linear` or `log`.
        spread: Its median, p95 and p99.
        describe: What a screen reader says instead.
        show: Writes a value with its unit.
    """
    edges, log = histogram["edges"], histogram["scale"] == "log"
    low, high = edges[0], edges[-1]

    def place(value: float) -> float:
        at = math.log(max(value, low) / low) / math.log(high / low) if log else (value - low) / (high - low)
        return min(1.0, max(0.0, at))

    bars = [
        (place(left), place(right), number, f"{show(left)} to {show(right)}: {counted(number, 'row')}")
        for left, right, number in zip(edges, edges[1:], histogram["counts"], strict=False)
    ]
    ticks = [(place(value), show(value)) for value in _ticks(low, high, log=log)]
    tails = [("median", spread["p50"]), ("p95", spread["p95"]), ("p99", spread["p99"])]
    marks = [(place(value), f"{name} {show(value)}") for name, value in tails]
    return bar_chart(bars, describe=describe, ticks=ticks, marks=marks, whole=True)


def _ticks(low: float, high: float, *, log: bool) -> list[float]:
    """Three to seven round values from low to high; a log axis spans six decades at most."""
    if log:
        powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
        for digits in ((1, 2, 5), (1, 3)):
            found = [power * digit for power in powers for digit in digits if low <= power * digit <= high]
            if len(found) <= 7:
                return found
        return [power for power in powers if low <= power <= high]
    step = nice_step(high - low, 6)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def throughput_chart(throughput: Throughput, amounts: Sequence[int], *, unit: str) -> str:
    """What finished over active time, as a rate per second, minute or hour, with the pauses marked.

    Args:
        throughput: Of a summary.
        amounts: One number a bucket: its `rows` or `output_tokens`.
        unit: What is counted.
    """
    widths = throughput["seconds"]
    total = sum(widths)
    rates = [amount / width if width else 0.0 for amount, width in zip(amounts, widths, strict=True)]
    scales = (("second", 1), ("minute", 60), ("hour", 3600))
    per, factor = next((scale for scale in scales if max(rates) * scale[1] >= 1), scales[-1])
    bars, before = [], 0.0
    for width, rate in zip(widths, rates, strict=True):
        tip = f"{duration(before)} to {duration(before + width)}: {compact(rate * factor)} {unit} per {per}"
        bars.append((before / total, (before + width) / total, rate * factor, tip))
        before += width
    ticks = [(at / total, duration(at) if at >= 60 else f"{at:.3g} s") for at in _time_ticks(total)]
    marks = [(pause["at_s"] / total, f"paused {duration(pause['seconds'])}") for pause in throughput["pauses"]]
    title = f"{unit.capitalize()} per {per}"
    chart = bar_chart(bars, describe=f"{title} over {duration(total)} of active time", ticks=ticks, marks=marks)
    return f"<h3>{title}</h3>{chart}"


def _time_ticks(total_s: float) -> list[float]:
    """Zero and up to five times in steps that people count in."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
    step = next((step for step in steps if total_s / step <= 5), nice_step(total_s / 86400, 5) * 86400)
    if total_s < 2:
        step = nice_step(total_s, 4)
    return [index * step for index in range(math.floor(total_s / step) + 1)]


def latency_text(value_s: float) -> str:
    """A latency on an axis: `0`, `20 ms`, `1.5 s`, `1,000 s`."""
    if 1 <= value_s < 1e5:
        return f"{value_s:.3g} s" if value_s < 1000 else f"{value_s:,.0f} s"
    return seconds(value_s) if value_s else "0"
