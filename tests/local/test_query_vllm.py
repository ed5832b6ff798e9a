"""`python clients/query_vllm.py` as a user runs it: by its path, from another folder, against a real socket."""

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.query_vllm import main
from tests.servers.answers import digest
from tests.servers.openai_server import OpenAIServer

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "clients" / "query_vllm.py"
ELAPSED = re.compile(r"Elapsed: \d+\.\d\ds")
KOREAN = "부산의 바다를 한 문장으로"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("OPENAI_", "PYTHON", "COV_")) and name.upper() not in PROXIES
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(os.environ) - set(CLEAN):
        if not name.startswith(("PYTHON", "PYTEST", "COV_")):
            monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(reasoning="reasoning").in_thread() as server:
        yield server


def run(cwd: Path, *flags: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        env={**CLEAN, **environment},
        timeout=30,
        check=False,
    )


def test_it_prints_readable_json_and_the_time_from_any_folder(server: OpenAIServer, tmp_path: Path) -> None:
    (tmp_path / "openai.py").write_text("raise SystemExit('the folder we stand in was imported')\n", encoding="utf-8")
    flags = ["--model", "qwen3-30b-fp8", "--max-tokens", "40", "--temperature", "0.6", "--system", "짧게"]
    done = run(tmp_path, "--url", f"{server.url}/chat/completions", "--prompt", KOREAN, *flags, LC_ALL="C")
    assert done.stderr == ""
    assert done.returncode == 0
    text, _, last = done.stdout.rstrip("\n").rpartition("\n")
    assert ELAPSED.fullmatch(last)
    assert KOREAN in text
    message = json.loads(text)["choices"][0]["message"]
    assert digest(KOREAN) in message["content"]
    assert digest(KOREAN) in message["reasoning"]
    body = server.requests[0].body
    assert [each["role"] for each in body.pop("messages")] == ["system", "user"]
    assert body == {"model": "qwen3-30b-fp8", "max_tokens": 40, "temperature": 0.6}
    assert server.requests[0].headers["Authorization"] == "Bearer EMPTY"


def test_the_prompt_may_come_from_standard_input_and_the_rest_from_the_environment(
    server: OpenAIServer, tmp_path: Path
) -> None:
    server.api_key = "sesame"
    environment = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "sesame", "http_proxy": "http://127.0.0.1:1"}
    done = run(tmp_path, "--prompt", "-", "--json", stdin=KOREAN, **environment)
    assert done.returncode == 0
    assert digest(KOREAN) in json.loads(done.stdout)["choices"][0]["message"]["content"]
    assert ELAPSED.fullmatch(done.stderr.strip())


def test_it_runs_as_a_module_too(server: OpenAIServer) -> None:
    command = [sys.executable, "-m", "clients.query_vllm", "--url", server.url, "--prompt", "x", "--stream"]
    done = subprocess.run(command, cwd=ROOT, env=CLEAN, capture_output=True, encoding="utf-8", timeout=30, check=True)
    thinking, blank, answer, last = done.stdout.splitlines()
    assert "step by step" in thinking
    assert blank == ""
    assert answer.startswith(digest("x"))
    assert ELAPSED.fullmatch(last)


def test_help_comes_at_once_even_without_the_openai_package(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "clients", tmp_path / "clients", ignore=shutil.ignore_patterns("__pycache__"))
    bare = [sys.executable, "-S", str(tmp_path / "clients" / "query_vllm.py")]
    begun = time.perf_counter()
    shown = subprocess.run([*bare, "--help"], env=CLEAN, capture_output=True, text=True, timeout=30, check=True)
    elapsed_s = time.perf_counter() - begun
    assert "OPENAI_API_KEY" in shown.stdout
    assert elapsed_s < 2  # alone it takes 0.05 s; a test machine may be busy
    flags = ["--url", "http://127.0.0.1:1", "--prompt", "x"]
    done = subprocess.run([*bare, *flags], env=CLEAN, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "pip install openai" in done.stderr
    assert "Traceback" not in done.stderr


def test_thinking_is_dimmed_on_a_terminal_only(server: OpenAIServer, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, str(SCRIPT), "--url", server.url, "--prompt", KOREAN, "--stream"]
    subprocess.run(command, cwd=tmp_path, env=CLEAN, stdout=follower, timeout=30, check=True)
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:  # Linux says so when the other side is closed
        pass
    os.close(leader)
    thinking, _, answer = shown.decode().partition("\r\n\r\n")
    assert "\033[2m" in thinking
    assert "\033[" not in answer
    assert digest(KOREAN) in answer


def test_ctrl_c_ends_it_with_130_and_without_a_traceback(server: OpenAIServer, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--url", server.url, "--prompt", "[[fault:hang]]"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 20
        while not server.in_flight and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors) == (130, "", "")


def test_a_reader_that_goes_away_gets_no_traceback(server: OpenAIServer, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(SCRIPT), "--url", server.url, "--prompt", "x"]
    done = subprocess.run(
        command, cwd=tmp_path, env=CLEAN, stdout=write, stderr=subprocess.PIPE, timeout=30, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_endpoint_that_is_not_there_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        done = run(tmp_path, "--url", url, "--prompt", "x")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"query_vllm: {url}/v1 cannot be reached (")
    assert done.stderr.count("\n") == 1


FAULTS = {
    "400": "answered 400: scripted fault 400. Change what you ask for",
    "401": "answered 401: Unauthorized. OPENAI_API_KEY is not set",
    "404": "Nothing is served at this path",
    "429": "try again later",
    "500": "answered 500: scripted fault 500. See the server's log",
    "502": "answered 502: a web page",
    "503": "busy or starting",
    "reset": "broke off the connection",
    "reset_body": "broke off the connection",
    "truncated": "broke off the connection",
    "html": "answered with a web page: is --url",
    "badjson": "broken JSON",
    "badutf8": "without a list 'choices'",
    "nonobject": "without a list 'choices'",
    "stream_error": "EngineCore encountered an issue. See the server's log",
    "hang": "said nothing for 0.3 s: raise --timeout",
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_at_the_server_is_said_in_one_line(
    fault: str, stream: bool, server: OpenAIServer, capsys: pytest.CaptureFixture[str]
) -> None:
    timeout = "0.3" if fault == "hang" else "20"
    flags = ["--url", server.url, "--prompt", f"[[fault:{fault}]]", "--timeout", timeout, *["--stream"] * stream]
    assert main(flags) == 1
    shown = capsys.readouterr()
    assert FAULTS[fault] in shown.err
    assert shown.err.startswith(f"query_vllm: {server.url}")
    assert shown.err.count("\n") == 1
    assert "Elapsed" not in shown.out
    assert len(server.requests) == 1  # one question is asked once


def test_a_model_that_is_not_served_is_answered_with_those_that_are(
    server: OpenAIServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.models = ("first", "second")
    assert main(["--url", server.url, "--model", "third", "--prompt", "x"]) == 1
    assert "The model `third` does not exist. Pass --model with one that it serves: first, second" in (
        capsys.readouterr().err
    )


def test_without_a_model_the_first_is_used_and_a_choice_is_mentioned(
    server: OpenAIServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.models = ("first", "second")
    assert main(["--url", server.url, "--prompt", "x", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["model"] == "first"
    assert "the first of 2 models" in shown.err
    server.models = ()
    assert main(["--url", server.url, "--prompt", "x"]) == 1
    assert "lists no model" in capsys.readouterr().err


def test_an_answer_cut_while_streaming_is_told_apart_from_one_that_ended(
    server: OpenAIServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--url", server.url, "--prompt", "x", "--stream", "--max-tokens", "3"]) == 0
    shown = capsys.readouterr()
    assert "cut off at its token limit" in shown.err
    assert ELAPSED.search(shown.out)
    assert main(["--url", server.url, "--prompt", "[[fault:nochoices]]", "--stream"]) == 1
    assert "ended the stream before the answer" in capsys.readouterr().err


def test_a_wrong_key_is_told_apart_from_a_missing_one(
    server: OpenAIServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.api_key = "sesame"
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    assert main(["--url", server.url, "--prompt", "x"]) == 1
    errors = capsys.readouterr().err
    assert "is not the key of this endpoint" in errors
    assert "hunter2" not in errors


@pytest.mark.parametrize("proxy", ["http://user:hunter2@127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_a_proxy_that_stands_between_is_named_without_its_password(
    proxy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    assert main(["--url", "http://model.invalid", "--prompt", "x"]) in {1, 2}
    errors = capsys.readouterr().err
    assert "PROXY" in errors
    assert "hunter2" not in errors


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--prompt", "x"], "pass --url"),
        (["--prompt", "x", "--url", "localhost:8000"], "has no scheme"),
        (["--prompt", " ", "--url", "http://127.0.0.1:1"], "the prompt is empty"),
        (["--prompt", "x\udcff", "--url", "http://127.0.0.1:1"], "not UTF-8"),
    ],
)
def test_settings_to_mend_are_exit_code_2(flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--timeout", "0"], ["--timeout", "soon"], ["--json", "--stream"]])
def test_wrong_flags_are_exit_code_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--prompt", "x", "--url", "http://127.0.0.1:1", *flags] if flags else [])
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_key_that_cannot_be_one_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "비밀")
    assert main(["--url", "http://127.0.0.1:1", "--prompt", "x"]) == 2
    errors = capsys.readouterr().err
    assert "OPENAI_API_KEY" in errors
    assert "비밀" not in errors
