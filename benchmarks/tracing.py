"""What a row's trace costs, and how many are lost when Langfuse takes a second for every answer.

Langfuse's stand-in is a process of its own that decodes what it gets; its CPU time is not counted.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

from benchmarks.measure import OURS, ROOT, Bench, BenchmarkError, Client
from benchmarks.report import Measurement, at_most
from clients.fake_vllm.process import FakeServer

TITLE = "Traces in Langfuse"

#: What the simulated server answers in a second, with so many slots.
_RATE_PER_S, _SLOTS = 1000, 256

_TOKENS = 20
_FEW = 10


def run(bench: Bench) -> list[Measurement]:
    """CPU beyond a run without traces, by turns; then a slow Langfuse."""
    rows, turns = (2000, 1) if bench.quick else (10_000, 3)
    step_ms = _SLOTS / _RATE_PER_S / _TOKENS * 1e3
    flags = ("--slots", str(_SLOTS), "--tokens-median", str(_TOKENS), "--tokens-sigma", "0.1")
    with FakeServer(*flags, "--step-base-ms", f"{step_ms:.6f}", "--step-per-request-us", "0") as server:
        with langfuse() as url:
            traced = _traced(url)
            taken = [[_cpu_ms(bench, client, rows, server) for client in (OURS, traced)] for _ in range(turns)]
            plain_ms, traced_ms = map(min, zip(*taken, strict=True))
        with langfuse("--latency", "1") as url:
            slow = _traced(url)
            _cpu_ms(bench, slow, rows, server)
            lost = rows + _FEW - _seen(url)
    return [
        Measurement("CPU a row", OURS.name, plain_ms, "ms"),
        Measurement("CPU a row", traced.name, traced_ms, "ms"),
        Measurement("CPU of a trace", traced.name, traced_ms - plain_ms, "ms", at_most(0.1)),
        Measurement("rows without a trace, each answer takes 1 s", slow.name, lost, "rows", at_most(0)),
    ]


@contextlib.contextmanager
def langfuse(*flags: str) -> Iterator[str]:
    """The stand-in; gives its address."""
    command = [sys.executable, "-m", "tests.servers.otlp_sink", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not (url := process.stdout.readline().strip()):
                raise BenchmarkError("the stand-in for Langfuse does not start")
            yield url
        finally:
            process.kill()


def _traced(url: str) -> Client:
    keys = {"LANGFUSE_PUBLIC_KEY": "pk-lf-test", "LANGFUSE_SECRET_KEY": "sk-lf-test", "LANGFUSE_BASE_URL": url}
    return dataclasses.replace(OURS, name="ours, traced", environment=tuple(keys.items()))


def _cpu_ms(bench: Bench, client: Client, rows: int, server: FakeServer) -> float:
    """Of a row, beyond a run of a few."""
    few = bench.run(client, _FEW, server, timeout_s=60)
    many = bench.run(client, rows, server, timeout_s=60 + rows / 50)
    if many.answered != rows:
        raise BenchmarkError(f"{client.name} answered {many.answered} of {rows} rows")
    return (many.usage.cpu_s - few.usage.cpu_s) / (rows - _FEW) * 1e3


def _seen(url: str) -> int:
    """Different rows that have arrived."""
    with urllib.request.urlopen(f"{url}/_seen", timeout=60) as answer:  # noqa: S310
        return len(json.load(answer)["rows"])
