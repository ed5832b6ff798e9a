"""The fake vLLM over real sockets, in this process for the most part, and as the process that it is for the rest."""

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from clients.errors import EndpointError, LLMInferenceError, LocalServerError, SettingsError
from clients.fake_vllm.answers import AnswerModel
from clients.fake_vllm.arguments import answer_model, fault_plan, parser, server_options
from clients.fake_vllm.batching import StepModel, ideal_makespan
from clients.fake_vllm.chat import mark_of
from clients.fake_vllm.cluster import Cluster
from clients.fake_vllm.faults import KINDS
from clients.fake_vllm.process import FakeServer
from clients.fake_vllm.server import Connection

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--step-base-ms", "0.05", "--step-per-request-us", "0")


class InThread(FakeServer):
    """The same server in a thread of this process, on the plain event loop."""

    def __enter__(self) -> Self:
        started: concurrent.futures.Future[str] = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        self.url = started.result(10)
        return self

    async def _serve(self, started: "concurrent.futures.Future[str]") -> None:
        given = parser().parse_args(self._flags)
        try:
            cluster = Cluster(server_options(given), answer_model(given), fault_plan(given))
        except LLMInferenceError as error:
            started.set_exception(error)
            return
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            announce = lambda urls: started.set_result(urls[0])  # noqa: E731
            serving = group.create_task(cluster.serve(functools.partial(Connection, cluster), announce))
            await self._told.wait()
            for replica in cluster.replicas:
                replica.die()
            await asyncio.sleep(0.01)  # for the connections to close
            cluster.close()
            serving.cancel()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._told.set)
        self._thread.join(10)


class Client:
    """One raw connection."""

    def __init__(self, server: FakeServer, host: str = "") -> None:
        self.socket = socket.create_connection((host or server.host, server.port), timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: fake", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def ask(self, text: str, **fields: Any) -> None:
        body = {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}
        self.send("POST", "/v1/chat/completions", json.dumps(body).encode())

    def read(self) -> tuple[int, dict[str, str], bytes]:
        """A whole reply; EOFError when less comes."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        while "content-length" in headers and len(body) < int(headers["content-length"]):
            body += self._more()
        while "transfer-encoding" in headers and not body.endswith(b"0\r\n\r\n"):
            body += self._more()
        return int(first.split()[1]), headers, body

    def _more(self) -> bytes:
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError
        return data


def ask(server: FakeServer, text: str, **fields: Any) -> tuple[int, dict[str, str], Any]:
    with Client(server) as client:
        client.ask(text, **fields)
        status, headers, body = client.read()
        return status, headers, json.loads(body)


def get(server: FakeServer, path: str, host: str = "", **headers: str) -> tuple[int, str]:
    with Client(server, host) as client:
        client.send("GET", path, **headers)
        status, _, body = client.read()
        return status, body.decode()


def metric(server: FakeServer, name: str, host: str = "") -> float:
    (value,) = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", get(server, "/metrics", host)[1], re.MULTILINE)
    return float(value)


def wait_for(what: Any, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def refused(server: FakeServer, host: str = "") -> bool:
    try:
        Client(server, host).socket.close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.fixture(scope="module")
def instant() -> Iterator[FakeServer]:
    with InThread("--instant", "--thinking") as server:
        yield server


# --------------------------------------------------------------------- the answers


def test_an_answer_belongs_to_its_text(instant: FakeServer) -> None:
    status, _, answer = ask(instant, "what is it?")
    assert status == 200
    assert answer["choices"][0]["message"]["content"].startswith(f"answer-{mark_of('what is it?').hex()[:12]} ")


def test_one_connection_serves_many_requests_and_names_them_as_asked(instant: FakeServer) -> None:
    with Client(instant) as client:
        for number in range(3):
            body = json.dumps({"messages": [{"role": "user", "content": "x"}], "n": 2}).encode()
            client.send("POST", "/v1/chat/completions", body, X_Request_Id=f"mine-{number}")
            status, headers, reply = client.read()
            answer = json.loads(reply)
            assert (status, headers["connection"]) == (200, "keep-alive")
            assert answer["id"] == f"chatcmpl-mine-{number}"
            assert len(answer["choices"]) == 2


def test_a_large_body_may_come_in_parts_and_a_client_may_close(instant: FakeServer) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 300_000}]}).encode()
    with Client(instant) as client:
        client.send("POST", "/v1/chat/completions", body, Connection="close")
        status, headers, _ = client.read()
        assert (status, headers["connection"]) == (200, "close")
        assert client.socket.recv(1) == b""


def test_a_stream_ends_with_done(instant: FakeServer) -> None:
    with Client(instant) as client:
        client.ask("x", stream=True)
        _, headers, body = client.read()
    assert headers["content-type"].startswith("text/event-stream")
    assert b"data: [DONE]\n\n" in body


def test_errors_are_in_the_words_of_vllm(instant: FakeServer) -> None:
    status, _, answer = ask(instant, "x", model="other")
    assert status == 404
    assert answer["error"] == {
        "message": "The model `other` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }
    with Client(instant) as client:
        client.send("POST", "/v1/chat/completions", b"{")
        assert client.read()[0] == 400
        client.send("DELETE", "/v1/models")
        assert client.read()[0] == 405
        client.socket.sendall(b"nonsense\r\n\r\n")
        assert client.read()[0] == 400


def test_the_pages_beside_the_api(instant: FakeServer) -> None:
    assert get(instant, "/health") == (200, "")
    assert get(instant, "/ping") == (200, "")
    assert json.loads(get(instant, "/load")[1]) == {"server_load": 0}
    assert "version" in json.loads(get(instant, "/version")[1])
    assert json.loads(get(instant, "/v1/models")[1])["data"][0]["max_model_len"] == 131_072
    assert get(instant, "/nothing")[0] == 404


def test_a_key_is_asked_for() -> None:
    with InThread("--instant", "--api-key", "k", "--no-metrics") as server:
        assert get(server, "/v1/models")[0] == 401
        assert get(server, "/v1/models", Authorization="Bearer k")[0] == 200
        assert get(server, "/health")[0] == 200
        assert get(server, "/metrics")[0] == 404


# ------------------------------------------------------------------- the simulation


def test_a_run_with_every_row_on_offer_takes_the_ideal_time() -> None:
    texts, model = [f"row {number}" for number in range(600)], AnswerModel()
    steps = StepModel(base_s=0.0005, per_running_s=5e-6)
    ideal = ideal_makespan([model.wanted_tokens(mark_of(text)) for text in texts], 64, steps)
    with FakeServer("--slots", "64", "--step-base-ms", "0.5") as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in texts]
        for client, text in zip(clients, texts, strict=True):
            client.ask(text)
        for client in clients:
            assert client.read()[0] == 200
        tally = server.tally()
    assert tally["makespan_s"] == pytest.approx(ideal, rel=0.02)  # 600 writes on a busy machine are in it
    assert tally["answered"] == 600
    assert 500 < tally["replicas"][0]["peak"] <= tally["peak_in_flight"] <= 600  # the shortest end while others come
    assert 0.6 < tally["busy_share"] <= 1  # a few long answers end alone
    assert tally["lengths"]["sum"] == sum(model.wanted_tokens(mark_of(text)) for text in texts)


def test_metrics_show_who_runs_and_who_waits_and_a_disconnect_frees_the_slot() -> None:
    with InThread("--slots", "1", "--tokens-sigma", "0", "--step-base-ms", "1000") as server:
        with Client(server) as first, Client(server) as second, Client(server) as third:
            for client in (first, second, third):
                client.ask("x")
            wait_for(lambda: server.tally()["in_flight"] == 3)
            assert metric(server, "vllm:num_requests_running") == 1.0
            assert metric(server, "vllm:num_requests_waiting") == 2.0
            assert metric(server, "vllm:kv_cache_usage_perc") == 1.0
            third.socket.close()
            wait_for(lambda: metric(server, "vllm:num_requests_waiting") == 1.0)
            first.socket.close()
            wait_for(lambda: metric(server, "vllm:num_requests_waiting") == 0.0)
            assert metric(server, "vllm:num_requests_running") == 1.0
        wait_for(lambda: metric(server, "vllm:num_requests_running") == 0.0)
        assert server.tally()["aborted"] == 3


def test_counters_of_metrics_grow() -> None:
    with InThread(*QUICK, "--tokens-sigma", "0") as server:
        ask(server, "x")
        ask(server, "y", max_tokens=10)
        assert metric(server, "vllm:generation_tokens_total") == 210
        assert metric(server, "vllm:prompt_tokens_total") == 10
        page = get(server, "/metrics")[1]
        assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="fake"} 1.0' in page
        assert 'vllm:num_requests_running{engine="0",model_name="fake"} 0.0' in page
        assert metric(server, "process_start_time_seconds") == pytest.approx(time.time(), abs=10)


def test_idle_connections_are_closed_but_not_busy_ones() -> None:
    with (
        InThread("--keep-alive-s", "0.1", "--step-base-ms", "2", "--tokens-sigma", "0") as server,
        Client(server) as idle,
        Client(server) as busy,
    ):
        busy.ask("x")
        assert idle.socket.recv(1) == b""
        assert busy.read()[0] == 200
        assert busy.socket.recv(1) == b""


# ----------------------------------------------------------------------- the tally


def test_repeated_work_is_counted_by_text_until_the_reset(instant: FakeServer) -> None:
    instant.reset()
    for text in ("a", "a", "a", "b"):
        ask(instant, text, max_tokens=7)
    tally = instant.tally(rows=True)
    assert (tally["requests"], tally["answered"], tally["distinct_texts"], tally["repeated_work"]) == (4, 4, 2, 1)
    assert tally["tokens_repeated"] == 14
    assert tally["rows"][mark_of("a").hex()[:12]] == {"requests": 3, "answers": 3}
    assert tally["statuses"] == {"200": 4}
    assert tally["lengths"]["max"] == 7
    assert 0 < tally["first_request_s"] < tally["last_answer_s"]
    instant.reset()
    tally = instant.tally()
    assert (tally["requests"], tally["distinct_texts"], tally["first_request_s"]) == (0, 0, None)


def test_whoever_comes_back_before_the_time_told_is_counted() -> None:
    with (
        InThread("--slots", "1", "--gateway-queue", "0", "--retry-after", "0.2", "--step-base-ms", "1000") as server,
        Client(server) as busy,
    ):
        busy.ask("busy")
        wait_for(lambda: server.tally()["in_flight"] == 1)
        status, headers, _ = ask(server, "x")
        assert (status, headers["retry-after"]) == (429, "0.2")
        ask(server, "another")
        assert server.tally()["retry_after_broken"] == 0
        assert ask(server, "x")[0] == 429
        assert server.tally()["retry_after_broken"] == 1
        time.sleep(0.2)
        assert ask(server, "x")[0] == 429
        assert server.tally()["retry_after_broken"] == 1


def test_a_full_queue_is_503_without_retry_after() -> None:
    with (
        InThread("--slots", "1", "--max-queued", "1", "--step-base-ms", "1000") as server,
        Client(server) as first,
        Client(server) as second,
    ):
        first.ask("a")
        second.ask("b")
        wait_for(lambda: server.tally()["in_flight"] == 2)
        status, headers, _ = ask(server, "c")
        assert status == 503
        assert "retry-after" not in headers


# ----------------------------------------------------------------- start and outages


def test_a_server_may_be_closed_and_then_not_ready() -> None:
    with InThread("--instant", "--closed-s", "0.3", "--not-ready-s", "0.6") as server:
        assert refused(server)
        wait_for(lambda: not refused(server))
        assert get(server, "/health")[0] == 503
        assert ask(server, "x")[0] == 503
        wait_for(lambda: get(server, "/health")[0] == 200)
        assert ask(server, "x")[0] == 200


def test_connections_are_spread_over_the_replicas_by_chance() -> None:
    with InThread("--replicas", "3", "--instant") as server:
        starts = {metric(server, "process_start_time_seconds") for _ in range(40)}
        assert len(starts) == 3
        assert {replica["url"] for replica in server.tally()["replicas"]} == {server.url}


def test_each_replica_may_have_its_own_address() -> None:
    with InThread("--addresses", "2", "--instant") as server:
        first = metric(server, "process_start_time_seconds", "127.0.0.1")
        assert first != metric(server, "process_start_time_seconds", "127.0.0.2")
        urls = [replica["url"] for replica in server.tally()["replicas"]]
        assert urls == [f"http://127.0.0.{number}:{server.port}/v1" for number in (1, 2)]


@pytest.mark.parametrize("kind", [FakeServer, InThread])
def test_an_outage_resets_connections_refuses_new_ones_and_ends_with_a_new_process(kind: type[FakeServer]) -> None:
    with kind("--step-base-ms", "1000", "--outage", "0:0.2:0.5") as server:
        before = metric(server, "process_start_time_seconds")
        with Client(server) as busy, Client(server) as idle:
            busy.ask("x")
            for client in (busy, idle):
                with pytest.raises(ConnectionResetError):
                    client.socket.recv(1)
        assert refused(server)
        wait_for(lambda: not refused(server))
        assert metric(server, "process_start_time_seconds") > before
        tally = server.tally()
        assert (tally["lost"], tally["in_flight"], tally["aborted"]) == (1, 0, 0)


def test_new_connections_do_not_reach_a_dead_replica_and_a_reset_revives_it() -> None:
    with InThread("--replicas", "2", "--instant", "--outage", "1:0:60") as server:
        ask(server, "x")
        wait_for(lambda: [replica["alive"] for replica in server.tally()["replicas"]] == [True, False])
        assert len({metric(server, "process_start_time_seconds") for _ in range(20)}) == 1
        server.reset()
        assert len({metric(server, "process_start_time_seconds") for _ in range(20)}) == 2


# ------------------------------------------------------------------------ the faults


@pytest.fixture(params=[FakeServer, InThread])
def faulty(request: pytest.FixtureRequest) -> Any:
    return lambda kind, *more: request.param(*QUICK, "--faults", f"{kind}:1", "--fault-attempts", "1", *more)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_status_is_said_once_then_the_row_is_answered(status: int) -> None:
    with InThread(*QUICK, "--faults", f"http_{status}:1", "--fault-attempts", "1") as server, Client(server) as client:
        client.ask("x")
        found, headers, body = client.read()
        assert found == status
        assert headers.get("retry-after") == ("1" if status == 429 else None)
        assert body.startswith(b"<html>" if status in {502, 504} else b'{"error"')
        client.ask("x", seed=2)
        assert client.read()[0] == 200
        assert server.tally()["faults"] == {f"http_{status}": 1}


@pytest.mark.parametrize(
    ("kind", "error", "some"),
    [("reset", ConnectionResetError, True), ("slow_reset", ConnectionResetError, False), ("truncated", EOFError, True)],
)
def test_an_answer_breaks_off(faulty: Any, kind: str, error: type[Exception], some: bool) -> None:
    with faulty(kind) as server:
        with Client(server) as client:
            client.ask("x")
            if some:
                assert client.socket.recv(10, socket.MSG_PEEK).startswith(b"HTTP/1.1")
            with pytest.raises(error):
                client.read()
        assert ask(server, "x")[0] == 200
        assert server.tally()["answered"] == 1


@pytest.mark.parametrize(("kind", "begins"), [("hang", False), ("stall", True)])
def test_silence_holds_no_slot(faulty: Any, kind: str, begins: bool) -> None:
    with faulty(kind, "--slots", "1") as server, Client(server) as client:
        client.ask("x")
        if begins:
            wait_for(lambda: client.socket.recv(1, socket.MSG_PEEK) == b"H")
        client.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.read()
        assert ask(server, "x")[0] == 200
        client.socket.close()
        wait_for(lambda: server.tally()["aborted"] == 1)


def test_bad_json_no_choices_and_rejection() -> None:
    for kind, found in (("bad_json", b'"mess'), ("no_choices", b'"choices":[]'), ("reject", b"BadRequestError")):
        with InThread(*QUICK, "--faults", f"{kind}:1") as server, Client(server) as client:
            client.ask("x", stream=False)
            status, _, body = client.read()
            assert status == (400 if kind == "reject" else 200)
            assert found in body
            assert server.tally()["answered"] == 0


def test_a_stream_can_break_off(faulty: Any) -> None:
    with faulty("truncated") as server, Client(server) as client:
        client.ask("x", stream=True)
        with pytest.raises(EOFError):
            client.read()


def test_a_connection_that_is_closed_unannounced_meets_its_next_user_with_a_reset(faulty: Any) -> None:
    with faulty("idle_close") as server, Client(server) as client:
        client.ask("x")
        status, headers, _ = client.read()
        assert (status, headers["connection"]) == (200, "keep-alive")
        client.ask("y")
        with pytest.raises((ConnectionError, EOFError)):
            client.read()
        tally = server.tally()
        assert (tally["answered"], tally["distinct_texts"]) == (1, 1), "what came too late was never taken"


def test_pipelining_is_refused() -> None:
    with InThread("--step-base-ms", "1000") as server, Client(server) as client:
        client.ask("x")
        client.ask("y")
        with pytest.raises(ConnectionResetError):
            client.read()
        assert server.tally()["in_flight"] == 0


def test_every_row_is_answered_in_the_end_whatever_fails() -> None:
    kinds = ",".join(f"{kind}:0.06" for kind in KINDS if kind not in {"reject", "hang", "stall"})
    with FakeServer(*QUICK, "--faults", kinds) as server:
        for number in range(150):
            for _ in range(4):
                with contextlib.suppress(ConnectionError, EOFError, ValueError):
                    status, _, answer = ask(server, f"row {number}")
                    if status == 200 and answer["choices"]:
                        break
            else:
                pytest.fail(f"row {number} was not answered")
        tally = server.tally()
    assert (tally["texts_answered"], tally["answered"], tally["repeated_work"]) == (150, 150, 0)
    assert len(tally["faults"]) > 7


# ----------------------------------------------------------------------- the process


def test_the_process_prints_its_url_and_ends_at_once_on_a_signal() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        command = [sys.executable, "-m", "clients.fake_vllm"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1\n", process.stdout.readline())
            process.send_signal(number)
            assert process.wait(5) == 128 + number


def test_the_cpu_of_a_request_is_small() -> None:
    with FakeServer("--instant") as server, Client(server) as client:
        before = server.cpu_s()
        for number in range(2000):
            client.ask(f"row {number}")
            client.read()
        assert (server.cpu_s() - before) / 2000 < 0.0005  # ten times what it is, for machines that are slow or busy


def test_a_server_that_cannot_start_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LocalServerError, match="did not start: exit code 2"), FakeServer("--faults", "flood:1"):
        pass
    assert "no such kind" in capfd.readouterr().err
    with pytest.raises(LocalServerError, match="does not run"):
        FakeServer().pid  # noqa: B018
    FakeServer().stop()


@pytest.mark.parametrize(
    "flags",
    [
        ("--host", "10.0.0.1"),
        ("--host", "localhost"),
        ("--slots", "0"),
        ("--step-base-ms", "0"),
        ("--outage", "1:0:1"),
        ("--outage", "soon"),
    ],
)
def test_flags_that_cannot_be_are_told(flags: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=flags[0]):
        server_options(parser().parse_args(flags))


def test_a_port_that_is_taken_is_told(instant: FakeServer) -> None:
    with pytest.raises(EndpointError, match="Give another --port"), InThread("--port", str(instant.port)):
        pass
