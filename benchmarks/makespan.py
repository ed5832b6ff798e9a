"""From the first request to the last answer, over the ideal: every row on offer at once, first come first served.

A row that is sent away and comes again changes the order, and with it what the end looks like: a ratio may lie a little
below 1. Rows are drawn so that the longest takes about half of the ideal.
"""

from benchmarks.inputs import Work
from benchmarks.measure import AIOHTTP_POOL, OPENAI_LOOP, OURS, Bench, Client
from benchmarks.report import Measurement, at_most
from clients.fake_vllm.process import FakeServer

TITLE = "Makespan over the ideal, no concurrency given"

_GATEWAY_QUEUE = 32
_MOST_IN_FLIGHT = at_most(2.2)


def run(bench: Bench) -> list[Measurement]:
    """One replica, four behind one address, and a gateway that sends away."""
    found = []
    for slots in (64,) if bench.quick else (64, 256, 1024):
        work = _work(bench, slots)
        peers = () if slots != (64 if bench.quick else 256) else _peers()
        found += _saturated(bench, work, f"1 x {slots:,} slots", 1.02, peers)
    for slots in (16,) if bench.quick else (64, 256):
        found += _saturated(bench, _work(bench, slots, replicas=4), f"4 x {slots} slots", 1.03)
    for metrics in (True, False):
        found += _behind_gateway(bench, _work(bench, 64 if bench.quick else 256), metrics=metrics)
    return found


def _work(bench: Bench, slots: int, replicas: int = 1) -> Work:
    rows_a_slot, seconds = (5, 3.0) if bench.quick else (12, 20.0)
    return Work(rows=rows_a_slot * slots * replicas, slots=slots, replicas=replicas, seconds=seconds)


def _peers() -> tuple[Client, ...]:
    """With 64, which people set, and with 512, which somebody found out by hand for 256 slots."""
    return OPENAI_LOOP.told("--concurrency", "64"), AIOHTTP_POOL.told("--concurrency", "512")


def _saturated(
    bench: Bench, work: Work, where: str, target: float, peers: tuple[Client, ...] = ()
) -> list[Measurement]:
    ideal_s, found = work.ideal_s(), []
    with FakeServer(*work.flags) as server:
        for client in (OURS, *peers):
            done = bench.run(client, work.rows, server, timeout_s=30 + 10 * ideal_s)
            goal, most = (at_most(target), _MOST_IN_FLIGHT) if client is OURS else (None, None)
            name = " ".join((client.name, *client.flags[1:]))
            peak = done.tally["peak_in_flight"] / work.all_slots
            found += [
                Measurement(f"makespan / ideal, {where}", name, done.tally["makespan_s"] / ideal_s, "x", goal),
                Measurement(f"most in flight / slots, {where}", name, peak, "x", most),
            ]
            if done.answered != work.rows:
                found.append(Measurement(f"rows not answered, {where}", name, work.rows - done.answered, "rows"))
    return found


def _behind_gateway(bench: Bench, work: Work, *, metrics: bool) -> list[Measurement]:
    ideal_s = work.ideal_s()
    flags = ("--gateway-queue", str(_GATEWAY_QUEUE), *(() if metrics else ("--no-metrics",)))
    with FakeServer(*work.flags, *flags) as server:
        done = bench.run(OURS, work.rows, server, timeout_s=30 + 10 * ideal_s)
    where = f"gateway, {'with' if metrics else 'no'} /metrics"
    ratio, broken = done.tally["makespan_s"] / ideal_s, done.tally["retry_after_broken"]
    return [
        Measurement(f"makespan / ideal, {where}", OURS.name, ratio, "x", at_most(1.05)),
        Measurement(f"rows not answered, {where}", OURS.name, work.rows - done.answered, "rows", at_most(0)),
        Measurement(f"Retry-After broken, {where}", OURS.name, broken, "times", at_most(0)),
        Measurement(f"429 received, {where}", OURS.name, done.tally["statuses"].get("429", 0), "times"),
    ]
