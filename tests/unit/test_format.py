import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.results import format as fmt


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (12345, "12,345"), (10**15, "1,000,000,000,000,000"), (None, "\u2013")]
)
def test_counts_separate_thousands(number: int | None, text: str) -> None:
    assert fmt.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.5, "0.5"), (950, "950"), (12_345, "12.3k"), (4e6, "4M"), (1.5e9, "1.5G"), (1e15, "1,000T")],
)
def test_axis_numbers_are_short(number: float, text: str) -> None:
    assert fmt.compact(number) == text
    assert fmt.compact(None) == fmt.NOTHING


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (978, 1000, "97.8 %"),
        (999_999, 1_000_000, "> 99.99 %"),
        (9_995, 10_000, "99.95 %"),
        (1, 1_000_000, "< 0.01 %"),
        (3, 1000, "0.30 %"),
        (5, 5, "100 %"),
        (0, 5, "0 %"),
        (0, 0, "\u2013"),
    ],
)
def test_a_share_is_never_rounded_to_all_or_nothing(part: int, whole: int, text: str) -> None:
    assert fmt.share(part, whole) == text


@given(st.integers(1, 10**9), st.data())
def test_only_all_is_a_hundred_per_cent(whole: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, whole))
    assert (fmt.share(part, whole) == "100 %") == (part == whole)
    assert (fmt.share(part, whole) == "0 %") == (part == 0)


@pytest.mark.parametrize(
    ("value_s", "text"),
    [(0, "0 s"), (0.0123, "12.3 ms"), (0.9997, "1.00 s"), (1.234, "1.23 s"), (93.4, "93.4 s"), (750, "12 min 30 s")],
)
def test_a_latency_keeps_three_digits(value_s: float, text: str) -> None:
    assert fmt.seconds(value_s) == text
    assert fmt.seconds(None) == fmt.NOTHING


@pytest.mark.parametrize(
    ("value_s", "text"),
    [
        (0, "0 s"),
        (0.42, "0.42 s"),
        (9.996, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (93.4, "1 min 33 s"),
        (3599.7, "1 h"),
        (3723, "1 h 2 min"),
        (86_390, "1 d"),
        (86_400 * 3 + 4 * 3600, "3 d 4 h"),
        (86_400 * 1200, "1,200 d"),
        (None, "\u2013"),
    ],
)
def test_a_duration_has_two_units_and_never_sixty_of_one(value_s: float | None, text: str) -> None:
    assert fmt.duration(value_s) == text


@pytest.mark.parametrize(
    ("per_s", "text"),
    [(2345.6, "2,346 rows/s"), (10.72, "10.7 rows/s"), (0.1, "6.00 rows/min"), (0.001, "3.60 rows/h"), (0, "0 rows/s")],
)
def test_a_rate_takes_the_unit_of_time_that_reads_best(per_s: float, text: str) -> None:
    assert fmt.rate(per_s, "rows") == text
    assert fmt.rate(None, "rows") == fmt.NOTHING


def test_a_moment_is_shown_to_the_second() -> None:
    assert fmt.moment("2026-01-31T04:05:06.789Z") == "2026-01-31 04:05:06 UTC"
    assert fmt.moment(None) == fmt.NOTHING


@given(st.floats(0, 1e9))
def test_no_text_of_a_time_is_in_scientific_notation(value_s: float) -> None:
    assert "e" not in fmt.seconds(value_s)
    assert "e" not in fmt.duration(value_s)


@pytest.mark.parametrize(("number", "text"), [(0, "0 rows"), (1, "1 row"), (12345, "12,345 rows")])
def test_things_are_counted_as_people_say_it(number: int, text: str) -> None:
    assert fmt.counted(number, "row") == text
