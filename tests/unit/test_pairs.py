import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.batch import pairs
from clients.batch.duplicates import Duplicates
from clients.batch.pairs import Pairs
from clients.prompts.rows import request_hash
from clients.records import ChatRequest


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(-9, 9))), st.integers(-1, 51), st.integers(-1, 51))
def test_pairs_are_found_by_their_first_number(found: list[tuple[int, int]], low: int, high: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_RUN", 7)
        kept = Pairs()
        for pair in found:
            kept.add(*pair)
        low, high = sorted((low, high))
        keys, values = kept.between(low, high)
        again = kept.between(low, high)
    expected = sorted(pair for pair in found if low <= pair[0] < high)
    assert sorted(zip(keys.to_pylist(), values.to_pylist(), strict=True)) == expected
    assert again == (keys, values)


def asked(row: int, prompt: int) -> ChatRequest:
    return ChatRequest(row=row, id="x", request_hash=request_hash({"prompt": prompt}), payload=b"{}")


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 5))
def test_a_duplicate_knows_the_first_and_the_last_row_that_ask_the_same(prompts: list[int], first_row: int) -> None:
    duplicates = Duplicates(first_row=first_row, rows=len(prompts))
    rows_of: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts, first_row):
        before = rows_of.setdefault(prompt, [])
        assert duplicates.earlier(asked(row, prompt)) == ((before[0], before[-1]) if before else None)
        before.append(row)


def test_a_table_that_is_nearly_full_still_finds_every_row() -> None:
    duplicates = Duplicates(first_row=0, rows=2000)
    order = [*range(1000), *range(1000)]
    random.Random(1).shuffle(order)
    seen: set[int] = set()
    for row, prompt in enumerate(order):
        assert (duplicates.earlier(asked(row, prompt)) is not None) == (prompt in seen)
        seen.add(prompt)
