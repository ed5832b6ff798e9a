"""A run that is killed or stopped in the middle, and the same command again: nothing is lost, nothing sent twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clients.prompts.lines import Line
from clients.prompts.rows import JobDefaults, parse_row
from clients.records import ChatRequest
from clients.results.schema import COLUMNS
from tests.servers.answers import digest
from tests.servers.openai_server import OpenAIServer

ROOT = Path(__file__).resolve().parents[2]

#: 150 rows of 0.1 s each, 10 at a time: a second and a half, one commit on the way and one at the end.
ROWS, SLOTS, LATENCY_S = 150, 10, 0.1

#: A commit takes place every second, so a kill may lose the answers of that second.
PER_INTERVAL = int(1.3 * SLOTS / LATENCY_S)


def command(*arguments: str | Path) -> list[str]:
    # A signal may fall into the opening of a file, which then is closed by its destructor, with a warning.
    warnings = ("-W", "error", "-W", "ignore::ResourceWarning")
    return [sys.executable, *warnings, "-m", "clients.batch", *map(str, arguments)]


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "COV_"))}
    return {**clean, "PYTHONPATH": str(ROOT)}


def start(cwd: Path, url: str, *more: str) -> subprocess.Popen[str]:
    arguments = command("--prompts", "p.jsonl", "--output", "out", "--url", url, "--concurrency", str(SLOTS), *more)
    return subprocess.Popen(
        arguments, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    try:
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "Traceback" not in err
    assert process.returncode == expected, err
    return err


def write(folder: Path, prompts: list[str]) -> None:
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
    (folder / "p.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def prompts(count: int = ROWS) -> list[str]:
    return [f"row {row}" for row in range(count)]


def committed(folder: Path) -> pd.DataFrame:
    """What a person reads while the run goes on, or after it was killed."""
    found = sorted((folder / "out/state").rglob("*.parquet"))
    assert found
    return pd.read_parquet(folder / "out/state").sort_values("row")


def assert_complete(folder: Path, expected: list[str]) -> None:
    frame = pd.read_parquet(folder / "out/results.parquet")
    assert frame["row"].tolist() == list(range(len(expected)))
    assert frame["outcome"].eq("ok").all()
    assert all(digest(prompt) in content for prompt, content in zip(expected, frame["content"], strict=True))


def wait_for(fact: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 20
    while not fact():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def sent_since(server: OpenAIServer, before: int) -> list[str]:
    return sorted(seen.text for seen in server.requests[before:])


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(latency_s=LATENCY_S).in_thread() as running:
        yield running


@pytest.mark.parametrize("moment", [70, 125])
def test_after_a_kill_only_what_was_in_flight_is_sent_again(server: OpenAIServer, tmp_path: Path, moment: int) -> None:
    write(tmp_path, prompts())
    process = start(tmp_path, server.url)
    wait_for(lambda: len(server.requests) >= moment, process)
    process.kill()
    process.communicate()
    kept: set[str] = set()
    if list((tmp_path / "out/state").rglob("*.parquet")):
        frame = committed(tmp_path)
        assert frame["row"].is_unique
        assert all(digest(f"row {row}") in content for row, content in zip(frame["row"], frame["content"], strict=True))
        kept = {f"row {row}" for row in frame["row"]}
    else:
        assert moment < PER_INTERVAL, "several seconds without a commit"
    before = len(server.requests)
    finish(start(tmp_path, server.url))
    assert_complete(tmp_path, prompts())
    again = sent_since(server, before)
    assert set(again).isdisjoint(kept)
    counts = Counter(seen.text for seen in server.requests)
    assert max(counts.values()) <= 2
    # What was in flight, and what came back in the last turn of the loop, which may have been cut off before its end.
    assert sum(count == 2 for count in counts.values()) <= 2 * SLOTS


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_every_answer_that_had_arrived(
    server: OpenAIServer, tmp_path: Path, signum: int, code: int
) -> None:
    write(tmp_path, prompts())
    process = start(tmp_path, server.url)
    wait_for(lambda: len(server.requests) > 120, process)
    for _ in range(3):  # an impatient person, or a runner that says it again and again
        process.send_signal(signum)
        time.sleep(0.02)
    err = finish(process, code)
    assert [line for line in err.splitlines() if not line.startswith("{")] == [
        "error: interrupted; finished rows are kept, the same command goes on from there"
    ]
    answered = [seen.text for seen in server.requests if seen.status == 200]
    kept = {f"row {row}" for row in committed(tmp_path)["row"]}
    assert len(set(answered) - kept) <= SLOTS, "at most what was on its way just then"
    before = len(server.requests)
    if signum == signal.SIGTERM:
        finish(start(tmp_path, server.url))
        assert sent_since(server, before) == sorted(set(prompts()) - kept)
        assert_complete(tmp_path, prompts())


@pytest.mark.parametrize(
    ("phase", "signum"),
    [
        ("check_prompts", signal.SIGTERM),
        ("check_prompts", signal.SIGINT),
        ("endpoint.waiting", signal.SIGINT),
        ("merge_shards", signal.SIGTERM),
    ],
)
def test_a_signal_in_any_other_phase_ends_with_one_line_and_its_exit_code(
    server: OpenAIServer, tmp_path: Path, phase: str, signum: int
) -> None:
    rows = 3000
    server.latency_s = 0
    write(tmp_path, prompts(20 if phase == "merge_shards" else rows))
    url = "http://127.0.0.1:9" if phase == "endpoint.waiting" else server.url
    process = start(tmp_path, url)
    assert process.stderr is not None
    for line in process.stderr:
        if phase in line:
            break
    process.send_signal(signum)
    err = process.stderr.read()
    process.communicate(timeout=10)
    assert process.returncode == 128 + signum, err
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if not line.startswith("{")] == [
        "error: interrupted; finished rows are kept, the same command goes on from there"
    ]
    assert not list((tmp_path / "out").glob(".scratch/*")), "temporary files are gone"


def test_edited_and_inserted_rows_are_sent_and_no_others(tmp_path: Path) -> None:
    rows = prompts(30)
    with OpenAIServer().in_thread() as server:
        write(tmp_path, rows)
        finish(start(tmp_path, server.url))
        finish(start(tmp_path, server.url))
        assert len(server.requests) == 30, "a plain rerun of a finished run sends nothing"
        assert_complete(tmp_path, rows)
        rows[7] = "edited"
        write(tmp_path, rows)
        finish(start(tmp_path, server.url))
        assert sent_since(server, 30) == ["edited"]
        assert_complete(tmp_path, rows)
        rows.insert(0, "inserted at the top")
        write(tmp_path, rows)
        finish(start(tmp_path, server.url))
        assert sent_since(server, 31) == ["inserted at the top"]
        assert_complete(tmp_path, rows)
        finish(start(tmp_path, server.url, "--max-tokens", "100"))
        assert len(server.requests) == 32 + len(rows), "another setting is another request"


def test_fresh_sends_everything_again_and_keeps_the_old_results_until_the_new_ones_stand(
    server: OpenAIServer, tmp_path: Path
) -> None:
    server.latency_s = 0
    rows = prompts(100)
    write(tmp_path, rows)
    finish(start(tmp_path, server.url))
    old = (tmp_path / "out/results.parquet").read_bytes()
    server.latency_s, server.seed = LATENCY_S, 1
    process = start(tmp_path, server.url, "--fresh")
    wait_for(lambda: len(server.requests) >= 150, process)
    assert (tmp_path / "out/results.parquet").read_bytes() == old
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    assert (tmp_path / "out/results.parquet").read_bytes() == old
    assert (tmp_path / "out/state/0001").is_dir(), "the old state goes only when the new results stand"
    before = len(server.requests)
    finish(start(tmp_path, server.url))
    assert 0 < len(server.requests) - before < 100, "a plain rerun goes on with the fresh one"
    assert (tmp_path / "out/results.parquet").read_bytes() != old
    assert_complete(tmp_path, rows)
    assert [path.name for path in (tmp_path / "out/state").iterdir() if path.is_dir()] == ["0002"]


def test_a_second_run_on_the_same_output_is_told_so_at_once(server: OpenAIServer, tmp_path: Path) -> None:
    write(tmp_path, prompts())
    first = start(tmp_path, server.url)
    wait_for(lambda: server.requests, first)
    begun = time.monotonic()
    err = finish(start(tmp_path, server.url), 1)
    assert time.monotonic() - begun < 3
    assert "another run is at work in out. Wait until it ends, stop it, or choose another --output." in err
    finish(first)
    assert_complete(tmp_path, prompts())
    assert len(server.requests) == ROWS


@pytest.mark.slow
def test_results_that_are_read_while_the_run_goes_on_are_whole(server: OpenAIServer, tmp_path: Path) -> None:
    server.latency_s = 0.5
    write(tmp_path, prompts())
    process = start(tmp_path, server.url, "--concurrency", "16")
    wait_for(lambda: list((tmp_path / "out/state").rglob("*.parquet")), process)
    sizes = []
    while process.poll() is None:
        sizes.append(len(committed(tmp_path)))
        time.sleep(0.1)
    finish(process)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= 2


@pytest.mark.slow
def test_many_reused_rows_stop_neither_the_progress_nor_a_signal(tmp_path: Path) -> None:
    rows = [f"row {row}" for row in range(40_000)]
    with OpenAIServer(output_tokens=(1, 1)).in_thread() as server:
        write(tmp_path, rows[:50])
        finish(start(tmp_path, server.url))
        state = next((tmp_path / "out/state").rglob("*.parquet"))
        few = pd.read_parquet(state)
        many = pd.concat([few.head(1)] * len(rows), ignore_index=True)
        many["row"] = range(len(rows))
        many["request_hash"] = [parsed_hash(row, text) for row, text in enumerate(rows)]
        table = pa.Table.from_pandas(many, preserve_index=False).select(COLUMNS.names).cast(COLUMNS)
        pq.write_table(table, state)
        write(tmp_path, rows)
        process = start(tmp_path, server.url)
        assert process.stderr is not None
        for line in process.stderr:
            if "shard.progress" in line:
                break
        assert 0 < json.loads(line)["reused"] < len(rows), "told before the last reused row was read"
        process.send_signal(signal.SIGTERM)
        err = process.stderr.read()
        process.communicate(timeout=10)
        assert process.returncode == 143
        last = [json.loads(line) for line in err.splitlines() if "shard.progress" in line][-1]
        assert last["done"] < len(rows), "obeyed before the last reused row was read"
        assert len(server.requests) == 50


def parsed_hash(row: int, text: str) -> str:
    line = Line(row, row + 1, 0, json.dumps({"prompt": text}).encode())
    request = parse_row(line, JobDefaults(model="qwen3-30b-fp8")).request
    assert isinstance(request, ChatRequest)
    return request.request_hash
