"""What a client does before its first request.

One row, and a server that takes half a second for it: when its tally shows the request, the client has nothing to do
but wait, so its CPU time can be read without haste. The clock runs from the start of the process to the tally, which
is asked every few milliseconds.
"""

import statistics
import time

from benchmarks.measure import AIOHTTP_POOL, OPENAI_LOOP, OURS, Bench, BenchmarkError, Client
from benchmarks.report import Measurement, at_most
from clients.fake_vllm.process import FakeServer

TITLE = "Start to first request"

_ANSWER_S = 0.5
_LIMIT_S = 60.0
_POLL_S = 0.005


def run(bench: Bench) -> list[Measurement]:
    """The median of some starts of each, by turns, after one that warms the disk."""
    turns = 2 if bench.quick else 7
    clients = (OURS, AIOHTTP_POOL, OPENAI_LOOP)
    taken: dict[str, list[tuple[float, float]]] = {client.name: [] for client in clients}
    flags = ("--tokens-median", "1", "--tokens-sigma", "0", "--step-base-ms", str(_ANSWER_S * 1e3))
    with FakeServer(*flags) as server:
        for turn in range(turns + 1):
            for client in clients:
                one = _start(bench, client, server)
                if turn:
                    taken[client.name].append(one)
    cpu = {name: statistics.median(cpu_s for cpu_s, _ in taken[name]) for name in taken}
    wall = {name: statistics.median(wall_s for _, wall_s in taken[name]) for name in taken}
    ratio, wall_ratio = cpu[OURS.name] / cpu[OPENAI_LOOP.name], wall[OURS.name] / wall[OPENAI_LOOP.name]
    return [
        *(Measurement("CPU to the first request", name, cpu[name], "s") for name in cpu),
        *(Measurement("time to the first request", name, wall[name], "s") for name in wall),
        Measurement("CPU / openai_loop's", OURS.name, ratio, "x", at_most(0.25)),
        Measurement("time / openai_loop's", OURS.name, wall_ratio, "x"),
    ]


def _start(bench: Bench, client: Client, server: FakeServer) -> tuple[float, float]:
    """CPU and seconds to the first request."""
    folder = bench.new_folder()
    bench.prompts(1)
    server.reset()
    began = time.monotonic()
    with bench.start(client, 1, server, folder) as process:
        while not server.tally()["requests"]:
            if process.ended(_POLL_S) or time.monotonic() - began > _LIMIT_S:
                raise BenchmarkError(f"{client.name} sent no request")
        wall_s, cpu_s = time.monotonic() - began, process.cpu_s()
        process.wait_for_success(_LIMIT_S)
    return cpu_s, wall_s
