import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.batch.backlog import Backlog, Work
from clients.records import ChatRequest


def requests(count: int) -> list[ChatRequest]:
    return [ChatRequest(row, f"row-{row}", f"{row:032x}", b"{}") for row in range(count)]


async def taken(backlog: Backlog) -> Work:
    async with asyncio.timeout(2):
        work = await backlog.take()
    assert work is not None
    return work


async def test_rows_come_in_order_and_then_nothing() -> None:
    backlog = Backlog(iter(requests(3)))
    assert [(await taken(backlog)).request.row for _ in range(3)] == [0, 1, 2]
    for _ in range(3):
        backlog.finished()
    assert await backlog.take() is None
    assert await backlog.take() is None


async def test_an_empty_input_ends_at_once() -> None:
    assert await Backlog(iter([])).take() is None


async def test_a_retry_that_is_due_comes_before_a_new_row() -> None:
    backlog = Backlog(iter(requests(3)))
    first = await taken(backlog)
    backlog.again(first, 0)
    assert await taken(backlog) is first
    assert (await taken(backlog)).request.row == 1


async def test_a_retry_that_is_not_due_holds_no_new_row_back_and_the_earliest_comes_first() -> None:
    backlog = Backlog(iter(requests(3)))
    first, second = await taken(backlog), await taken(backlog)
    backlog.again(first, 0.1)
    backlog.again(second, 0.05)
    assert backlog.waiting == 2
    assert backlog.in_flight == 0
    assert [(await taken(backlog)).request.row for _ in range(3)] == [2, 1, 0]


async def test_the_end_waits_for_rows_that_may_still_come_back() -> None:
    backlog = Backlog(iter(requests(1)))
    work = await taken(backlog)
    async with asyncio.TaskGroup() as group:
        last = group.create_task(backlog.take())
        await asyncio.sleep(0.01)
        assert not last.done()
        backlog.again(work, 0.01)
        assert await last is work
        end = group.create_task(backlog.take())
        await asyncio.sleep(0.01)
        backlog.finished()
        assert await end is None


async def test_while_very_many_rows_wait_no_new_one_is_read() -> None:
    read: list[int] = []

    def source() -> Iterator[ChatRequest]:
        for request in requests(1000):
            read.append(request.row)
            yield request

    backlog = Backlog(source(), max_waiting=5)
    for _ in range(5):
        backlog.again(await taken(backlog), 0.05)
    assert (await taken(backlog)).request.row == 0
    assert len(read) == 5


async def test_a_long_stretch_without_rows_to_send_leaves_the_loop_free() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with asyncio.TaskGroup() as group:
        task = group.create_task(other())
        assert (await taken(Backlog(iter([*[None] * 100, *requests(1)])))).request.row == 0
        task.cancel()
    assert turns >= 90


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_every_row_is_handed_out_once_more_than_it_is_given_back(failures: list[int], max_waiting: int) -> None:
    async def run() -> list[int]:
        backlog = Backlog(iter(requests(len(failures))), max_waiting=max_waiting)
        seen = [0] * len(failures)
        while (work := await backlog.take()) is not None:
            row = work.request.row
            seen[row] += 1
            if seen[row] <= failures[row]:
                backlog.again(work, 0.0001 * (row % 3))
            else:
                backlog.finished()
        return seen

    assert asyncio.run(run()) == [failed + 1 for failed in failures]


async def set_aside(backlog: Backlog, *rows: Work) -> None:
    for work in rows:
        backlog.set_aside(work)


async def test_rows_that_were_set_aside_come_last_one_first_and_then_more_at_once() -> None:
    backlog = Backlog(iter(requests(9)))
    suspects = [await taken(backlog) for _ in range(7)]
    await set_aside(backlog, *suspects)
    assert backlog.waiting == 7
    others = [await taken(backlog), await taken(backlog)]
    assert [work.request.row for work in others] == [7, 8]
    backlog.finished()
    assert backlog.take_now() is None, "another row is under way"
    backlog.finished()
    at_once = []
    while backlog.waiting:
        under_way = []
        while (work := backlog.take_now()) is not None:
            under_way.append(work.request.row)
        at_once.append(under_way)
        for _ in under_way:
            backlog.finished()
    assert at_once == [[0], [1, 2], [3, 4, 5, 6]]
    assert await backlog.take() is None


async def test_a_row_that_is_set_aside_twice_is_alone_whatever_else_waits() -> None:
    backlog = Backlog(iter(requests(4)))
    suspects = [await taken(backlog) for _ in range(4)]
    await set_aside(backlog, *suspects)
    assert await taken(backlog) is suspects[0]
    backlog.finished()
    pair = [await taken(backlog), await taken(backlog)]
    await set_aside(backlog, *pair)
    order = []
    for _ in range(3):
        order.append((await taken(backlog)).request.row)
        assert backlog.take_now() is None
        backlog.finished()
    assert order == [3, 1, 2]


async def test_a_row_that_is_alone_stays_so_when_it_is_tried_again() -> None:
    backlog = Backlog(iter(requests(2)))
    await set_aside(backlog, await taken(backlog), await taken(backlog))
    first = await taken(backlog)
    assert not first.is_alone
    backlog.set_aside(first)
    second = await taken(backlog)
    backlog.finished()
    assert await taken(backlog) is first
    assert (first.is_alone, second.is_alone) == (True, False)
    backlog.again(first, 0.05)
    assert backlog.take_now() is None
    assert await taken(backlog) is first
    assert backlog.take_now() is None
    backlog.finished()
    assert await backlog.take() is None


def sent(work: Work | None) -> Work:
    """A row that was handed out, as if its request were under way from now on."""
    assert work is not None
    work.flights.append(SimpleNamespace(started=asyncio.get_running_loop().time()))
    return work


async def test_rows_that_were_set_aside_do_not_wait_for_long_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.batch.backlog._HARMLESS_S", 0.1)
    backlog = Backlog(iter(requests(7)))
    await set_aside(backlog, *[await taken(backlog) for _ in range(7)])
    first = await taken(backlog)
    await asyncio.sleep(0.15)
    assert backlog.take_now() is None, "it waits for its server, which is down"
    sent(first)
    assert backlog.take_now() is None
    assert sent(await taken(backlog)).request.row == 1  # after a while
    assert backlog.take_now() is None, "two at once"
    assert sent(await taken(backlog)).request.row == 2
    assert sent(backlog.take_now()).request.row == 3
    assert backlog.take_now() is None, "four at once"
    for _ in range(4):
        backlog.finished()
    assert backlog.take_now() is not None


async def test_a_row_is_alone_only_as_long_as_nothing_else_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.batch.backlog._HARMLESS_S", 0.1)
    backlog = Backlog(iter(requests(2)))
    await set_aside(backlog, await taken(backlog), await taken(backlog))
    for _ in range(2):
        backlog.set_aside(await taken(backlog))
    first = sent(await taken(backlog))
    assert first.is_alone
    second = sent(await taken(backlog))
    assert (first.is_alone, second.is_alone) == (False, False)
    backlog.finished()
    backlog.finished()
    assert await backlog.take() is None
