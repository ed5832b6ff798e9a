import asyncio
from collections.abc import Iterator

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
