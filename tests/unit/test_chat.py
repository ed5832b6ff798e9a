"""The HTTP edge of the engine against real sockets: what each failure is called, and whether it costs an attempt."""

import asyncio
import datetime as dt
import email.utils
import gzip
import json
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web

from clients.batch import connection
from clients.batch.chat import ChatEndpoint, Timeouts
from clients.batch.connection import ClosedIdleError, Connection
from clients.batch.endpoint_address import addresses
from clients.batch.replica import KEEPALIVE_S
from clients.errors import (
    ChatError,
    EndpointError,
    LLMInferenceError,
    OverloadedError,
    RejectedError,
    TransientError,
    UnreachableError,
)
from tests.servers.openai_server import OpenAIServer

BODY = {"model": "qwen3-30b-fp8", "messages": [{"role": "user", "content": "hello"}]}
KEY = "sk-secret-0123456789"
GOOD = b'{"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}'


class OneByOne:
    """Sends requests to an endpoint one after another, over one connection as long as it can be used."""

    def __init__(self, base_url: str, *, api_key: str | None = None, timeouts: Timeouts | None = None) -> None:
        self.endpoint = ChatEndpoint(base_url, api_key=api_key, timeouts=timeouts)
        self.connection: Connection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.connection is not None:
            self.connection.close()

    async def complete(self, payload: bytes) -> Any:
        if self.connection is None or not self.connection.is_open:
            self.connection = await self.endpoint.connect((await addresses(self.endpoint))[0])
        return self.endpoint.answer(await self.connection.send(self.endpoint.request(payload)))


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def against(answer: Answer, *, tls: Any = None, timeouts: Timeouts | None = None) -> Any:
    """What one request to a server with this answer brings."""
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    scheme = "https" if tls else "http"
    url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        async with OneByOne(url, api_key=KEY, timeouts=timeouts) as client:
            return await client.complete(json.dumps(BODY).encode())
    finally:
        await runner.cleanup()


async def error_of(answer: Answer, **how: Any) -> LLMInferenceError:
    with pytest.raises(LLMInferenceError) as caught:
        await against(answer, **how)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    return caught.value


def replying(body: bytes | str = b"", status: int = 200, **headers: str) -> Answer:
    data = body.encode() if isinstance(body, str) else body

    async def answer(_: web.Request) -> web.Response:
        return web.Response(
            body=data, status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    return answer


async def raw(reply: bytes) -> Exception | Any:
    """What one request to a server that writes exactly these bytes brings."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, OneByOne(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1") as client:
        try:
            return await client.complete(json.dumps(BODY).encode())
        except LLMInferenceError as error:
            return error


async def test_a_good_answer_is_its_json() -> None:
    assert (await against(replying(GOOD)))["choices"][0]["message"]["content"] == "hi"


async def test_a_compressed_answer_is_read() -> None:
    assert "choices" in await against(replying(gzip.compress(GOOD, mtime=0), Content_Encoding="gzip"))


@pytest.mark.parametrize("body", [b"no gzip at all", gzip.compress(GOOD, mtime=0)[:-12]])
async def test_a_compressed_answer_that_is_broken_is_worth_another_attempt(body: bytes) -> None:
    error = await error_of(replying(body, Content_Encoding="gzip"))
    assert isinstance(error, TransientError)
    assert not isinstance(error, UnreachableError)


async def test_an_answer_of_five_megabytes_arrives_whole() -> None:
    text = "x" * 5_000_000
    found = await against(replying(b'{"text": "' + text.encode() + b'"}'))
    assert found["text"] == text


async def test_an_answer_beyond_all_measure_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_BODY_BYTES", 1 << 20)
    error = await error_of(replying(gzip.compress(b" " * (64 << 20), mtime=0), Content_Encoding="gzip"))
    assert isinstance(error, TransientError)
    assert str(error) == "the answer is larger than 1 MiB"


@pytest.mark.parametrize("body", [b'{"choices": "\xff\xfe"}', b"<html>", b"", b'{"a": NaN}', b'"\\ud800"'])
async def test_an_answer_that_is_not_json_is_worth_another_attempt(body: bytes) -> None:
    error = await error_of(replying(body))
    assert isinstance(error, TransientError)
    assert error.code == "bad_json"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "too long", "code": 400}}', "too long"),
        ('{"error": "Unauthorized"}', "Unauthorized"),
        ('{"detail": "Not Found"}', "Not Found"),
        ('{"detail": [{"msg": "x"}]}', '{"detail": [{"msg": "x"}]}'),
        ('{"message": "no"}', "no"),
        ('{"error": null}', '{"error": null}'),
        ("two\n  lines", "two lines"),
        ("", "Bad Request"),
        (b"\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2),
        ('{"error": ' + "[" * 600 + "]" * 600 + "}", ('{"error": ' + "[" * 600)[:500]),
        ("x" * 100_000, "x" * 500),
        (f'{{"error": {{"message": "Incorrect API key provided: {KEY}"}}}}', "Incorrect API key provided: ***"),
    ],
)
async def test_the_servers_reason_is_one_line_without_the_key(body: str | bytes, message: str) -> None:
    error = await error_of(replying(body, 400))
    assert isinstance(error, RejectedError)
    assert error.code == "http_400"
    assert str(error) == message


async def test_a_key_that_the_clipping_would_cut_is_masked_before_it() -> None:
    error = await error_of(replying("x" * 490 + KEY, 400))
    assert KEY[:8] not in str(error)


async def test_a_reason_phrase_with_bytes_that_are_no_utf8_can_be_kept() -> None:
    error = await raw(b"HTTP/1.1 400 \xff\xfebad\r\nContent-Length: 0\r\n\r\n")
    assert isinstance(error, ChatError)
    str(error).encode()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"220 smtp ready\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
)
async def test_a_connection_that_breaks_costs_an_attempt_since_the_server_may_have_worked(reply: bytes) -> None:
    error = await raw(reply)
    assert isinstance(error, TransientError)
    assert not isinstance(error, UnreachableError)
    assert error.code == "connection"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_the_endpoints_fault_and_never_followed(status: int) -> None:
    error = await error_of(replying("", status, Location="http://127.0.0.1:9/elsewhere"))
    assert isinstance(error, EndpointError)
    assert "redirects to http://127.0.0.1:9/elsewhere" in str(error)


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_a_client_error_is_final(status: int) -> None:
    assert isinstance(await error_of(replying("", status)), RejectedError)


@pytest.mark.parametrize("status", [408, 409, 425, 500, 502, 504])
async def test_an_error_that_may_pass_is_not(status: int) -> None:
    error = await error_of(replying("", status))
    assert isinstance(error, TransientError)
    assert error.code == f"http_{status}"


def after(seconds: float) -> str:
    return email.utils.format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("2", 2.0, 2.0),
        ("0.2", 0.2, 0.2),
        ("-3", 0.0, 0.0),
        ("86400", 600.0, 600.0),
        ("date:5", 3.9, 5.0),
        ("date:-5", 0.0, 0.0),
    ],
)
async def test_the_wait_a_server_asks_for_is_read(status: int, value: str, least: float, most: float) -> None:
    if value.startswith("date:"):  # a date has whole seconds, and so has the server's clock in its header
        value = after(float(value.removeprefix("date:")))
    error = await error_of(replying("", status, Retry_After=value))
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s is not None
    assert least <= error.retry_after_s <= most


async def test_a_date_is_read_by_the_servers_own_clock() -> None:
    skewed = {"Date": after(3600), "Retry_After": after(3610)}
    error = await error_of(replying("", 503, **skewed))
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == pytest.approx(10, abs=1.1)


@pytest.mark.parametrize("value", ["", "soon", "inf", "nan", "1e999", "Mon, 31 Feb 99999 00:00:00 GMT", "99 99 99"])
async def test_a_wait_that_makes_no_sense_is_ignored(value: str) -> None:
    error = await error_of(replying("", 503, Retry_After=value))
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s is None


async def test_a_refused_connection_costs_no_attempt() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    async with OneByOne(f"http://127.0.0.1:{port}/v1") as client:
        with pytest.raises(UnreachableError, match="cannot connect: Conn"):
            await client.complete(json.dumps(BODY).encode())


async def test_a_host_without_an_address_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match=r"."):
        await addresses(ChatEndpoint("http://no-such-host.invalid/v1"))


async def test_a_connection_that_is_never_accepted_costs_no_attempt() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        async with OneByOne(f"http://127.0.0.1:{address[1]}/v1", timeouts=Timeouts(connect=0.2)) as client:
            with pytest.raises(UnreachableError, match=r"no connection within 0.2 s"):
                await client.complete(json.dumps(BODY).encode())
        for filler in fillers:
            filler.close()


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
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
    arguments = [*command, "-subj", "/CN=localhost", "-keyout", pair[0], "-out", pair[1]]
    if subprocess.run(arguments, capture_output=True, check=False).returncode:
        pytest.skip("no openssl here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair[1], pair[0])
    return context


async def test_a_certificate_nobody_vouches_for_ends_the_run(self_signed: ssl.SSLContext) -> None:
    error = await error_of(replying(GOOD), tls=self_signed)
    assert isinstance(error, EndpointError)
    assert "TLS fails" in str(error)


async def test_an_idle_connection_that_was_closed_meanwhile_is_not_used_again() -> None:
    body = {**BODY, "messages": [{"role": "user", "content": "[[fault:idle_close]] a"}]}
    async with OpenAIServer() as server, OneByOne(server.url) as client:
        for _ in range(3):
            await client.complete(json.dumps(body).encode())
            await asyncio.sleep(0.05)
        assert len(server.requests) == 3


async def test_a_connection_that_dies_as_it_is_used_again_is_told_from_one_that_breaks() -> None:
    body = {**BODY, "messages": [{"role": "user", "content": "[[fault:reuse_resetx1]] a"}]}
    async with OpenAIServer() as server, OneByOne(server.url) as client:
        await client.complete(json.dumps(body).encode())
        with pytest.raises(ClosedIdleError) as caught:
            await client.complete(json.dumps(body).encode())
        assert caught.value.code == "connection"


def test_connections_are_left_before_the_server_closes_them() -> None:
    assert KEEPALIVE_S < 5
