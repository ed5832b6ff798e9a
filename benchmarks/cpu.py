"""CPU per request, ledger, Parquet and report included, against clients that keep less."""

from benchmarks.measure import AIOHTTP_POOL, OPENAI_LOOP, OURS, Bench, BenchmarkError, Client
from benchmarks.report import Measurement, Target, at_least
from clients.fake_vllm.process import FakeServer

TITLE = "CPU per request, beyond a run of ten rows"

#: What the simulated server answers in a second, whatever its slots; the openai client does not reach it.
_RATE_PER_S = 1500

_TOKENS = 20
_FEW = 10


def run(bench: Bench) -> list[Measurement]:
    """64 and 1,024 in flight; the peers are told so, ours finds out."""
    rows, peer_rows = (3000, 600) if bench.quick else (12_000, 3000)
    found = measure_at(bench, 64, rows, peer_rows, at_least(11))
    return found + measure_at(bench, 1024, rows, 1200 if bench.quick else 4000, at_least(14))


def measure_at(bench: Bench, in_flight: int, rows: int, loop_rows: int, target: Target | None) -> list[Measurement]:
    """One server whose slots are that many.

    Args:
        bench: Where to run.
        in_flight: Slots, and the concurrency of the peers.
        rows: For the fast clients.
        loop_rows: For the openai loop.
        target: How many times as much the openai loop should take.
    """
    step_ms = in_flight / _RATE_PER_S / _TOKENS * 1e3
    flags = ("--slots", str(in_flight), "--tokens-median", str(_TOKENS), "--tokens-sigma", "0.1")
    told = ("--concurrency", str(in_flight))
    clients = ((OURS, rows), (AIOHTTP_POOL.told(*told), rows), (OPENAI_LOOP.told(*told), loop_rows))
    cpu_ms: dict[str, float] = {}
    found = []
    with FakeServer(*flags, "--step-base-ms", f"{step_ms:.6f}", "--step-per-request-us", "0") as server:
        for client, count in clients:
            cpu_ms[client.name], peak = _marginal_ms(bench, client, count, server)
            found += [
                Measurement(f"CPU a request, {in_flight:,} slots", client.name, cpu_ms[client.name], "ms"),
                Measurement(f"most in flight, {in_flight:,} slots", client.name, peak, "requests"),
            ]
    for peer, goal in ((AIOHTTP_POOL.name, None), (OPENAI_LOOP.name, target)):
        what = f"CPU of {peer} / ours, {in_flight:,} slots"
        found.append(Measurement(what, OURS.name, cpu_ms[peer] / cpu_ms[OURS.name], "x", goal))
    return found


def _marginal_ms(bench: Bench, client: Client, rows: int, server: FakeServer) -> tuple[float, int]:
    few = bench.run(client, _FEW, server, timeout_s=60)
    many = bench.run(client, rows, server, timeout_s=60 + rows / 50)
    if many.answered != rows:
        raise BenchmarkError(f"{client.name} answered {many.answered} of {rows} rows")
    return (many.usage.cpu_s - few.usage.cpu_s) / (rows - _FEW) * 1e3, many.tally["peak_in_flight"]
