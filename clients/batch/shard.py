"""Run one shard from its spec: ledger, endpoint and engine put together."""

import asyncio
import contextlib
import dataclasses
import resource
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from clients.batch.chat import ChatEndpoint, Timeouts
from clients.batch.commits import Committer
from clients.batch.controller import MOST
from clients.batch.duplicates import Duplicates
from clients.batch.engine import Engine, EngineSettings
from clients.batch.expectations import Expectations
from clients.batch.ledger import Ledger, State, finished_parts
from clients.batch.longest_first import longest_first
from clients.batch.options import RunOptions
from clients.batch.pool import Pool
from clients.batch.progress import Progress
from clients.batch.sent_rows import SentRows
from clients.errors import LLMInferenceError, PromptsError
from clients.prompts.columns import CarriedColumns
from clients.prompts.lines import read_lines
from clients.prompts.plan import Shard
from clients.prompts.rows import Row, parse_row
from clients.records import ChatRequest, InvalidRow
from clients.storage import Folder, shown
from clients.tracing.tracer import NoTracer, Tracer

#: While its block lasts, it calls the function it is given when the run has to stop; at the end it says so.
Stopping = Callable[[Callable[[], object]], contextlib.AbstractContextManager[None]]


@dataclasses.dataclass(frozen=True)
class ShardRun:
    """What became of a shard.

    Attributes:
        progress: Its counts.
        stop_reason: Why it ended before its last row, or None.
        seconds: See `Verdict.seconds`.
        sent: What was asked for each row.
        tracing: Counts of its traces as `traces` and the address of one as `trace_url`; empty when tracing is off.
    """

    progress: Progress
    stop_reason: str | None
    seconds: dict[str, float]
    sent: SentRows
    tracing: dict[str, Any] = dataclasses.field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What a reader of the results wants to know about how they came about."""
        return {"stop_reason": self.stop_reason, "seconds": self.seconds, **self.tracing}


#: Rows that are read and found answered, at some 40 us each, before the loop looks after anything else.
_ROWS_AT_A_TIME = 200


def open_ledger(shard: Shard) -> Ledger:
    """The shard's ledger under its state root, with the answers of other plans under the same root at hand."""
    state, options = State(Folder(shard.state)), RunOptions.from_json(shard.options)
    reused = finished_parts(shard.reuse) if shard.reuse else ()
    return Ledger(
        state.home(shard.plan, shard.shard),
        earlier=state.earlier(shard.plan),
        parts=reused,
        first_row=shard.part.first_row,
        rows=shard.rows,
        retry=options.retry,
        share=options.join_duplicates,
    )


def run_shard(
    shard: Shard,
    ledger: Ledger,
    *,
    api_key: str | None,
    timeouts: Timeouts,
    stopping: Stopping,
    tracer: Tracer | None = None,
    see: Callable[[Progress], object] | None = None,
) -> ShardRun:
    """Bring every row of the shard that has no committed answer to an outcome.

    Args:
        shard: The shard.
        ledger: Its ledger.
        api_key: See ChatEndpoint.
        timeouts: See Timeouts.
        stopping: When it calls what it is given, requests in flight are dropped and finished rows committed.
        tracer: Told of every row; closing it is left to the caller.
        see: Given the counts at the start, to look at them from another thread.

    Raises:
        EndpointError, StorageError: as in `Engine.run`.
    """
    options = RunOptions.from_json(shard.options)
    joins = options.join_duplicates and shard.may_repeat  # looking for equal rows takes 4 us a row
    progress = Progress(shard=shard.shard, rows=shard.rows, first_row=shard.part.first_row, joins=joins)
    tracer = tracer or NoTracer()
    if see is not None:
        see(progress)
    settings = EngineSettings(policies=options.policies(), budgets=options.budgets(), keep_raw=options.raw_response)
    endpoints = [ChatEndpoint(url, api_key=api_key, timeouts=timeouts) for url in shard.base_url.split()]
    lengths = Expectations(_known_lengths(options.lengths_from))
    engines: list[Engine] = []
    sent = SentRows()

    async def run() -> None:
        pool = Pool(endpoints, cap=_cap(shard.concurrency), wait_s=shard.server_wait_s)
        engine = Engine(
            pool=pool,
            committer=Committer(ledger, tracer=tracer),
            progress=progress,
            settings=settings,
            learn=lengths.learn,
            tracer=tracer,
        )
        engines.append(engine)
        requests = _to_send(shard, ledger, progress, sent, tracer, join=joins)
        await engine.run(longest_first(requests, lengths))

    try:
        _run(run, stopping)
    finally:
        progress.report(in_flight=0, waiting=0, force=True)
    (engine,) = engines
    return ShardRun(progress, engine.stop_reason, engine.seconds, sent)


def _known_lengths(location: str) -> Callable[[str], int | None] | None:
    """What an earlier run tells of lengths; None without one."""
    if not location:
        return None
    from clients.batch.lengths import KnownLengths  # late, with Arrow: the first request is sent sooner without

    return KnownLengths(location).tokens


def _cap(concurrency: int) -> int:
    """The limit set by hand, and never more connections than this process may open."""
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MOST if soft == resource.RLIM_INFINITY else max(16, soft - 128)
    return min(concurrency or MOST, files)


def write_part(shard: Shard, ledger: Ledger, path: Path, *, run: ShardRun, told: str = "") -> int:
    """Write the shard's rows, each with its answer, in input order, and how the run went.

    Args:
        shard: The shard.
        ledger: Its ledger.
        path: The file to write.
        run: What `run_shard` returned.
        told: What a reader is told the prompts were; "" for where they are read.

    Returns:
        Rows for which no answer is committed; each stands in the file as `failed`, with `error_code = "missing"`.

    Raises:
        PromptsError: the input was changed while the shard ran and has fewer or more rows now.
    """
    from clients.results.assemble import write_results  # late, with Arrow

    return write_results(
        path,
        _all_rows(shard, run.sent),
        ledger.rows_by_segment(),
        CarriedColumns(shard.carried),
        joined=ledger.joined,
        first_row=shard.part.first_row,
        settings=shard.settings() | ({"prompts": shown(told)} if told else {}),
        run=run.facts(),
    )


def _all_rows(shard: Shard, sent: SentRows) -> Iterator[Row]:
    found = 0
    for row in sent.rows(read_lines(shard.prompts, shard.part), shard.defaults):
        yield row
        found += 1
    if found != shard.rows:
        raise PromptsError(
            f"{shard.prompts} changed while it was run: shard {shard.shard} has {found} rows now, {shard.rows} when it "
            "was checked. Answered rows are kept; run the same command again."
        )


def _to_send(
    shard: Shard, ledger: Ledger, progress: Progress, sent: SentRows, tracer: Tracer, *, join: bool
) -> Iterator[ChatRequest | None]:
    """The shard's rows that need an answer, read as they are asked for; None between many that need none."""
    duplicates = Duplicates(first_row=shard.part.first_row, rows=shard.rows) if join else None
    idle = 0
    for line in read_lines(shard.prompts, shard.part):
        row = parse_row(line, shard.defaults)
        sent.note(line, row)
        request = row.request
        if isinstance(request, InvalidRow):
            progress.malformed()
        elif (outcome := ledger.claim(request)) is not None:
            progress.reuse(outcome)
            tracer.reused(request)
        elif duplicates is not None and (earlier := duplicates.earlier(request)) is not None:
            first, last = earlier
            ledger.join(request.row, last)
            progress.join(first)
        else:
            yield request
            continue
        idle += 1
        if idle % _ROWS_AT_A_TIME == 0:
            yield None


def _run(main: Callable[[], Coroutine[Any, Any, None]], stopping: Stopping) -> None:
    async def guarded() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        with stopping(lambda: loop.call_soon_threadsafe(task.cancel) if task else None):
            await main()

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(guarded())
    except BaseExceptionGroup as group:  # a signal may be among what its tasks raised
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
