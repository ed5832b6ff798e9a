import asyncio
import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from clients.errors import EndpointError, SettingsError
from clients.models import authorization, max_model_len, resolve
from tests.servers.openai_server import OpenAIServer

MODEL = "qwen3-30b-fp8"


def ask(url: str, model: str = "", key: str | None = None, patience_s: float = 0.0) -> tuple[str, str]:
    found = resolve(url, model=model, api_key=key, patience_s=patience_s)
    return found.base_url, found.model


def refusal(url: str, model: str = "", key: str | None = None) -> str:
    start = time.monotonic()
    with pytest.raises(EndpointError) as caught:
        ask(url, model, key, patience_s=30)
    assert time.monotonic() - start < 5, "what waiting cannot heal must not be waited for"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextlib.contextmanager
def serving(answer: Callable[[web.Request], Awaitable[web.StreamResponse]], ssl: Any = None) -> Iterator[int]:
    """Any HTTP server on a loopback port."""
    loop, ready, port = asyncio.new_event_loop(), threading.Event(), [0]
    stop = asyncio.Event()

    async def live() -> None:
        app = web.Application()
        app.router.add_route("*", "/{any:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl).start()
        port[0] = runner.addresses[0][1]
        ready.set()
        await stop.wait()
        await runner.cleanup()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(live())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield port[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(models=(MODEL, "lora-a")).in_thread() as running:
        yield running


@pytest.mark.parametrize("form", ["{}", "{}/", "{}/v1", "{}/v1/", "{}/v1/chat/completions", "  {}/v1\n"])
def test_every_form_of_an_address_leads_to_the_same_endpoint(server: OpenAIServer, form: str) -> None:
    root = server.url.removesuffix("/v1")
    assert ask(form.format(root)) == (server.url, MODEL)


def test_a_model_that_is_served_can_be_chosen(server: OpenAIServer) -> None:
    assert ask(server.url, "lora-a")[1] == "lora-a"


def test_a_wrong_model_is_answered_with_those_that_are_served(server: OpenAIServer) -> None:
    assert f"serves no model 'lora-b'. It serves: {MODEL}, lora-a." in refusal(server.url, "lora-b")


def test_the_tokens_a_model_takes_are_told_where_the_list_says_so(server: OpenAIServer) -> None:
    server.max_model_len = 4096
    assert max_model_len(server.url, model=MODEL, api_key=None) == 4096
    assert max_model_len(server.url, model="other", api_key=None) is None

    async def bare(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "a"}, {"id": "b", "max_model_len": "many"}]})

    with serving(bare) as port:
        assert max_model_len(f"http://127.0.0.1:{port}/v1", model="a", api_key=None) is None
        assert max_model_len(f"http://127.0.0.1:{port}/v1", model="b", api_key=None) is None


def test_a_key_that_is_accepted_and_one_that_is_not() -> None:
    with OpenAIServer(api_key="right").in_thread() as server:
        assert ask(server.url, key="right")[1] == MODEL
        assert ask(server.url, key="right\n")[1] == MODEL, "a Secret made from a file ends with a line break"
        for key in ("wrong", None):
            message = refusal(server.url, key=key)
            assert "refuses the key (HTTP 401)" in message
            assert "OPENAI_API_KEY" in message
            assert "wrong" not in message


@pytest.mark.parametrize("key", ["two\nlines", "sk-\r\nX-Evil: 1", "한글", "\x00"])
def test_a_key_that_cannot_stand_in_a_header_is_refused_without_being_repeated(key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        authorization(key)
    assert "OPENAI_API_KEY" in str(caught.value)
    assert key not in str(caught.value)


def test_an_endpoint_without_a_list_of_models_needs_a_name() -> None:
    async def nothing(_: web.Request) -> web.Response:
        return web.json_response({"detail": "Not Found"}, status=404)

    with serving(nothing) as port:
        assert ask(f"http://127.0.0.1:{port}", "mine")[1] == "mine"
        assert "--model" in refusal(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("<!DOCTYPE html><html>Welcome</html>", "text/html"),
        ("", "text/plain"),
        ("[]", "application/json"),
        ('{"data": null}', "application/json"),
        ('{"data": [{"name": "x"}]}', "application/json"),
        ('{"data": ["x"]}', "application/json"),
        ("\ud7ff" * 9, "text/plain"),
    ],
)
def test_something_else_than_a_model_server_is_told_at_once(body: str, kind: str) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text=body, content_type=kind)

    with serving(page) as port:
        assert "is not an OpenAI-compatible API" in refusal(f"http://127.0.0.1:{port}")


def test_a_redirect_is_told_and_the_key_does_not_follow_it() -> None:
    keys: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        keys.append(request.headers.get("Authorization"))
        return web.json_response({"data": [{"id": "x"}]})

    with serving(elsewhere) as other:

        async def moved(_: web.Request) -> web.Response:
            raise web.HTTPTemporaryRedirect(f"http://127.0.0.1:{other}/v1/models")

        with serving(moved) as port:
            assert f"redirects to http://127.0.0.1:{other}/v1/models" in refusal(f"http://127.0.0.1:{port}", key="k")
    assert keys == []


def test_a_certificate_nobody_vouches_for_is_told_at_once(tmp_path: Path) -> None:
    import ssl

    pair = [str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    made = subprocess.run(
        [*command, "-subj", "/CN=localhost", "-keyout", pair[0], "-out", pair[1]], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no openssl here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair[1], pair[0])

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "x"}]})

    with serving(models, context) as port:
        message = refusal(f"https://127.0.0.1:{port}")
    assert "TLS fails" in message
    assert "SSL_CERT_FILE" in message


def test_an_endpoint_that_cannot_be_reached_is_named_with_the_mend() -> None:
    port = free_port()
    with pytest.raises(
        EndpointError, match=rf"cannot reach http://127.0.0.1:{port}/v1 \(Connection refused\)"
    ) as caught:
        ask(f"http://127.0.0.1:{port}", patience_s=0)
    assert "--server-wait" in str(caught.value)


def test_a_host_that_does_not_exist_is_not_reached() -> None:
    with pytest.raises(EndpointError, match=r"cannot reach http://no-such-host\.invalid/v1"):
        ask("http://no-such-host.invalid", patience_s=0)


@pytest.mark.parametrize("url", ["http://a..b/v1", "http://127.0.0.1:9/한글/v1", f"http://{'x' * 70}.de/v1"])
def test_an_address_that_cannot_be_sent_is_the_users_to_mend(url: str) -> None:
    with pytest.raises((SettingsError, EndpointError)) as caught:
        ask(url)
    assert "\n" not in str(caught.value)


def test_a_port_that_speaks_another_protocol_is_not_an_endpoint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 smtp ready\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(EndpointError, match="220 smtp ready"):
            ask(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize("early", ["nobody", "loading"])
def test_a_server_that_is_still_starting_is_waited_for(early: str) -> None:
    statuses = iter([503, 502] if early == "loading" else [])

    async def models(_: web.Request) -> web.Response:
        status = next(statuses, 200)
        return web.json_response({"data": [{"id": "late"}]}, status=status)

    if early == "loading":
        with serving(models) as port:
            assert ask(f"http://127.0.0.1:{port}", patience_s=10)[1] == "late"
        return
    server = OpenAIServer(port=free_port())
    found: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: found.append(ask(server.url, patience_s=10)))
    thread.start()
    time.sleep(0.7)
    with server.in_thread():
        thread.join()
    assert found == [(server.url, MODEL)]
