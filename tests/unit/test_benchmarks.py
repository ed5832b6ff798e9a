"""The benchmarks measure what they say: the smallest runs end to end, and checks of the instruments themselves."""

import ast
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from benchmarks import faults, report
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.cpu import measure_at
from benchmarks.inputs import Work, start_of_answer
from benchmarks.kill import killed_at_half
from benchmarks.measure import (
    AIOHTTP_POOL,
    OPENAI_LOOP,
    OPENAI_POOL,
    OURS,
    Bench,
    BenchmarkError,
    Client,
    ClientProcess,
    rows_answered,
)
from benchmarks.report import Measurement, at_least, at_most
from clients.fake_vllm.arguments import parser, server_options
from clients.fake_vllm.process import FakeServer

ROOT = Path(__file__).resolve().parents[2]


def test_peers_use_none_of_our_code() -> None:
    for path in (ROOT / "benchmarks/clients").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            ours = [name for name in names if name.split(".")[0] in ("clients", "components", "pipelines")]
            assert not ours, f"{path.name} imports {ours}"
            assert all(name == "benchmarks.clients.flags" for name in names if name.startswith("benchmarks"))


def test_the_server_draws_the_lengths_that_the_ideal_is_made_of(tmp_path: Path) -> None:
    work = Work(rows=200, slots=40, seconds=0.8, replicas=2)
    with FakeServer(*work.flags) as server:
        done = Bench(tmp_path).run(AIOHTTP_POOL.told("--concurrency", "200"), work.rows, server, timeout_s=20)
    drawn = done.tally["lengths"]
    assert (drawn["count"], drawn["sum"], drawn["max"]) == (work.rows, sum(work.lengths), max(work.lengths))
    assert done.answered == work.rows


def test_the_server_gets_the_step_that_the_ideal_is_made_of() -> None:
    work = Work(rows=300, slots=7, seconds=2.0)
    steps = server_options(parser().parse_args(work.flags)).steps
    assert (steps.base_s, steps.per_running_s) == pytest.approx((work.steps.base_s, work.steps.per_running_s), rel=1e-9)
    assert work.ideal_s() == pytest.approx(2.0, rel=1e-4)
    assert work.ideal_s(longest_first=True) <= work.ideal_s()


@pytest.mark.parametrize(
    "client",
    [OURS, AIOHTTP_POOL, *(pytest.param(each, marks=pytest.mark.slow) for each in (OPENAI_LOOP, OPENAI_POOL))],
    ids=lambda client: client.name,
)
def test_every_client_answers_what_can_be_answered(client: Client, tmp_path: Path) -> None:
    with FakeServer("--instant", "--seed", "3", "--faults", "http_500:0.1,http_429:0.02") as server:
        done = Bench(tmp_path).run(client, 100, server, timeout_s=30)
    assert done.answered == 100
    assert done.tally["faults"]
    assert done.tally["retry_after_broken"] == 0


def test_what_can_be_answered_is_counted_as_the_server_does_it(tmp_path: Path) -> None:
    work = Work(rows=1500, slots=64, seconds=1.0)
    flags = ("--instant", "--seed", str(work.seed), "--faults", "reject:0.005")
    with FakeServer(*flags) as server:
        done = Bench(tmp_path).run(AIOHTTP_POOL, work.rows, server, timeout_s=30)
    assert done.answered == faults.answerable_rows(work) < work.rows


@pytest.mark.slow
def test_a_kill_costs_the_loop_its_work_and_us_no_row(tmp_path: Path) -> None:
    bench, found = Bench(tmp_path), []
    for client, seconds in ((OURS, 4.0), (OPENAI_LOOP.told("--concurrency", "32"), 0.5)):
        work = Work(rows=300, slots=16, seconds=seconds)
        with FakeServer(*work.flags) as server:
            found.append({one.what: one.measured for one in killed_at_half(bench, client, work, server)})
    ours, theirs = found
    assert ours["lost after the second run"] == theirs["lost after the second run"] == 0
    assert theirs["readable before the second run"] == 0
    assert theirs["answered twice, of all rows"] >= 50
    assert 0 < ours["readable before the second run"] <= ours["answered by the server at the kill"]
    repeated = ours["answered twice, of all rows"] * work.rows / 100
    assert repeated <= 4  # what was on its way from the server


def test_a_run_is_written_down_with_everything_but_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smallest = ("CPU", lambda bench: measure_at(bench, 16, 200, 100, at_least(1.5)))
    monkeypatch.setitem(BENCHMARKS, "cpu", smallest)
    kept = tmp_path / "results.json"
    main(["cpu", "--json", str(kept)])
    text = kept.read_text(encoding="utf-8")
    for private in (str(Path.home()), str(ROOT), tempfile.gettempdir(), platform.node(), "127.0.0.1"):
        assert private not in text
    found = json.loads(text)
    assert set(found) == {"date", "quick", "seconds", "cores", "python", "versions", "benchmarks"}
    assert found["versions"]["openai"]
    assert found["cores"] == len(os.sched_getaffinity(0))
    lines = found["benchmarks"]["cpu"]
    assert all(set(line) == {"what", "client", "measured", "unit", "target", "met"} for line in lines)
    cost = {line["client"]: line["measured"] for line in lines if line["what"] == "CPU a request, 16 slots"}
    (ratio,) = (line for line in lines if line["what"] == "CPU of openai_loop / ours, 16 slots")
    assert ratio["measured"] == pytest.approx(cost["openai_loop"] / cost["ours"], rel=0.01)
    assert ratio["target"] == {"least": 1.5}
    assert ratio["met"] == (ratio["measured"] >= 1.5)


def test_only_a_rows_own_answer_counts(tmp_path: Path) -> None:
    answers = [(0, start_of_answer(0)), (1, start_of_answer(2)), (2, None), (3, ""), (0, start_of_answer(0) + "again")]
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"".join(orjson.dumps({"row": row, "content": text}) + b"\n" for row, text in answers))
    assert rows_answered(path) == 1
    with pytest.raises(BenchmarkError, match=r"missing\.parquet"):
        rows_answered(tmp_path / "missing.parquet")


def test_cpu_and_memory_are_those_of_the_process(tmp_path: Path) -> None:
    burn = "import time\nheld = b'x' * 200_000_000\nwhile time.process_time() < 0.4: pass"
    with ClientProcess([sys.executable, "-c", burn], tmp_path / "log") as process:
        usage = process.wait_for_success(20)
    assert 0.4 <= usage.cpu_s < 1.2
    assert 200 < usage.peak_mb < 260
    with ClientProcess([sys.executable, "-c", "import time; time.sleep(0.3)"], tmp_path / "log") as process:
        assert process.wait_for_success(20).cpu_s < 0.2


def test_a_client_that_hangs_or_fails_is_ended_and_told(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    with ClientProcess(sleep, tmp_path / "log") as process, pytest.raises(BenchmarkError, match="not done after"):
        process.wait(0.5)
    assert process.kill().exit_code == -9
    fail = [sys.executable, "-c", "import sys; sys.exit('no such luck')"]
    with ClientProcess(fail, tmp_path / "log") as process, pytest.raises(BenchmarkError, match="no such luck"):
        process.wait_for_success(20)


def test_a_bound_itself_is_met() -> None:
    assert at_most(2).met_by(2)
    assert not at_most(2).met_by(2.001)
    assert at_least(2).met_by(2)
    assert not at_least(2).met_by(1.999)
    assert Measurement("a", "b", 1.0, "s").met is None


def test_a_table_shows_targets_and_marks(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Measurement("one", "ours", 1.5, "x", at_most(2)), Measurement("two", "ours", 12_345, "rows", at_most(0))]
    report.show(Console(width=100), "title", rows)
    shown = capsys.readouterr().out
    assert "≤ 2" in shown
    assert "✓ met" in shown
    assert "12,345 rows" in shown
    assert "✗ missed" in shown


def test_benchmarks_that_were_not_run_again_keep_their_results_and_date(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("no json")
    first = {"date": "d1", "quick": False, "benchmarks": {"cpu": [1], "tail": [2]}}
    report.save(path, first)
    report.save(path, {"date": "d2", "quick": False, "benchmarks": {"tail": [3]}})
    report.save(path, {"date": "d3", "quick": False, "benchmarks": {"kill": [4]}})
    assert json.loads(path.read_text()) == {
        "date": "d3",
        "quick": False,
        "benchmarks": {"cpu": [1], "tail": [3], "kill": [4]},
        "dates": {"cpu": "d1", "tail": "d2"},
    }
    report.save(path, {"date": "d4", "quick": True, "benchmarks": {"cpu": [5]}})
    assert json.loads(path.read_text())["benchmarks"] == {"cpu": [5]}
