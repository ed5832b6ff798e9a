"""Rows that were parsed once are told again without parsing, unless their line has changed."""

import dataclasses
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.batch.sent_rows import SentRows
from clients.prompts.check import check_prompts
from clients.prompts.lines import BadLine, Line
from clients.prompts.rows import JobDefaults, Row, parse_row
from clients.records import ChatRequest

DEFAULTS = JobDefaults(model="m", system_prompt="Be brief.")

ROWS = st.lists(
    st.fixed_dictionaries(
        {"prompt": st.sampled_from(["Hello", "안녕하세요", ""])},
        optional={
            "id": st.sampled_from(["a", 7]),
            "custom_id": st.just("c"),
            "lang": st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        },
    ),
    max_size=30,
)


def lines(rows: list[dict[str, Any]]) -> list[Line]:
    return [Line(10 + at, 11 + at, 0, orjson.dumps(row)) for at, row in enumerate(rows)]


def noted(found: list[Line]) -> SentRows:
    sent = SentRows()
    for line in found:
        sent.note(line, parse_row(line, DEFAULTS))
    return sent


def without_payload(row: Row) -> Row:
    request = row.request
    if isinstance(request, ChatRequest):
        request = dataclasses.replace(request, payload=b"")
    return dataclasses.replace(row, request=request)


@given(ROWS, ROWS, st.integers(0, 30))
def test_rows_are_those_that_parsing_would_find_now(
    before: list[dict[str, Any]], after: list[dict[str, Any]], read: int
) -> None:
    sent, now = noted(lines(before)[:read]), lines([*after, *before[len(after) :]])
    found = list(sent.rows(iter(now), DEFAULTS))
    assert list(map(without_payload, found)) == [without_payload(parse_row(line, DEFAULTS)) for line in now]


def test_many_rows_are_read_back_in_blocks() -> None:
    now = lines([{"prompt": f"Say {number}."} for number in range(5000)])
    found = list(noted(now).rows(iter(now), DEFAULTS))
    assert list(map(without_payload, found)) == [without_payload(parse_row(line, DEFAULTS)) for line in now]


def test_a_row_that_its_format_finds_broken_stays_broken() -> None:
    bad: list[Line] = [BadLine(0, 1, 0, None, "wrong_cells", "3 cells"), Line(1, 2, 0, None)]
    assert list(noted(bad).rows(iter(bad), DEFAULTS)) == [parse_row(line, DEFAULTS) for line in bad]


@pytest.mark.parametrize(
    ("rows", "may_repeat"),
    [
        ([{"prompt": "a"}, {"prompt": "b"}], False),
        ([{"prompt": "a"}, {"prompt": "a"}], True),
        ([{"prompt": "a"}, {"prompt": "a", "model": "m"}], True),  # alike if m is what the endpoint serves
        ([{"prompt": "a", "model": "n"}, {"prompt": "a", "model": "m"}], False),
    ],
)
def test_an_input_tells_whether_its_rows_may_ask_the_same(
    tmp_path: Path, rows: list[dict[str, Any]], may_repeat: bool
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    assert check_prompts(str(path), JobDefaults()).may_repeat is may_repeat
