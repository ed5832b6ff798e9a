"""`python -m clients.batch` as a person types it: a process of its own in another folder, against a real server."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.resolve_endpoint import resolve_endpoint
from pipelines.catalog import compiled_path
from tests.contract.test_compiled import embedded
from tests.servers.answers import digest
from tests.servers.openai_server import OpenAIServer

ROOT = Path(__file__).resolve().parents[2]
FILES = {"results.parquet", "rejects.parquet", "summary.json", "report.html"}
KEY = "sk-test-0123456789abcdef"
MODEL = "qwen3-30b-fp8"

#: For the faults that cost retries: what a row's last attempt is called when the fault never ends.
REPEATED = {
    "500": "http_500",
    "502": "http_502",
    "503,retry-after=0": "http_503",
    "504": "http_504",
    "408": "http_408",
    "409": "http_409",
    "429,retry-after=0": "http_429",
    "reset": "connection",
    "reset_body": "connection",
    "truncated": "connection",
    "badjson": "bad_json",
    "badutf8": "bad_json",
    "html": "bad_json",
    "nonobject": "no_choices",
    "nochoices": "no_choices",
    "stream_error": "http_500",
}
#: fault: outcome and error_code of a row that is sent exactly once.
ONCE = {
    "400": ("rejected", "http_400"),
    "413": ("rejected", "http_413"),
    "422": ("rejected", "http_422"),
    "404": ("failed", "http_404"),
    "402": ("failed", "http_402"),
    "slow,after=0.3": ("ok", None),
    "idle_close": ("ok", None),
    "nousage": ("ok", None),
    "huge": ("ok", None),
    "toolcall": ("ok", None),
    "empty": ("empty", "empty"),
    "null": ("empty", "empty"),
    "length": ("truncated", "length"),
    "length_in_reasoning": ("truncated_in_reasoning", "length"),
    "refusal": ("filtered", "filtered"),
    "filtered": ("filtered", "filtered"),
    "schema_broken": ("schema_invalid", "schema"),
    "schema_wrong": ("schema_invalid", "schema"),
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "required": ["answer"]}}}


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "COV_"))}
    return {**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "160", **extra}


def start(cwd: Path, *arguments: str | Path, **extra: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "clients.batch", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(cwd: Path, *arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    process = start(cwd, *arguments, **extra)
    try:
        out, err = process.communicate(timeout=40)
    finally:
        process.kill()
    assert "Traceback" not in err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def write(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def events(stderr: str, name: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    return [event for event in found if event["event"] == name]


def error_lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not line.startswith("{")]


def results(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "results.parquet")


def wait_for(fact: Callable[[], Any], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer().in_thread() as running:
        yield running


#: Every form a row can have.
ROWS: tuple[Any, ...] = (
    {"custom_id": "first", "prompt": "수도는 어디입니까?", "topic": "지리", "weight": 3},
    '{"prompt": "cut off',
    {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "second"}], "weight": 2.5},
    {
        "custom_id": "b",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "third"}]},
    },
    {"prompt": "too long", "max_tokens": 1_000_000},
    {"prompt": "short", "max_tokens": 2},
    {"prompt": "twice", "n": 2},
    {"prompt": "same"},
    {"prompt": "same"},
    {"prompt": "other", "model": "nobody-serves-this"},
    {"prompt": "typed", "response_format": SCHEMA, "extra_body": {"top_k": 5}},
    {"prompt": "counted", "logprobs": True, "top_logprobs": 2},
)  # fmt: skip


ARGUMENTS = (
    *("--prompts", "입력.jsonl", "--output", "결과", "--max-tokens", "64", "--temperature", "0"),
    *("--system", "Be brief.", "--param", "top_p=0.9", "--max-error-rate", "0.5"),
)


@pytest.fixture(scope="module", autouse=True)
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path, OpenAIServer]]:
    """A run in which no number of attempts is enough; it takes 40 s, so it goes on while the other tests run."""
    folder = tmp_path_factory.mktemp("endless")
    rows = [{"custom_id": kind, "prompt": f"[[fault:{kind}]] p"} for kind in REPEATED]
    write(folder / "p.jsonl", [*rows, {"prompt": "good"}])
    with OpenAIServer().in_thread() as server:
        process = start(folder, "--prompts", "p.jsonl", "--url", server.url, "--output", "out")
        yield process, folder, server
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path, OpenAIServer]]:
    folder = tmp_path_factory.mktemp("with space and 한글")
    write(folder / "입력.jsonl", ["", *ROWS])
    with OpenAIServer(api_key=KEY, reasoning="reasoning").in_thread() as server:
        yield (
            run(folder, "--url", server.url, *ARGUMENTS, OPENAI_API_KEY=f"{KEY}\n"),
            folder,
            server,
        )  # fmt: skip


class TestMixedRows:
    """One run over every form a row can have."""

    def test_each_row_has_its_result_in_input_order(self, mixed: Any) -> None:
        process, folder, _ = mixed
        assert process.returncode == 0, process.stderr
        frame = results(folder / "결과")
        assert frame["row"].tolist() == list(range(12))
        assert frame["id"].tolist()[:4] == ["first", "row-1", "row-2", "b"]
        assert frame["outcome"].tolist() == [
            "ok", "invalid", "ok", "ok", "rejected", "truncated_in_reasoning", "ok", "ok", "ok", "failed",
            "schema_invalid", "ok",
        ]  # fmt: skip
        for row, text in ((0, "수도는 어디입니까?"), (2, "second"), (3, "third"), (7, "same"), (11, "counted")):
            assert digest(text) in frame["content"][row]
            assert digest(text) in frame["reasoning"][row]
        assert frame["topic"].tolist()[:2] == ["지리", None] or pd.isna(frame["topic"][1])
        assert frame["weight"].tolist()[2] == 2.5
        assert frame["error_code"][9] == "http_404"

    def test_all_choices_and_log_probabilities_are_kept(self, mixed: Any) -> None:
        raw = results(mixed[1] / "결과")["raw_response"]
        assert [choice["index"] for choice in json.loads(raw[6])["choices"]] == [0, 1]
        assert raw.notna().tolist() == [row == 6 for row in range(12)]

    def test_rows_that_ask_the_same_share_one_answer(self, mixed: Any) -> None:
        frame, server = results(mixed[1] / "결과"), mixed[2]
        assert server.seen("same") == 1
        assert frame["content"][7] == frame["content"][8]
        assert frame["attempts"].tolist()[7:9] == [1, 0]

    def test_the_requests_are_what_the_rows_and_the_flags_say(self, mixed: Any) -> None:
        server = mixed[2]
        bodies = {seen.text: seen.body for seen in server.requests}
        assert len(server.requests) == 10
        first = bodies["수도는 어디입니까?"]
        assert first["model"] == MODEL
        assert (first["max_tokens"], first["temperature"], first["top_p"]) == (64, 0, 0.9)
        assert [message["role"] for message in first["messages"]] == ["system", "user"]
        assert bodies["second"]["messages"][0]["content"] == "own"
        assert bodies["typed"]["top_k"] == 5
        assert bodies["short"]["max_tokens"] == 2
        assert "stream" not in first

    def test_the_command_says_what_it_did_and_where_it_is(self, mixed: Any) -> None:
        process, folder, _ = mixed
        assert re.search(r"^ok +7 +58.3 %", process.stdout, re.MULTILINE)
        assert re.search(r"^rejected +1 +8.3 % +The server says it can never work", process.stdout, re.MULTILINE)
        assert "결과/results.parquet" in process.stdout
        assert {path.name for path in (folder / "결과").iterdir()} >= FILES
        assert error_lines(process.stderr) == []
        summary = json.loads((folder / "결과/summary.json").read_text(encoding="utf-8"))
        assert (summary["rows"], summary["outcomes"]["ok"], summary["joined"]) == (12, 7, 1)

    def test_progress_events_keep_their_fields(self, mixed: Any) -> None:
        last = events(mixed[0].stderr, "shard.progress")[-1]
        assert set(last) == {
            "event", "shard", "rows", "done", "reused", "ok", "outcomes", "output_tokens", "retries", "in_flight",
            "limit", "waiting", "elapsed_s", "joined",
        }  # fmt: skip
        assert (last["rows"], last["done"], last["ok"], last["in_flight"], last["waiting"]) == (12, 12, 7, 0, 0)

    def test_neither_key_nor_prompts_nor_answers_are_in_any_log_and_the_key_is_nowhere(self, mixed: Any) -> None:
        process, folder, _ = mixed
        for path in (folder / "결과").rglob("*"):
            if path.is_file():
                assert KEY.encode() not in path.read_bytes(), path
        assert KEY not in process.stdout + process.stderr
        texts = ["수도는", "counted", "echo:", "cut off", digest("second")]
        assert not [text for text in texts if text in process.stderr]
        assert not re.search(r"\bsecond\b", process.stderr)

    def test_nothing_is_left_lying_about(self, mixed: Any) -> None:
        assert not list((mixed[1] / "결과").glob(".scratch/*"))
        assert not list((mixed[1] / "결과").rglob(".*.parquet.*"))

    def test_a_rerun_sends_only_what_failed(self, mixed: Any) -> None:
        _, folder, server = mixed
        before = len(server.requests)
        again = run(folder, "--url", server.url, *ARGUMENTS, OPENAI_API_KEY=KEY)
        assert again.returncode == 0
        assert [seen.text for seen in server.requests[before:]] == ["other"]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[pd.DataFrame, OpenAIServer]]:
    folder = tmp_path_factory.mktemp("faults")
    kinds = [*ONCE, *(f"{kind.split(',')[0]}x2{kind[len(kind.split(',')[0]) :]}" for kind in REPEATED)]
    rows: list[Any] = [{"custom_id": kind, "prompt": f"[[fault:{kind}]] p"} for kind in kinds]
    for row in rows:
        if row["custom_id"].startswith("schema"):
            row["response_format"] = SCHEMA
    rows += [{"prompt": f"good {at}"} for at in range(20)]
    write(folder / "p.jsonl", rows)
    with OpenAIServer().in_thread() as server:
        process = run(folder, "--prompts", "p.jsonl", "--url", server.url, "--output", "out")
        assert process.returncode == 1
        frame = results(folder / "out")
        assert frame["row"].tolist() == list(range(len(rows)))
        yield frame.set_index("id", drop=False), server


class TestEveryFault:
    """Whatever a server does, each row gets one result, and the others are not disturbed."""

    @pytest.mark.parametrize("kind", ONCE)
    def test_a_row_that_is_final_at_once_is_sent_once(self, faulty: Any, kind: str) -> None:
        frame, server = faulty
        row = frame.loc[kind]
        outcome, code = ONCE[kind]
        assert row["outcome"] == outcome
        assert (None if pd.isna(row["error_code"]) else row["error_code"]) == code
        assert row["attempts"] == 1
        assert server.seen(f"[[fault:{kind}]] p") == 1

    @pytest.mark.parametrize("kind", REPEATED)
    def test_a_row_that_fails_twice_is_answered_by_the_third_attempt(self, faulty: Any, kind: str) -> None:
        frame, server = faulty
        head, comma, options = kind.partition(",")
        name = f"{head}x2{comma}{options}"
        row = frame.loc[name]
        # A reset on a connection that has served before may be that of an idle connection, once.
        assert (row["outcome"], row["attempts"]) == ("ok", 3) or (kind == "reset" and row["attempts"] == 2)
        assert digest(f"[[fault:{name}]] p") in row["content"]
        assert server.seen(f"[[fault:{name}]] p") == 3

    def test_what_is_kept_of_an_answer_is_all_of_it(self, faulty: Any) -> None:
        frame, _ = faulty
        assert len(frame.loc["huge"]["content"]) == 5_000_000
        assert json.loads(frame.loc["toolcall"]["tool_calls"])[0]["function"]["name"] == "look_up"
        assert frame.loc["refusal"]["error_message"].startswith("I cannot answer")
        assert pd.isna(frame.loc["nousage"]["completion_tokens"])
        assert frame.loc["404"]["error_message"] == "scripted fault 404"

    def test_the_good_rows_are_answered_at_the_first_attempt(self, faulty: Any) -> None:
        good = faulty[0][faulty[0]["id"].str.startswith("row-")]
        assert good["outcome"].unique().tolist() == ["ok"]
        assert good["attempts"].unique().tolist() == [1]


def test_the_wait_a_server_asks_for_is_kept(server: OpenAIServer, tmp_path: Path) -> None:
    waits = {"0.8": 0.8, "date:2": 1.0}  # a date has whole seconds
    write(
        tmp_path / "p.jsonl", [*({"prompt": f"[[fault:429x1,retry-after={wait}]]"} for wait in waits), {"prompt": "b"}]
    )
    assert run(tmp_path, "--prompts", "p.jsonl", "--url", server.url, "--output", "out").returncode == 0
    for wait, least in waits.items():
        first, last = (seen.received_at for seen in server.requests if f"={wait}]" in seen.text)
        assert least <= last - first < least + 2


def test_a_server_that_starts_after_the_run_is_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": f"row {at}"} for at in range(5)])
    server = OpenAIServer(port=free_port())
    process = start(tmp_path, "--prompts", "p.jsonl", "--url", server.url, "--output", "out")
    time.sleep(1.2)
    assert process.poll() is None
    with server.in_thread():
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert len(events(err, "endpoint.waiting")) == 1
    assert results(tmp_path / "out")["attempts"].tolist() == [1] * 5


def test_a_server_that_goes_away_and_comes_back_costs_no_row_more_than_the_attempt_it_broke(tmp_path: Path) -> None:
    count, slots = 60, 8
    write(tmp_path / "p.jsonl", [{"prompt": f"row {at}"} for at in range(count)])
    server = OpenAIServer(latency_s=0.1)
    with server.in_thread():
        process = start(
            tmp_path, "--prompts", "p.jsonl", "--url", server.url, "--output", "out", "--concurrency", str(slots)
        )
        wait_for(lambda: len(server.requests) >= 20)
    time.sleep(0.8)
    seen = len(server.requests)
    with server.in_thread():
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert len(events(err, "endpoint.unreachable")) == 1
    frame = results(tmp_path / "out")
    assert frame["outcome"].tolist() == ["ok"] * count
    assert frame["attempts"].max() <= 2
    assert (frame["attempts"] == 2).sum() <= slots
    assert len(server.requests) <= count + slots
    assert seen < count


def test_a_server_that_stays_away_ends_the_run_with_its_finished_rows_kept(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": f"row {at}"} for at in range(30)])
    arguments = ("--prompts", "p.jsonl", "--output", "out", "--concurrency", "4", "--server-wait", "1")
    server = OpenAIServer(latency_s=0.1)
    with server.in_thread():
        process = start(tmp_path, *arguments, "--url", server.url)
        wait_for(lambda: len(server.requests) >= 12)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    (line,) = error_lines(err)
    assert "could not be reached for 1 s (cannot connect: Conn" in line
    with server.in_thread():
        assert run(tmp_path, *arguments, "--url", server.url).returncode == 0
    assert results(tmp_path / "out")["outcome"].tolist() == ["ok"] * 30
    assert len(server.requests) <= 30 + 2 * 4


@pytest.mark.parametrize(
    ("key", "model", "message"),
    [
        ("wrong", "", "refuses the key (HTTP 401). Set OPENAI_API_KEY"),
        (KEY, "gpt-9", f"serves no model 'gpt-9'. It serves: {MODEL}."),
        ("two\nlines", "", "OPENAI_API_KEY holds characters"),
    ],
)
def test_a_wrong_key_or_model_ends_the_run_within_seconds(tmp_path: Path, key: str, model: str, message: str) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": "a"}])
    begun = time.monotonic()
    with OpenAIServer(api_key=KEY).in_thread() as server:
        done = run(
            tmp_path,
            "--prompts",
            "p.jsonl",
            "--url",
            server.url,
            "--output",
            "out",
            "--model",
            model,
            OPENAI_API_KEY=key,
        )
        assert server.requests == []
    assert time.monotonic() - begun < 8
    assert done.returncode == (2 if "\n" in key else 1)
    (line,) = error_lines(done.stderr)
    assert message in line
    assert not key or key not in done.stderr or key == KEY


def test_a_key_that_is_withdrawn_in_the_middle_ends_the_run_at_once(server: OpenAIServer, tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": f"row {at}"} for at in range(200)])
    server.latency_s = 0.05
    process = start(tmp_path, "--prompts", "p.jsonl", "--url", server.url, "--output", "out", "--concurrency", "4")
    wait_for(lambda: len(server.requests) >= 20)
    server.api_key = "new"
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    (line,) = error_lines(err)
    assert "refuses the key (401: Unauthorized). Set OPENAI_API_KEY" in line


def test_what_is_no_openai_endpoint_or_cannot_be_reached_is_told_in_one_line(
    server: OpenAIServer, tmp_path: Path
) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": "a"}])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        unreachable = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for url, code, message in (
        (unreachable, 1, f"cannot reach {unreachable}/v1 (Connection refused), tried for 0 s"),
        (server.url.removesuffix("/v1") + "/nothing", 1, "lists no model. Check that this is the address"),
        ("localhost:8000", 2, "http://localhost:8000"),
    ):
        done = run(tmp_path, "--prompts", "p.jsonl", "--url", url, "--output", "out", "--server-wait", "0")
        assert done.returncode == code
        (line,) = error_lines(done.stderr)
        assert message in line


@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), ("", "is empty"), ("x\n", "no row of")])
def test_prompts_that_cannot_be_used_are_a_usage_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "p.jsonl").write_text(content)
    done = run(tmp_path, "--prompts", "p.jsonl", "--url", "http://127.0.0.1:9", "--output", "out")
    assert done.returncode == 2
    (line,) = error_lines(done.stderr)
    assert message in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--concurrency", "-1"), "--concurrency must be at least 0, found -1"),
        (("--max-error-rate", "nan"), "--max-error-rate must be between 0 and 1, found nan"),
        (("--param", "top_k"), "expected KEY=VALUE"),
        (("--output", "p.jsonl/below"), "cannot write p.jsonl/below: Not a directory"),
    ],
)
def test_flags_that_cannot_be_used_are_a_usage_error(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": "a"}])
    done = run(tmp_path, "--prompts", "p.jsonl", "--url", "http://127.0.0.1:9", "--output", "out", *flags)
    assert done.returncode == 2
    (line,) = error_lines(done.stderr)
    assert message in line


def test_help_is_there_at_once_and_loads_nothing_heavy() -> None:
    code = (
        "import runpy, sys; sys.argv = ['batch', '--help']\n"
        "try: runpy.run_module('clients.batch', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'aiohttp', 'pyarrow', 'rich', 'uvloop'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "--concurrency" in done.stdout


def limit_files(pid: int, limit: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="Linux only")
class TestFullDisk:
    """A disk that is full in the middle of a run, and what becomes of the run."""

    @pytest.fixture
    def running(self, server: OpenAIServer, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
        write(tmp_path / "p.jsonl", [{"prompt": f"row {at}"} for at in range(40)])
        server.latency_s = 0.15
        process = start(tmp_path, "--prompts", "p.jsonl", "--url", server.url, "--output", "out", "--concurrency", "4")
        wait_for(lambda: list((tmp_path / "out/state").rglob("*.parquet")))
        limit_files(process.pid, 0)
        assert process.stderr is not None
        for line in process.stderr:
            if "commit.failed" in line:
                break
        yield process
        process.kill()
        process.communicate()

    def test_the_run_goes_on_when_there_is_space_again(
        self, running: subprocess.Popen[str], server: OpenAIServer, tmp_path: Path
    ) -> None:
        held = len(server.requests)
        time.sleep(0.5)
        assert len(server.requests) <= held + 4, "no new rows while nothing can be kept"
        limit_files(running.pid, resource.RLIM_INFINITY)
        running.communicate(timeout=20)
        assert running.returncode == 0
        assert results(tmp_path / "out")["outcome"].tolist() == ["ok"] * 40
        assert len(server.requests) == 40

    def test_a_signal_ends_it_with_one_line_and_keeps_what_was_kept(
        self, running: subprocess.Popen[str], server: OpenAIServer, tmp_path: Path
    ) -> None:
        kept = sum(len(pd.read_parquet(path)) for path in (tmp_path / "out/state").rglob("*.parquet"))
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=10)
        assert running.returncode == 1, "the state was not kept, so this is no clean interruption"
        (line,) = error_lines(err)
        assert "cannot write" in line
        assert "Traceback" not in err
        before = len(server.requests)
        assert run(tmp_path, "--prompts", "p.jsonl", "--url", server.url, "--output", "out").returncode == 0
        assert len(server.requests) - before <= 40 - kept  # the journal may have had more


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_step_inside_kfps_executor_ends_a_signal_with_its_exit_code_and_no_traceback(
    tmp_path: Path, signum: int, code: int
) -> None:
    module = tmp_path / "ephemeral_component.py"
    module.write_text(resolve_endpoint.component_spec.implementation.container.command[-1], encoding="utf-8")
    given = {"endpoint_url": f"http://127.0.0.1:{free_port()}", "model": "", "server_wait_s": 60}
    output = {"parameters": {"Output": {"outputFile": str(tmp_path / "o")}}, "outputFile": str(tmp_path / "all.json")}
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        for file, source in embedded(compiled_path("batch_client"), "resolve-endpoint").items():
            archive.writestr(file, source)
    artifact = {"name": "code", "type": {"schemaTitle": "system.Artifact"}, "uri": str(tmp_path / "code.zip")}
    inputs = {"parameterValues": given, "artifacts": {"code": {"artifacts": [artifact]}}}
    executor_input = json.dumps({"inputs": inputs, "outputs": output})
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kfp.dsl.executor_main", "--component_module_path", str(module)),
            *("--executor_input", executor_input, "--function_to_execute", "resolve_endpoint"),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    seen = ""
    assert process.stdout is not None
    for line in process.stdout:
        seen += line
        if "endpoint.waiting" in line:
            break
    process.send_signal(signum)
    rest, _ = process.communicate(timeout=10)
    assert process.returncode == code, seen + rest
    assert "Traceback" not in rest
    assert f'"exit_code": {code}' in rest


def test_a_fault_that_never_ends_fails_the_row_with_its_last_reason(
    endless: tuple[subprocess.Popen[str], Path, OpenAIServer],
) -> None:
    process, folder, server = endless
    _, err = process.communicate(timeout=70)
    assert process.returncode == 1
    frame = results(folder / "out").set_index("id")
    for kind, code in REPEATED.items():
        row = frame.loc[kind]
        tries = 12 if code in ("http_429", "http_503") else 6  # a server without room has not worked on the row
        assert (row["outcome"], row["error_code"], row["attempts"]) == ("failed", code, tries), kind
        assert row["error_message"]
        assert server.seen(f"[[fault:{kind}]] p") - tries in ((0, 1) if kind == "reset" else (0,))
    count = len(REPEATED)
    assert frame.loc[f"row-{count}"]["outcome"] == "ok"
    (line,) = error_lines(err)
    assert line.startswith(f"error: {count} of {count + 1} rows went wrong (failed {count})")
    assert {path.name for path in (folder / "out").iterdir()} >= FILES
    assert len(pd.read_parquet(folder / "out/rejects.parquet")) == count


def test_an_input_that_is_cut_short_while_it_runs_is_noticed_and_nothing_is_lost(
    server: OpenAIServer, tmp_path: Path
) -> None:
    server.latency_s = 1.0
    write(tmp_path / "p.jsonl", [{"prompt": f"row {i}"} for i in range(4)])
    arguments = ("--prompts", "p.jsonl", "--url", server.url, "--output", "out")
    process = start(tmp_path, *arguments)
    wait_for(lambda: len(server.requests) == 4)
    write(tmp_path / "p.jsonl", [{"prompt": f"row {i}"} for i in range(3)])
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "changed while it was run: shard 0 has 3 rows now, 4 when it was checked" in error_lines(errors)[-1]
    done = run(tmp_path, *arguments)
    assert done.returncode == 0
    assert len(server.requests) == 4
    assert results(tmp_path / "out")["outcome"].tolist() == ["ok"] * 3


@pytest.mark.parametrize("flags", [("--server-wait", "0"), ("--server-wait", "0", "--model", "nonsense")])
def test_a_fresh_run_that_comes_to_nothing_costs_no_answer(
    server: OpenAIServer, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": f"row {i}"} for i in range(4)])
    arguments = ("--prompts", "p.jsonl", "--output", "out")
    assert run(tmp_path, *arguments, "--url", server.url).returncode == 0
    elsewhere = server.url if "--model" in flags else f"http://127.0.0.1:{free_port()}"
    assert run(tmp_path, *arguments, "--url", elsewhere, "--fresh", *flags).returncode == 1
    assert run(tmp_path, *arguments, "--url", server.url).returncode == 0
    assert len(server.requests) == 4
