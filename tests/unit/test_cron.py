"""Cron expressions: read as cron does, written for Kubeflow's scheduler, and when they fire."""

import datetime as dt
import itertools
import zoneinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.errors import SettingsError
from pipelines.cron import Cron, from_kubeflow, time_zone
from tests.servers.kfp.state import check_cron

UTC = zoneinfo.ZoneInfo("UTC")
NEW_YORK = zoneinfo.ZoneInfo("America/New_York")


def fires(text: str, after: str, count: int = 3, zone: zoneinfo.ZoneInfo = UTC) -> list[str]:
    times = Cron.parse(text).after(dt.datetime.fromisoformat(after).replace(tzinfo=zone), zone)
    return [time.isoformat(timespec="minutes") for time in itertools.islice(times, count)]


@pytest.mark.parametrize(
    ("text", "six"),
    [
        ("0 2 * * *", "0 0 2 * * *"),
        ("@daily", "0 0 0 * * *"),
        ("@Hourly", "0 0 * * * *"),
        ("*/15 9-17 * * mon-fri", "0 */15 9-17 * * 1,2,3,4,5"),
        ("0 0 * JAN,jul SUN", "0 0 0 * jan,jul 0"),
        ("0 3 * * 7", "0 0 3 * * 0"),
        ("0 3 * * fri-sun", "0 0 3 * * 0,5,6"),
        ("0 3 * * 5-7", "0 0 3 * * 0,5,6"),
        ("5/20 0 ? * *", "0 5/20 0 ? * *"),
    ],
)
def test_kubeflow_gets_six_fields_that_its_parser_takes(text: str, six: str) -> None:
    assert Cron.parse(text).for_kubeflow() == six
    check_cron(six)
    again = from_kubeflow(six)
    assert again is not None
    assert again.for_kubeflow() == six


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 2 * *", "has 4 fields. Five are taken: minute, hour"),
        ("5", "has 1 field. Five are taken"),
        ("0 0 2 * * *", "has 6 fields. The seconds are added here; write '0 2 * * *'"),
        ("61 * * * *", "minute '61' cannot be read: 61 is not within 0 to 59"),
        ("0 22-2 * * *", "the range goes backwards; write 22-23,0-2"),
        ("0 0 * * sat-mon", "the range goes backwards; write 6,0-1"),
        ("0 x * * *", "hour 'x' cannot be read: expected a number from 0 to 23, found 'x'"),
        ("0 0 * foo *", "expected a number from 1 to 12 or a name from jan to dec"),
        ("* * * * L", "day of week 'L' cannot be read"),
        ("*/0 * * * *", "a step is a number above 0"),
        ("0 0 1,,2 * *", "day of month '' cannot be read"),
        ("0 0 31 2 *", "never fires"),
        ("0 0 */2 * mon", "Write the stepped days as a range, such as 1-31/2"),
        ("@every 1h", "For an interval write */15 * * * *"),
        ("TZ=UTC 0 2 * * *", "tell it with --timezone"),
    ],
)
def test_what_cannot_be_read_is_said_with_the_field_and_the_mend(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Cron.parse(text)
    assert message in str(caught.value)
    assert repr(text) in str(caught.value)


def test_it_fires_after_the_moment_and_not_at_it() -> None:
    assert fires("0 2 * * *", "2026-11-25T02:00", 2) == ["2026-11-26T02:00+00:00", "2026-11-27T02:00+00:00"]
    assert fires("*/20 9 * * *", "2026-11-25T09:05", 3) == [
        "2026-11-25T09:20+00:00",
        "2026-11-25T09:40+00:00",
        "2026-11-26T09:00+00:00",
    ]


def test_either_day_fires_when_both_kinds_of_day_are_restricted() -> None:
    assert fires("0 0 1 * mon", "2026-11-25T00:00") == [
        "2026-11-30T00:00+00:00",  # a Monday
        "2026-12-01T00:00+00:00",
        "2026-12-07T00:00+00:00",
    ]
    assert fires("0 0 * * mon", "2026-11-25T00:00", 2) == ["2026-11-30T00:00+00:00", "2026-12-07T00:00+00:00"]


def test_leap_days_are_found_and_the_search_ends_where_kubeflow_ends_it() -> None:
    assert fires("0 0 29 2 *", "2026-11-25T00:00", 5) == ["2028-02-29T00:00+00:00"]


def test_a_skipped_hour_fires_nothing_and_a_repeated_one_twice() -> None:
    assert fires("30 2 * * *", "2026-03-07T12:00", 2, NEW_YORK) == [
        "2026-03-09T02:30-04:00",  # on the 8th the clocks go from 2 to 3
        "2026-03-10T02:30-04:00",
    ]
    assert fires("30 1 * * *", "2026-10-31T12:00", 3, NEW_YORK) == [
        "2026-11-01T01:30-04:00",
        "2026-11-01T01:30-05:00",
        "2026-11-02T01:30-05:00",
    ]


def test_a_time_zone_that_does_not_exist_is_said() -> None:
    assert time_zone("Asia/Seoul").key == "Asia/Seoul"
    for name in ("Seoul", "", "../etc/passwd"):
        with pytest.raises(SettingsError, match="no such time zone"):
            time_zone(name)


def test_schedules_of_others_are_not_taken_for_ours() -> None:
    for text in ("*/10 * * * * *", "@every 1h", "", "0 0 2 * * 8"):
        assert from_kubeflow(text) is None


minutes = st.sets(st.integers(0, 59), min_size=1, max_size=4)
hours = st.sets(st.integers(0, 23), min_size=1, max_size=4)
weekdays = st.none() | st.sets(st.integers(0, 7), min_size=1, max_size=4)
days = st.none() | st.sets(st.integers(1, 28), min_size=1, max_size=4)


def listed(numbers: set[int] | None) -> str:
    return "*" if numbers is None else ",".join(map(str, sorted(numbers)))


@settings(max_examples=60, deadline=None)
@given(minutes, hours, days, weekdays, st.datetimes(dt.datetime(2025, 1, 1), dt.datetime(2030, 1, 1)))
def test_it_fires_at_each_fitting_minute_and_at_no_other(
    minute: set[int], hour: set[int], day: set[int] | None, weekday: set[int] | None, start: dt.datetime
) -> None:
    start = start.replace(second=0, microsecond=0, tzinfo=dt.UTC)
    cron = Cron.parse(f"{listed(minute)} {listed(hour)} {listed(day)} * {listed(weekday)}")
    check_cron(cron.for_kubeflow())

    def fits(time: dt.datetime) -> bool:
        on_day, on_weekday = (
            day and time.day in day,
            weekday and time.isoweekday() % 7 in {each % 7 for each in weekday},
        )
        right_day = (on_day or on_weekday) if day and weekday else (on_day is not False and on_weekday is not False)
        return bool(time.minute in minute and time.hour in hour and right_day)

    every = (start + dt.timedelta(minutes=each) for each in range(1, 9 * 1440))
    assert [time for time in every if fits(time)] == list(
        itertools.takewhile(lambda time: time < start + dt.timedelta(days=9), cron.after(start, UTC))
    )
