"""Numbers as people read them: the same words in the report, in the terminal and in the log."""

import math

#: Stands where there is no number.
NOTHING = "\N{EN DASH}"

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def count(number: float | None) -> str:
    """A whole number with thousands separated: `12,345`."""
    return NOTHING if number is None else f"{number:,.0f}"


def counted(number: int, thing: str) -> str:
    """A number of things: `1 row`, `12,345 rows`."""
    return f"{count(number)} {thing}{'' if number == 1 else 's'}"


def significant(number: float) -> str:
    """At least three significant digits and no decimals from 100 on: `0.123`, `1.23`, `12.3`, `1,234`; `0` for zero."""
    if not number:
        return "0"
    decimals = min(6, max(0, 2 - math.floor(math.log10(float(f"{abs(number):.2e}")))))
    return f"{number:,.{decimals}f}"


def compact(number: float | None) -> str:
    """Short enough for an axis: `950`, `12.3k`, `4M`, `1.5G`, `2T`."""
    if number is None:
        return NOTHING
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= power:
            return f"{number / power:.3g}{letter}" if abs(number) < 1000 * power else f"{number / power:,.0f}{letter}"
    return f"{number:.3g}"


def share(part: int, whole: int) -> str:
    """A part of a whole in per cent, `97.8 %`; never rounded up to all nor down to nothing."""
    if not whole:
        return NOTHING
    percent = 100 * part / whole
    if part in (0, whole):
        return f"{percent:.0f} %"
    if percent < 0.01 or percent > 99.99:
        return "< 0.01 %" if percent < 1 else "> 99.99 %"
    return f"{percent:.2f} %" if percent < 1 or percent >= 99 else f"{percent:.1f} %"


def seconds(value_s: float | None) -> str:
    """One request's time: `12 ms`, `1.23 s`, `93.4 s`, and from ten minutes on as `duration` writes it."""
    if value_s is None:
        return NOTHING
    if value_s >= 10 * _MINUTE:
        return duration(value_s)
    return f"{significant(value_s * 1000)} ms" if 0 < value_s < 0.9995 else f"{significant(value_s)} s"


def duration(value_s: float | None) -> str:
    """A length of time in its two largest units: `0.42 s`, `41 s`, `1 min 33 s`, `2 h 5 min`, `3 d 4 h`."""
    if value_s is None:
        return NOTHING
    if value_s < 9.995:
        return f"{value_s:.2f} s" if value_s else "0 s"
    whole = round(value_s)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return _in_two(whole, 60, "min", "s")
    minutes = round(value_s / _MINUTE)
    if minutes * _MINUTE < _DAY:
        return _in_two(minutes, 60, "h", "min")
    return _in_two(round(value_s / _HOUR), 24, "d", "h")


def _in_two(number: int, per_large: int, large: str, small: str) -> str:
    whole, rest = divmod(number, per_large)
    return f"{whole:,} {large} {rest} {small}" if rest else f"{whole:,} {large}"


def rate(per_s: float | None, unit: str) -> str:
    """Things per second, or per minute or hour where that reads better: `10.7 rows/s`, `6.00 rows/min`."""
    if per_s is None:
        return NOTHING
    value, per = next(
        ((per_s * factor, per) for factor, per in ((1, "s"), (60, "min")) if per_s * factor >= 1 or not per_s),
        (per_s * 3600, "h"),
    )
    return f"{significant(value)} {unit}/{per}"


def moment(iso: str | None) -> str:
    """An ISO time in UTC as `2026-01-31 04:05:06 UTC`."""
    return NOTHING if iso is None else f"{iso[:10]} {iso[11:19]} UTC"
