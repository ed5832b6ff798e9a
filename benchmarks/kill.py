"""SIGKILL at half, and the same command again: what is lost, and what is done twice."""

import time
from pathlib import Path

from benchmarks.inputs import Work
from benchmarks.measure import (
    OPENAI_LOOP,
    OURS,
    Bench,
    BenchmarkError,
    Client,
    ClientProcess,
    rows_answered,
    wait_until_idle,
)
from benchmarks.report import Measurement, at_most
from clients.fake_vllm.process import FakeServer

TITLE = "SIGKILL at half, and the same command again"


def run(bench: Bench) -> list[Measurement]:
    """Ours and the openai loop."""
    slots, rows, seconds = (32, 300, 3.0) if bench.quick else (256, 4000, 20.0)
    work = Work(rows=rows, slots=slots, seconds=seconds)
    loop = OPENAI_LOOP.told("--concurrency", str(2 * slots))
    with FakeServer(*work.flags) as server:
        return [*killed_at_half(bench, OURS, work, server), *killed_at_half(bench, loop, work, server)]


def killed_at_half(bench: Bench, client: Client, work: Work, server: FakeServer) -> list[Measurement]:
    """One client, killed once.

    A request that is in flight at the kill is aborted by the server, so a row with two answers was answered before
    the kill and again after it: that is work done twice.
    """
    folder, limit_s = bench.new_folder(), 60 + 6 * work.seconds
    ours = client is OURS
    bench.prompts(work.rows)
    server.reset()
    with bench.start(client, work.rows, server, folder) as process:
        _kill_at_half(process, server, work.rows, limit_s)
    before = wait_until_idle(server)
    readable = _readable(folder / "state" if ours else client.results(folder))
    with bench.start(client, work.rows, server, folder) as process:
        process.wait_for_success(limit_s)
    after = server.tally(rows=True)
    twice = sum(counts["answers"] > 1 for counts in after["rows"].values())
    lost = work.rows - rows_answered(client.results(folder))
    share = 100 * twice / work.rows
    pace = before["answered"] / before["makespan_s"]
    return [
        Measurement("answered by the server at the kill", client.name, before["answered"], "rows"),
        Measurement("readable before the second run", client.name, readable, "rows"),
        Measurement("in flight at the kill", client.name, before["aborted"], "requests"),
        Measurement("answered twice, of all rows", client.name, share, "%", at_most(0.05) if ours else None),
        Measurement("answered twice, as time", client.name, twice / pace, "s"),
        Measurement("lost after the second run", client.name, lost, "rows", at_most(0) if ours else None),
    ]


def _kill_at_half(process: ClientProcess, server: FakeServer, rows: int, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while server.tally()["answered"] < rows // 2:
        if process.ended(0.02) or time.monotonic() > deadline:
            raise BenchmarkError("the client could not be killed at half: it ended before, or never got there")
    process.kill()


def _readable(place: Path) -> int:
    return rows_answered(place) if place.exists() else 0
