"""Cron expressions: read as cron reads them, written as Kubeflow Pipelines wants them, and when they fire.

A crontab has five fields. Kubeflow's scheduler (robfig/cron, version 1) takes six with the seconds first, and shifts
five without a word: `0 2 * * *` would fire every hour. So five are read here and six are sent. The sixth field is not
the only difference: that parser knows Sunday as 0 only and refuses a range that goes over the week's end, so days of
the week are written out as numbers.
"""

import dataclasses
import datetime as dt
import re
import zoneinfo
from collections.abc import Iterator

from clients.errors import SettingsError

_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_DAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}

_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

#: Kubeflow's scheduler looks no further than this; an expression that fires later than that never does.
_YEARS_AHEAD = 5


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str
    low: int
    high: int
    words: dict[str, int] = dataclasses.field(default_factory=dict)


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _DAYS),
)


@dataclasses.dataclass(frozen=True)
class Cron:
    """One schedule.

    Attributes:
        text: The five fields as they were given, or what a word such as @daily stands for.
        minutes: When it fires; so are the four that follow. Days of the week count from Sunday, 0.
        either_day: Whether it fires where one of both kinds of day fits: cron's rule when both are restricted.
    """

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    @classmethod
    def parse(cls, text: str) -> "Cron":
        """Read a five-field expression or a word such as @daily.

        Raises:
            SettingsError: it cannot be read, or can never fire; the message names the field.
        """
        fields = _split(text)
        minutes, hours, days, months, weekdays = (
            _numbers(value, field, text) for value, field in zip(fields, _FIELDS, strict=True)
        )
        restricted = [not _is_open(fields[place]) for place in (2, 4)]
        if any(restricted) and any("*/" in fields[place] or "?/" in fields[place] for place in (2, 4)):
            raise SettingsError(
                f"--cron {text!r}: schedulers read day of month {fields[2]} with day of week {fields[4]} in different "
                "ways. Write the stepped days as a range, such as 1-31/2, or as a list."
            )
        found = cls(
            " ".join(fields),
            frozenset(minutes),
            frozenset(hours),
            frozenset(days),
            frozenset(months),
            frozenset(day % 7 for day in weekdays),
            all(restricted),
        )
        if next(found.after(dt.datetime(2024, 1, 1, tzinfo=dt.UTC), zoneinfo.ZoneInfo("UTC")), None) is None:
            raise SettingsError(f"--cron {text!r} never fires: no month of it has such a day")
        return found

    def for_kubeflow(self) -> str:
        """The six fields that Kubeflow's scheduler takes: seconds first, days of the week as numbers."""
        minute, hour, day, month, weekday = self.text.lower().split()
        if not _is_open(weekday):
            weekday = ",".join(str(number) for number in sorted(self.weekdays))
        return f"0 {minute} {hour} {day} {month} {weekday}"

    def after(self, moment: dt.datetime, zone: zoneinfo.ZoneInfo) -> Iterator[dt.datetime]:
        """The times at which it fires after a moment, in order, for as long as Kubeflow's scheduler looks ahead.

        Args:
            moment: An aware time; one that equals it does not count.
            zone: The zone of the cluster's scheduler. An hour that the clocks skip fires nothing there, and one that
                they repeat fires twice.
        """
        first = moment.astimezone(zone).date()
        for ahead in range(366 * _YEARS_AHEAD):
            day = first + dt.timedelta(days=ahead)
            if self._fits(day):
                yield from (time.astimezone(zone) for time in self._times(day, zone) if time > moment)

    def _fits(self, day: dt.date) -> bool:
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        fits = (of_month or of_week) if self.either_day else (of_month and of_week)
        return fits and day.month in self.months

    def _times(self, day: dt.date, zone: zoneinfo.ZoneInfo) -> list[dt.datetime]:
        """In UTC, where times can be compared and a repeated hour is two."""
        found = set()
        for hour in self.hours:
            for minute in self.minutes:
                wall = dt.datetime(day.year, day.month, day.day, hour, minute)
                for fold in (0, 1):
                    time = wall.replace(tzinfo=zone, fold=fold).astimezone(dt.UTC)
                    if time.astimezone(zone).replace(tzinfo=None) == wall:  # else the clocks skip it
                        found.add(time)
        return sorted(found)


def from_kubeflow(text: str) -> Cron | None:
    """Read back what `for_kubeflow` wrote; None for a schedule that it cannot have written."""
    seconds, _, rest = text.partition(" ")
    try:
        return Cron.parse(rest) if seconds == "0" else None
    except SettingsError:
        return None


def time_zone(name: str) -> zoneinfo.ZoneInfo:
    """The time zone of a name such as Asia/Seoul.

    Raises:
        SettingsError: there is none of that name.
    """
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise SettingsError(
            f"--timezone {name!r}: no such time zone. Give a name such as UTC or Asia/Seoul."
        ) from error


def _split(text: str) -> list[str]:
    stripped = text.strip()
    if stripped.startswith("@"):
        if stripped.lower() not in _MACROS:
            known = ", ".join(_MACROS)
            raise SettingsError(
                f"--cron {text!r}: no such word; known are {known}. For an interval write */15 * * * *."
            )
        stripped = _MACROS[stripped.lower()]
    if stripped.upper().startswith(("TZ=", "CRON_TZ=")):
        raise SettingsError(
            f"--cron {text!r}: Kubeflow has one time zone for the whole cluster. Leave the zone away and write the "
            "times in the cluster's; tell it with --timezone."
        )
    fields = stripped.split()
    if len(fields) != len(_FIELDS):
        mend = "Five are taken: minute, hour, day of month, month, day of week."
        if len(fields) == 6 and fields[0] == "0":
            mend = f"The seconds are added here; write {' '.join(fields[1:])!r}."
        elif len(fields) == 1:
            mend += " Put quotes around them, so that the shell leaves * alone."
        count = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
        raise SettingsError(f"--cron {text!r} has {count}. {mend}")
    return fields


def _is_open(value: str) -> bool:
    """Tell whether a kind of day counts as not restricted: cron asks for a star, not for all the days."""
    return "*" in value or "?" in value


def _numbers(value: str, field: _Field, text: str) -> set[int]:
    found: set[int] = set()
    for part in value.split(","):
        found |= _range(part, field, text)
    return found


def _range(part: str, field: _Field, text: str) -> set[int]:
    span, slash, step_text = part.partition("/")
    if slash and (not step_text.isdecimal() or int(step_text) == 0):
        raise _unreadable(part, field, text, "a step is a number above 0, such as */15")
    step = int(step_text) if slash else 1
    if span in ("*", "?"):
        return set(range(field.low, min(field.high, 6) + 1 if field.words is _DAYS else field.high + 1, step))
    low_text, dash, high_text = span.partition("-")
    low = _number(low_text, field, text, part)
    if dash:
        high = _number(high_text, field, text, part)
    else:
        high = (6 if field.words is _DAYS else field.high) if slash else low
    if field.words is _DAYS and dash and high == 0:
        high = 7  # fri-sun ends on the Sunday after
    if low > high:
        raise _unreadable(part, field, text, f"the range goes backwards; write {_in_two_ranges(low, high, field)}")
    return set(range(low, high + 1, step))


def _in_two_ranges(low: int, high: int, field: _Field) -> str:
    end = 6 if field.words is _DAYS else field.high
    return ",".join(
        f"{first}-{last}" if first < last else f"{first}" for first, last in ((low, end), (field.low, high))
    )


def _number(word: str, field: _Field, text: str, part: str) -> int:
    if word.lower() in field.words:
        return field.words[word.lower()]
    if not re.fullmatch(r"\d{1,4}", word):
        known = f"a number from {field.low} to {field.high}"
        if field.words:
            first, *_, last = field.words
            known += f" or a name from {first} to {last}"
        raise _unreadable(part, field, text, f"expected {known}, found {word!r}")
    if not field.low <= int(word) <= field.high:
        raise _unreadable(part, field, text, f"{word} is not within {field.low} to {field.high}")
    return int(word)


def _unreadable(part: str, field: _Field, text: str, why: str) -> SettingsError:
    return SettingsError(f"--cron {text!r}: {field.name} {part!r} cannot be read: {why}")
