"""The committer and the engine on a disk that refuses, is slow, or is full just when the run is stopped."""

import asyncio
import contextlib
import itertools
import json
import logging
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.batch.chat import ChatEndpoint
from clients.batch.commits import Committer
from clients.batch.engine import Engine, EngineSettings
from clients.batch.ledger import Ledger
from clients.batch.pool import Pool
from clients.batch.progress import Progress
from clients.batch.retry import RetryPolicy
from clients.errors import EndpointError, StorageError
from clients.records import ChatRequest, ChatResult, Outcome
from clients.storage import Folder
from tests.servers.openai_server import OpenAIServer
from tests.unit.test_openai_server import until

MODEL = "qwen3-30b-fp8"


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may hold a byte more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def request(row: int, text: str = "") -> ChatRequest:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text or f"row {row}"}]}
    return ChatRequest(row, f"row-{row}", f"{row:032x}", json.dumps(body).encode())


def result(row: int) -> ChatResult:
    return ChatResult(row=row, id=f"row-{row}", request_hash=f"{row:032x}", outcome=Outcome.OK, content="x", attempts=1)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(Folder(str(tmp_path)), first_row=0, rows=10_000) as opened:
        yield opened


def kept(folder: Path) -> list[int]:
    """Rows in the segments, as another process would find them."""
    with Ledger(Folder(f"{folder}/other"), earlier=(Folder(str(folder)),), first_row=0, rows=10_000) as reader:
        return [row for row in range(10_000) if reader.claim(request(row))]


def engine_over(
    server: OpenAIServer,
    committer: Committer,
    slots: int = 4,
    *,
    api_key: str | None = None,
    wait_s: float = 60.0,
    progress: Progress | None = None,
) -> Engine:
    return Engine(
        pool=Pool([ChatEndpoint(server.url, api_key=api_key)], cap=slots, wait_s=wait_s),
        committer=committer,
        progress=progress or Progress(shard=0, rows=10_000),
        settings=EngineSettings(retry=RetryPolicy(max_attempts=3, first_delay_s=0.01)),
    )


async def test_rows_are_kept_within_about_a_second_and_the_rest_on_leaving(ledger: Ledger, tmp_path: Path) -> None:
    async with Committer(ledger) as committer:
        committer.add(result(0))
        await asyncio.sleep(2.5)  # time enough on a busy machine, too
        assert ledger.unanswered() == 9_999
        committer.add(result(1))
    assert kept(tmp_path) == [0, 1]


async def test_many_rows_are_kept_at_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.batch.commits.COMMIT_INTERVAL_S", 3600.0)  # it is their number that counts
    async with Committer(ledger) as committer:
        for row in range(600):
            committer.add(result(row))
        await until(lambda: ledger.unanswered() == 9_400)


async def test_nothing_finished_is_lost_when_a_full_disk_gets_free_again(ledger: Ledger, tmp_path: Path) -> None:
    async with Committer(ledger, patience_s=(0.1,) * 30) as committer:
        with full_disk():
            for row in range(600):
                committer.add(result(row))
            await until(lambda: not committer.has_room)  # the first try has failed
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await committer.room()
        async with asyncio.timeout(2):
            await committer.room()
    assert kept(tmp_path) == list(range(600))


async def test_leaving_in_good_order_is_as_patient_with_a_full_disk(ledger: Ledger, tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        disk = contextlib.ExitStack()

        async def free_it() -> None:
            await asyncio.sleep(0.3)
            disk.close()

        async with Committer(ledger, patience_s=(0.1,) * 30) as committer:
            committer.add(result(7))
            disk.enter_context(full_disk())
            group.create_task(free_it())
    assert kept(tmp_path) == [7]


async def test_a_disk_that_stays_full_ends_the_run_with_what_was_kept_before(ledger: Ledger, tmp_path: Path) -> None:
    logging.disable()
    disk = contextlib.ExitStack()

    def rows() -> Iterator[ChatRequest]:
        for row in itertools.count():
            if row == 40:
                disk.enter_context(full_disk())
            yield request(row % 10_000)

    try:
        async with OpenAIServer(latency_s=0.03) as server:
            with pytest.raises(StorageError):
                await engine_over(server, Committer(ledger, patience_s=(0.05, 0.05)), slots=1).run(rows())
    finally:
        disk.close()
        logging.disable(logging.NOTSET)
    found = kept(tmp_path)
    assert found == list(range(len(found)))
    assert 20 <= len(found) <= 40
    assert len([task for task in asyncio.all_tasks() if not task.done()]) == 1, "a task was left behind"


async def test_a_commit_in_the_thread_survives_that_the_loop_is_cancelled(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Folder.write
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(self: Folder, name: str, data: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.3)
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", slow)
    committer = Committer(ledger)

    async def run() -> None:
        async with committer:
            for row in range(512):
                committer.add(result(row))
            await begun.wait()
            committer.add(result(600))
            await asyncio.sleep(30)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(run())
        await begun.wait()
        await asyncio.sleep(0.05)
        task.cancel()
    assert kept(tmp_path) == [*range(512), 600]
    assert len([name for name in ledger.home.names() if "other" not in name]) == 2, "nothing was written twice"


async def test_the_first_refusal_of_the_key_ends_the_run_and_leaves_no_task_behind(ledger: Ledger) -> None:
    async with OpenAIServer(api_key="right", latency_s=0.05) as server:
        with pytest.raises(ExceptionGroup) as caught:
            await engine_over(server, Committer(ledger), api_key="no").run(map(request, range(100)))
        assert len([path for path in server.paths if "chat" in path]) <= 8
    assert caught.group_contains(EndpointError)
    assert len([task for task in asyncio.all_tasks() if not task.done()]) == 1


async def test_while_no_connection_can_be_made_few_rows_are_read_and_few_tries_made(ledger: Ledger) -> None:
    read: list[int] = []

    def rows() -> Iterator[ChatRequest]:
        for row in range(10_000):
            read.append(row)
            yield request(row)

    async with OpenAIServer() as gone:
        pass
    engine = engine_over(gone, Committer(ledger), slots=8, wait_s=0.5)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(5):
            await engine.run(rows())
    assert caught.group_contains(EndpointError, match=r"could not be reached for 0.5 s .*run the same command again")
    assert len(read) <= 20


async def test_a_slot_is_free_while_its_row_waits_to_be_sent_again(ledger: Ledger) -> None:
    rows = [request(0, "[[fault:503x1,retry-after=0.5]] a"), *map(request, range(1, 20))]
    async with OpenAIServer() as server:
        await engine_over(server, Committer(ledger), slots=1).run(iter(rows))
        times = {seen.text: seen.received_at for seen in server.requests}
    assert server.peak_in_flight == 1
    assert next(iter(times)).startswith("[[fault")
    assert server.requests[-1].text.startswith("[[fault")


async def test_a_refusal_of_one_row_by_403_is_only_that_rows_once_others_are_answered(ledger: Ledger) -> None:
    progress = Progress(shard=0, rows=3)
    rows = [request(0), request(1, "[[fault:403]]"), request(2)]
    async with OpenAIServer() as server:
        await engine_over(server, Committer(ledger), slots=1, progress=progress).run(iter(rows))
    assert progress.outcomes == {"ok": 2, "failed": 1}
