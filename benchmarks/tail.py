"""Longest first: a few rows a slot, whose lengths an earlier run knows."""

from benchmarks.inputs import Work
from benchmarks.measure import OURS, Bench
from benchmarks.report import Measurement, at_most
from clients.fake_vllm.process import FakeServer

TITLE = "Long tail, makespan over the first-come ideal"


def run(bench: Bench) -> list[Measurement]:
    """A plain run, then the same rows anew with the lengths that it found."""
    work = tail_work(quick=bench.quick)
    ideal_s, oracle_s = work.ideal_s(), work.ideal_s(longest_first=True)
    limit_s = 60 + 5 * ideal_s
    with FakeServer(*work.flags) as server:
        plain = bench.run(OURS, work.rows, server, timeout_s=limit_s)
        informed = OURS.told("--fresh", "--lengths-from", str(plain.results))
        known = bench.run(informed, work.rows, server, timeout_s=limit_s)
    lost = 2 * work.rows - plain.answered - known.answered
    return [
        Measurement("longest first by an oracle", "ideal", oracle_s / ideal_s, "x"),
        Measurement("plain order", OURS.name, plain.tally["makespan_s"] / ideal_s, "x"),
        Measurement("lengths from an earlier run", OURS.name, known.tally["makespan_s"] / ideal_s, "x", at_most(0.9)),
        Measurement("rows not answered", OURS.name, lost, "rows", at_most(0)),
    ]


def tail_work(*, quick: bool) -> Work:
    """Five rows a slot, spread widely."""
    slots, seconds = (64, 5.0) if quick else (256, 20.0)
    return Work(rows=5 * slots, slots=slots, seconds=seconds, sigma=1.0)
