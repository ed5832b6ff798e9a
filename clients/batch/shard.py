"""Run one shard from its spec: ledger, endpoint and engine put together, and stopped cleanly by a signal."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from clients.batch.chat import ChatClient, Timeouts
from clients.batch.commits import Committer
from clients.batch.engine import Engine, EngineSettings
from clients.batch.ledger import Ledger, State
from clients.batch.limiter import Limiter
from clients.batch.progress import Progress
from clients.errors import LLMInferenceError
from clients.prompts.columns import CarriedColumns
from clients.prompts.lines import read_lines
from clients.prompts.plan import Shard
from clients.prompts.rows import parse_row
from clients.records import ChatRequest, InvalidRow
from clients.results.assemble import write_results
from clients.storage import Folder


class InterruptedRunError(LLMInferenceError):
    """SIGTERM or SIGINT ended the run; what was answered is committed.

    Attributes:
        exit_code: 128 + the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__("interrupted; finished rows are kept, the same command goes on from there")
        self.exit_code = 128 + signum


def open_ledger(shard: Shard) -> Ledger:
    """The shard's ledger under its state root, with the answers of other plans under the same root at hand."""
    state = State(Folder(shard.state))
    return Ledger(
        state.home(shard.plan, shard.shard),
        earlier=state.earlier(shard.plan),
        first_row=shard.part.first_row,
        rows=shard.rows,
    )


def run_shard(
    shard: Shard, ledger: Ledger, *, api_key: str | None, settings: EngineSettings, timeouts: Timeouts
) -> Progress:
    """Bring every row of the shard that has no committed answer to an outcome.

    Raises:
        EndpointError, StorageError: as in `Engine.run`.
        InterruptedRunError: a signal asked the process to stop.
    """
    progress = Progress(shard=shard.shard, rows=shard.rows)

    async def run() -> None:
        async with ChatClient(shard.base_url, api_key=api_key, timeouts=timeouts) as chat:
            limiter = Limiter(shard.concurrency)
            engine = Engine(
                chat=chat, committer=Committer(ledger), limiter=limiter, progress=progress, settings=settings
            )
            await engine.run(_to_send(shard, ledger, progress))

    try:
        _run_until_signal(run)
    finally:
        progress.report(in_flight=0, waiting=0, force=True)
    return progress


def write_part(shard: Shard, ledger: Ledger, path: Path) -> int:
    """Write the shard's rows, each with its answer, in input order.

    Returns:
        Rows for which no answer is committed; each stands in the file as `failed`, with `error_code = "missing"`.
    """
    rows = (parse_row(line, shard.defaults) for line in read_lines(shard.prompts, shard.part))
    return write_results(
        path,
        rows,
        ledger.rows_by_segment(),
        CarriedColumns(shard.carried),
        first_row=shard.part.first_row,
        settings=shard.settings(),
    )


def _to_send(shard: Shard, ledger: Ledger, progress: Progress) -> Iterator[ChatRequest]:
    """The shard's rows that need an answer, read as they are asked for."""
    for line in read_lines(shard.prompts, shard.part):
        request = parse_row(line, shard.defaults).request
        if isinstance(request, InvalidRow):
            progress.malformed()
        elif (outcome := ledger.claim(request)) is not None:
            progress.reuse(outcome)
        else:
            yield request


def _run_until_signal(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    received: list[int] = []

    async def guarded() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop(signum: int) -> None:
            received.append(signum)
            if task is not None:
                task.cancel()

        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, stop, signum)
        await main()

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(guarded())
    except asyncio.CancelledError:
        raise InterruptedRunError(received[0] if received else signal.SIGINT) from None
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error a person can act on, from the several that a group of tasks ended with."""
    flat: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        error = todo.pop(0)
        if isinstance(error, BaseExceptionGroup):
            todo.extend(error.exceptions)
        else:
            flat.append(error)
    return next((error for error in flat if isinstance(error, LLMInferenceError)), flat[0])


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where it is installed; it halves the cost of a request but is no necessity."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None
