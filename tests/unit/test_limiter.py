import asyncio

import pytest

from clients.batch.limiter import Limiter
from clients.errors import SettingsError


async def test_no_more_slots_are_held_than_there_are() -> None:
    limiter, held, most = Limiter(3), 0, 0

    async def work() -> None:
        nonlocal held, most
        await limiter.acquire()
        held += 1
        most = max(most, held)
        await asyncio.sleep(0)
        held -= 1
        limiter.release()

    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(work())
    assert most == 3
    assert limiter.in_flight == 0


async def test_a_slot_given_to_a_turn_that_is_cancelled_goes_to_the_next() -> None:
    limiter = Limiter(1)
    await limiter.acquire()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(limiter.acquire())
        second = group.create_task(limiter.acquire())
        await asyncio.sleep(0)
        limiter.release()
        first.cancel()
        async with asyncio.timeout(1):
            await second
    assert limiter.in_flight == 1


async def test_a_turn_cancelled_while_it_waits_takes_no_slot() -> None:
    limiter = Limiter(1)
    await limiter.acquire()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(limiter.acquire())
        await asyncio.sleep(0)
        waiting.cancel()
    limiter.release()
    assert limiter.in_flight == 0
    await limiter.acquire()
    assert limiter.in_flight == 1


async def test_a_limit_raised_later_lets_the_next_one_through() -> None:
    limiter = Limiter(1)
    await limiter.acquire()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(limiter.acquire()) for _ in range(2)]
        await asyncio.sleep(0)
        limiter.limit = 3
        limiter.release()
        await asyncio.sleep(0)
        limiter.release()
        async with asyncio.timeout(1):
            await asyncio.wait(tasks)
    assert limiter.in_flight == 1


@pytest.mark.parametrize("limit", [0, -1])
def test_no_slot_at_all_is_a_mistake_in_the_settings(limit: int) -> None:
    with pytest.raises(SettingsError, match="concurrency must be at least 1"):
        Limiter(limit)
