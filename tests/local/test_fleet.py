"""The engine over sockets against the fake vLLM, a process of its own: replicas, outages, faults, kills, gateways."""

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clients.fake_vllm.batching import StepModel, ideal_makespan
from clients.fake_vllm.process import FakeServer

ROOT = Path(__file__).resolve().parents[2]

#: A server that is quick enough for a test: a quarter of a second for a usual answer.
QUICK = ("--step-base-ms", "3", "--tokens-median", "80", "--tokens-sigma", "0.6", "--step-per-request-us", "0")


def text_of(row: int) -> str:
    return f"Row {row}: what is it?"


def mark_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_prompts(folder: Path, rows: int) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(f"{json.dumps({'prompt': text_of(row)})}\n" for row in range(rows)), encoding="utf-8")
    return path


def start(folder: Path, url: str, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "clients.batch", "--prompts", str(folder / "prompts.jsonl")),
            *("--url", url, "--output", str(folder / "out"), *flags),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, url: str, *flags: str, timeout_s: float = 90.0) -> list[dict[str, Any]]:
    """Run to the end; the events."""
    process = start(folder, url, *flags)
    try:
        _, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    assert process.returncode == 0, err[-2000:]
    return [json.loads(line) for line in err.splitlines() if line.startswith("{")]


def results(folder: Path) -> pd.DataFrame:
    """The results, after a look at whether every answer is that of its own row."""
    frame = pd.read_parquet(folder / "out/results.parquet")
    for row, content in zip(frame["row"], frame["content"], strict=True):
        if isinstance(content, str):
            assert content.startswith(f"answer-{mark_of(text_of(row))}"), row
    return frame


def named(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


def wait_for(fact: Callable[[], Any], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


class TestReplicas:
    @pytest.mark.slow
    def test_those_behind_one_address_get_equal_shares_and_none_idles(self, tmp_path: Path) -> None:
        write_prompts(tmp_path, 1200)
        with FakeServer(*QUICK, "--replicas", "4", "--slots", "16") as server:
            run(tmp_path, server.url)
            tally = server.tally()
        assert results(tmp_path)["outcome"].unique().tolist() == ["ok"]
        assert tally["requests"] == 1200
        assert [replica["peak"] >= 16 for replica in tally["replicas"]] == [True] * 4
        assert tally["busy_share"] > 0.65  # a tail is part of it
        assert tally["peak_in_flight"] <= 2.3 * 64

    @pytest.mark.slow
    def test_several_addresses_are_given_as_several_urls(self, tmp_path: Path) -> None:
        write_prompts(tmp_path, 600)
        with FakeServer(*QUICK, "--addresses", "3", "--slots", "16") as server:
            urls = ",".join(replica["url"] for replica in server.tally()["replicas"])
            run(tmp_path, urls)
            tally = server.tally()
        frame = results(tmp_path)
        assert tally["requests"] == 600
        assert frame["endpoint"].nunique() == 3
        assert frame["endpoint"].value_counts().min() > 120

    @pytest.mark.parametrize("where", ["--replicas", "--addresses"])
    @pytest.mark.slow
    def test_a_dead_one_is_left_and_taken_back_and_costs_no_attempt(self, tmp_path: Path, where: str) -> None:
        write_prompts(tmp_path, 1200)
        with FakeServer(*QUICK, where, "3", "--slots", "16", "--outage", "1:1:2") as server:
            urls = ",".join(dict.fromkeys(replica["url"] for replica in server.tally()["replicas"]))
            events = run(tmp_path, urls)
            tally = server.tally(rows=True)
        frame = results(tmp_path)
        assert frame["outcome"].unique().tolist() == ["ok"]
        assert frame["attempts"].max() == 1
        assert named(events, "replica.down")
        assert tally["lost"] > 0
        assert tally["repeated_work"] == 0
        assert tally["requests"] <= 1500 + tally["lost"] + tally["aborted"] + 8

    @pytest.mark.slow
    def test_the_only_one_may_be_away_for_a_while(self, tmp_path: Path) -> None:
        write_prompts(tmp_path, 250)
        with FakeServer(*QUICK, "--slots", "16", "--outage", "0:1:2") as server:
            run(tmp_path, server.url)
        frame = results(tmp_path)
        assert frame["outcome"].unique().tolist() == ["ok"]
        assert frame["attempts"].max() == 1

    @pytest.mark.parametrize("flag", ["--closed-s", pytest.param("--not-ready-s", marks=pytest.mark.slow)])
    def test_one_that_is_not_up_yet_is_waited_for(self, tmp_path: Path, flag: str) -> None:
        write_prompts(tmp_path, 50)
        with FakeServer(*QUICK, flag, "3") as server:
            run(tmp_path, server.url)
        assert results(tmp_path)["attempts"].unique().tolist() == [1]


@pytest.mark.slow
def test_a_name_of_several_addresses_is_followed_as_they_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name's addresses are the test's to choose: it stands in for the DNS of a headless Service."""
    from clients.batch import discovery, shard
    from clients.batch.chat import Timeouts
    from clients.prompts.check import check_prompts
    from clients.prompts.plan import Shard
    from clients.prompts.rows import JobDefaults
    from clients.steps.interrupts import stopping

    monkeypatch.setattr(discovery, "_RESOLVE_S", 0.3)
    monkeypatch.setattr(shard, "_loop_factory", lambda: None)  # asyncio's own, which asks Python's resolver
    answers, real = ["127.0.0.1", "127.0.0.2"], socket.getaddrinfo
    asked: list[float] = []

    def resolve(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host != "vllm-headless":
            return real(host, port, *rest, **more)
        asked.append(time.monotonic())
        now = answers if asked[-1] - asked[0] < 1.5 else ["127.0.0.2", "127.0.0.3"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in now]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    prompts = write_prompts(tmp_path, 900)
    defaults = JobDefaults(model="fake")
    ((part, rows),) = check_prompts(str(prompts), defaults).cut(1)
    with FakeServer(*QUICK, "--addresses", "3", "--slots", "16") as server:
        spec = Shard(
            shard=0, of=1, prompts=str(prompts), part=part, rows=rows, defaults=defaults, carried={}, plan="p",
            base_url=f"http://vllm-headless:{server.port}/v1", state=str(tmp_path / "state"), concurrency=0,
        )  # fmt: skip
        with shard.open_ledger(spec) as ledger:
            done = shard.run_shard(spec, ledger, api_key=None, timeouts=Timeouts(), stopping=stopping)
        tally = server.tally()
    assert done.progress.outcomes == {"ok": 900}
    assert [replica["peak"] >= 16 for replica in tally["replicas"]] == [True] * 3
    assert tally["repeated_work"] == 0


KINDS = (
    "http_500:0.03,http_502:0.03,http_503:0.03,http_504:0.03,http_429:0.03,reset:0.03,slow_reset:0.03,truncated:0.03,"
    "hang:0.02,stall:0.02,bad_json:0.03,no_choices:0.03,idle_close:0.03,reject:0.02"
)


class TestFaults:
    @pytest.mark.slow
    @pytest.mark.parametrize("seed", ["1", "2"])
    def test_every_answerable_row_is_answered_and_every_wish_to_wait_heard(self, tmp_path: Path, seed: str) -> None:
        write_prompts(tmp_path, 800)
        with FakeServer(*QUICK, "--slots", "64", "--faults", KINDS, "--seed", seed) as server:
            run(tmp_path, server.url, timeout_s=60)
            tally = server.tally()
        outcomes = results(tmp_path)["outcome"].value_counts().to_dict()
        assert set(outcomes) == {"ok", "rejected"}
        assert outcomes["rejected"] == tally["faults"]["reject"]
        assert tally["retry_after_broken"] == 0

    @pytest.mark.slow
    def test_rows_that_hang_do_not_hold_up_the_end(self, tmp_path: Path) -> None:
        write_prompts(tmp_path, 300)
        with FakeServer(*QUICK, "--slots", "64", "--faults", "hang:0.05") as server:
            events = run(tmp_path, server.url, timeout_s=40)
        assert results(tmp_path)["outcome"].unique().tolist() == ["ok"]
        assert named(events, "request.doubled")

    @pytest.mark.slow
    def test_without_faults_no_row_is_sent_twice(self, tmp_path: Path) -> None:
        write_prompts(tmp_path, 1200)
        with FakeServer(*QUICK, "--tokens-sigma", "1.2", "--tokens-max", "1000", "--slots", "64") as server:
            events = run(tmp_path, server.url)
            assert server.tally()["requests"] == 1200
        assert named(events, "request.doubled") == []

    @pytest.mark.slow
    def test_a_gateway_that_refuses_beyond_a_short_queue_is_kept_full(self, tmp_path: Path) -> None:
        write_prompts(tmp_path, 1500)
        with FakeServer(*QUICK, "--tokens-sigma", "0.3", "--slots", "64", "--gateway-queue", "32") as server:
            run(tmp_path, server.url)
            tally = server.tally()
        assert results(tmp_path)["outcome"].unique().tolist() == ["ok"]
        assert tally["retry_after_broken"] == 0
        assert tally["statuses"]["429"] < 150
        ideal = ideal_makespan([80] * 1500, 64, StepModel(base_s=0.003, per_running_s=0.0))
        assert tally["makespan_s"] < 1.6 * ideal


@pytest.fixture
def slow_server() -> Iterator[FakeServer]:
    with FakeServer(*QUICK, "--slots", "64") as server:
        yield server


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.slow
def test_a_killed_run_repeats_nothing_that_was_committed(tmp_path: Path, slow_server: FakeServer, seed: int) -> None:
    """SIGKILL at three moments; every row's answers are counted at the server."""
    rows, dice = 2000, random.Random(seed)
    write_prompts(tmp_path, rows)
    for _ in range(3):
        before = slow_server.tally()["answered"]
        process = start(tmp_path, slow_server.url)
        goal = before + dice.randint(100, 600)
        wait_for(lambda goal=goal: slow_server.tally()["answered"] >= goal)  # type: ignore[misc]
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        wait_for(lambda: slow_server.tally()["in_flight"] == 0)
    run(tmp_path, slow_server.url)
    tally = slow_server.tally(rows=True)
    assert results(tmp_path)["outcome"].unique().tolist() == ["ok"]
    assert len(tally["rows"]) == rows
    assert tally["repeated_work"] <= 3 * 8  # answers that were on their way when the process died


@pytest.mark.slow
def test_what_took_long_in_the_run_before_goes_first(tmp_path: Path) -> None:
    write_prompts(tmp_path, 400)
    long_tail = ("--tokens-median", "150", "--tokens-sigma", "1.0", "--tokens-max", "1200")
    with FakeServer(*QUICK, *long_tail, "--slots", "64") as server:
        run(tmp_path, server.url)
        plain_s = server.tally()["makespan_s"]
        server.reset()
        run(tmp_path, server.url, "--fresh")
        known_s = server.tally()["makespan_s"]
    assert len(results(tmp_path)) == 400
    assert known_s < 0.95 * plain_s
