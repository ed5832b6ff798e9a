"""What is expected of answers that have not come yet, and the order that follows from it."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.batch import longest_first as module
from clients.batch.expectations import Expectations
from clients.batch.longest_first import longest_first
from clients.records import ChatRequest


def request(row: int, *, text: str = "x", **fields: int) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    return ChatRequest(row, f"row-{row}", f"{row:032x}", json.dumps(body, separators=(",", ":")).encode())


class TestExpectations:
    def test_nothing_known_means_no_end(self) -> None:
        assert Expectations().tokens(request(0)) == math.inf

    def test_the_same_request_takes_what_it_took(self) -> None:
        lengths = Expectations({request(1).request_hash: 700}.get)
        assert lengths.tokens(request(1)) == 700

    def test_a_new_one_among_known_ones_counts_as_average(self) -> None:
        lengths = Expectations({request(1).request_hash: 700, request(2).request_hash: 100}.get)
        assert [lengths.tokens(request(row)) for row in (1, 2, 3)] == [700, 100, 400]

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    def test_no_answer_is_longer_than_its_limit(self, name: str) -> None:
        assert Expectations().tokens(request(0, **{name: 64})) == 64

    def test_a_limit_that_stands_in_a_message_is_none(self) -> None:
        assert Expectations().tokens(request(0, text='{"max_tokens": 5}')) == math.inf

    def test_longer_prompts_get_longer_answers_where_they_have_had_them(self) -> None:
        lengths, dice = Expectations(), random.Random(0)
        for row in range(300):
            size = dice.randint(1, 4000)
            lengths.learn(request(row, text="x" * size), int(0.5 * size * dice.uniform(0.7, 1.3)) + 5)
        short, long = (lengths.tokens(request(0, text="x" * size)) for size in (100, 3000))
        assert short == pytest.approx(50, abs=60)
        assert long == pytest.approx(1500, rel=0.1)

    def test_where_they_have_not_the_order_stays(self) -> None:
        lengths, dice = Expectations(), random.Random(0)
        for row in range(1000):
            lengths.learn(request(row, text="x" * dice.randint(1, 4000)), dice.randint(1, 1000))
        assert lengths.tokens(request(0, text="x" * 3000)) == math.inf


def order(rows: list[ChatRequest | None], lengths: Expectations) -> list[int]:
    return [found.row for found in longest_first(iter(rows), lengths) if found is not None]


class TestOrder:
    @given(st.lists(st.none() | st.integers(1, 50), max_size=200))
    def test_each_row_comes_once(self, limits: list[int | None]) -> None:
        rows = [None if limit is None else request(row, max_tokens=limit) for row, limit in enumerate(limits)]
        assert sorted(order(rows, Expectations())) == [row for row, limit in enumerate(limits) if limit is not None]

    @given(st.integers(0, 3000))
    @settings(max_examples=10)
    def test_rows_of_which_nothing_is_known_keep_their_order(self, count: int) -> None:
        assert order([request(row) for row in range(count)], Expectations()) == list(range(count))

    def test_what_took_long_goes_first_and_the_short_ones_are_left_for_the_end(self) -> None:
        dice = random.Random(1)
        took = {request(row).request_hash: dice.randint(1, 1000) for row in range(2000)}
        sent = [took[f"{row:032x}"] for row in order([request(row) for row in range(2000)], Expectations(took.get))]
        assert sent[300:] == sorted(sent[300:], reverse=True)
        assert max(sent[-500:]) < 300

    def test_only_so_many_rows_are_read_ahead(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "AHEAD_ROWS", 100)
        read = iter(rows := [request(row) for row in range(1000)])
        sending = longest_first(read, Expectations())
        for _ in range(50):
            next(sending)
        assert next(read).row == 149
        assert len(rows) == 1000
