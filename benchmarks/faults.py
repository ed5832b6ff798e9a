"""Eleven kinds of fault at once, and rows that can never work."""

from benchmarks.inputs import Work, text_of
from benchmarks.measure import AIOHTTP_POOL, OPENAI_LOOP, OURS, Bench
from benchmarks.report import Measurement, at_most
from clients.fake_vllm.chat import mark_of
from clients.fake_vllm.faults import FaultPlan
from clients.fake_vllm.process import FakeServer

TITLE = "Eleven kinds of fault at once"

_KINDS = (
    *("http_500", "http_502", "http_503", "http_504", "http_429", "reset", "truncated", "hang"),
    *("bad_json", "no_choices", "idle_close"),
)
_SHARES = {**dict.fromkeys(_KINDS, 0.02), "reject": 0.005}

#: What a user would set who has seen how many run at once; the timeout is about twice the longest answer's time.
_BY_HAND = ("--attempts", "6", "--concurrency", "512")


def run(bench: Bench) -> list[Measurement]:
    """Ours with nothing set, the peers with a timeout that fits this server."""
    slots, rows, seconds = (32, 300, 4.0) if bench.quick else (256, 3000, 20.0)
    work = Work(rows=rows, slots=slots, seconds=seconds)
    ideal_s, answerable, found = work.ideal_s(), answerable_rows(work), []
    by_hand = (*_BY_HAND, "--timeout", f"{seconds:g}")
    spec = ",".join(f"{kind}:{share}" for kind, share in _SHARES.items())
    with FakeServer(*work.flags, "--faults", spec) as server:
        for client in (OURS, AIOHTTP_POOL.told(*by_hand), OPENAI_LOOP.told(*by_hand)):
            done = bench.run(client, rows, server, timeout_s=180)
            goals = (at_most(0), at_most(1.6), at_most(0)) if client is OURS else (None, None, None)
            ratio, broken = done.tally["makespan_s"] / ideal_s, done.tally["retry_after_broken"]
            twice = done.tally["repeated_work"]
            found += [
                Measurement("answerable rows not answered", client.name, answerable - done.answered, "rows", goals[0]),
                Measurement("makespan / fault-free ideal", client.name, ratio, "x", goals[1]),
                Measurement("Retry-After broken", client.name, broken, "times", goals[2]),
                Measurement("rows answered twice", client.name, twice, "rows"),
            ]
    return [Measurement("answerable rows", "all", answerable, "rows"), *found]


def answerable_rows(work: Work) -> int:
    """Rows that the server does not refuse for ever."""
    plan = FaultPlan(work.seed, {"reject": _SHARES["reject"]})
    return sum(plan.fault_of(mark_of(text_of(row)), 0) is None for row in range(work.rows))
