"""Peak memory of the client with answers of 2 KB, from a server that answers at once."""

from benchmarks.measure import OPENAI_LOOP, OPENAI_POOL, OURS, Bench, BenchmarkError, Client
from benchmarks.report import Measurement, at_most
from clients.fake_vllm.process import FakeServer

TITLE = "Peak memory, answers of 2 KB"

_ANSWER_BYTES = 2048


def run(bench: Bench) -> list[Measurement]:
    """Ours up to a million rows; the openai client where it streams its output, and where it keeps everything."""
    few, many, most = (1000, 3000, 20_000) if bench.quick else (10_000, 100_000, 1_000_000)
    plan = {OURS: (few, many, most), OPENAI_POOL: (few, many), OPENAI_LOOP: (few, many)}
    found, peaks = [], {}
    with FakeServer("--instant", "--answer-bytes", str(_ANSWER_BYTES)) as server:
        for client, sizes in plan.items():
            for rows in sizes:
                peak = peaks[client, rows] = _peak_mb(bench, client, rows, server)
                target = at_most(200) if rows == most else None
                found.append(Measurement(f"peak, {rows:,} rows", client.name, peak, "MB", target))
    ours = peaks[OURS, many]
    growth = 100 * (peaks[OURS, most] / ours - 1)
    return [
        *found,
        Measurement(
            f"peak / openai_pool's, {many:,} rows", OURS.name, ours / peaks[OPENAI_POOL, many], "x", at_most(0.5)
        ),
        Measurement(f"peak / openai_loop's, {many:,} rows", OURS.name, ours / peaks[OPENAI_LOOP, many], "x"),
        Measurement(f"growth from {many:,} to {most:,} rows", OURS.name, growth, "%", at_most(5)),
    ]


def _peak_mb(bench: Bench, client: Client, rows: int, server: FakeServer) -> float:
    done = bench.run(client, rows, server, timeout_s=60 + rows / 100)
    if done.tally["texts_answered"] != rows:
        raise BenchmarkError(f"{client.name} has {done.tally['texts_answered']} of {rows} rows")
    bench.discard(done)
    return done.usage.peak_mb
