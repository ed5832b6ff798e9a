"""A stand-in for vLLM on a real loopback socket, with scripted faults; see `tests.servers.faults` for their names.

In a test's own event loop: `async with OpenAIServer() as server:`; from a sync test:
`with OpenAIServer().in_thread() as server:`; as a process: `python -m tests.servers.openai_server --port 0`, whose
first line is its URL. Like vLLM it queues without bound and never says 429 by itself.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import web
from multidict import CIMultiDictProxy

from tests.servers.answers import (
    Draft,
    count_prompt_tokens,
    digest,
    last_user_text,
    spoil,
    write_answer,
)
from tests.servers.faults import Fault, fault_of_turn, faults_in, parse_fault
from tests.servers.replies import (
    PAGE,
    delta_chunk,
    details,
    error_reply,
    pieces,
    refusal_of,
    sse_event,
    status_fault,
    thinking_wanted,
)

_FLUSH_S = 0.02  # time for written bytes to leave before the connection is cut


@dataclass(kw_only=True)
class SeenRequest:
    """One chat request as the server saw it.

    Attributes:
        index: Place in the order of arrival, from 0.
        turn: Which request with exactly this text it was, from 1.
        connection: Number of the connection it came over, from 0: two requests with one number shared a connection.
        status: The HTTP status sent, or None if none was (reset, hang, the client went away, still under way).
        fault: Kind of the fault that was played, or None.
    """

    index: int
    turn: int
    connection: int
    text: str
    body: dict[str, Any]
    headers: CIMultiDictProxy[str]
    received_at: float
    finished_at: float | None = None
    status: int | None = None
    fault: str | None = None

    @property
    def digest(self) -> str:
        """The mark that the answer to this request carries."""
        return digest(self.text)


@dataclass(kw_only=True)
class OpenAIServer:
    """The stand-in; every attribute may also be changed while it runs.

    Attributes:
        port: 0 lets the system choose, once: a stopped server starts again at the same address.
        slots: How many requests are worked on at once (vLLM's max-num-seqs); the others queue in order. None: all.
        max_queued: Answer 503 when so many wait already (vLLM's max-num-queued-reqs). None: never.
        token_delay_s: Seconds for one output token, or a function of how many requests run.
        latency_s: Seconds before the first token.
        output_tokens: Least and most tokens of an answer; where between is drawn from the prompt and `seed`.
        reasoning: Field that carries the thinking, or None for a model that does not think.
        keepalive_s: Idle connections are closed after so long; vLLM's own value.
        faults: Asked for each request before its text is; returns a fault (`"503"`, `"reset"`) or None.
        healthy: False makes /health answer 503, as when vLLM's engine died.
    """

    models: tuple[str, ...] = ("qwen3-30b-fp8",)
    port: int = 0
    api_key: str | None = None
    slots: int | None = None
    max_queued: int | None = None
    token_delay_s: float | Callable[[int], float] = 0.0
    latency_s: float = 0.0
    output_tokens: tuple[int, int] = (8, 48)
    max_model_len: int = 131_072
    reasoning: Literal["reasoning", "reasoning_content"] | None = None
    seed: int = 0
    keepalive_s: float = 5.0
    faults: Callable[[SeenRequest], Fault | str | None] | None = None
    healthy: bool = True

    requests: list[SeenRequest] = field(default_factory=list, init=False)
    paths: list[str] = field(default_factory=list, init=False)
    script_errors: list[Exception] = field(default_factory=list, init=False)
    in_flight: int = field(default=0, init=False)
    peak_in_flight: int = field(default=0, init=False)
    running: int = field(default=0, init=False)
    waiting: int = field(default=0, init=False)
    connections: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self._gate: asyncio.Semaphore | None = None
        self._transports: dict[asyncio.Transport | None, int] = {}
        self._doomed: set[asyncio.Transport] = set()

    # ------------------------------------------------------------------ life

    @property
    def url(self) -> str:
        """The base URL, with /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        """Listen; in-flight counts begin anew, the record of requests goes on."""
        self.in_flight = self.running = self.waiting = 0
        self._gate = asyncio.Semaphore(self.slots) if self.slots else None
        app = web.Application(middlewares=[self._guard], client_max_size=64 * 2**20)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ping", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/_requests", self._requests)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, keepalive_timeout=self.keepalive_s, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=4096, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """End as if killed: open connections are reset, waiting requests get nothing. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        for transport in self._transports:
            if transport is not None and not transport.is_closing():
                _reset(transport)
        self._transports.clear()
        self._doomed.clear()
        await asyncio.sleep(0)
        await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.stop()
        if kind is None:
            self.raise_script_errors()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[Self]:
        """Run in a thread with an event loop of its own, for tests that have none."""
        started, failure = threading.Event(), []
        loop = asyncio.new_event_loop()
        done = asyncio.Event()

        async def live() -> None:
            try:
                await self.start()
            except OSError as error:
                failure.append(error)
                return
            finally:
                started.set()
            await done.wait()
            await self.stop()
            await asyncio.sleep(0.01)  # a connection that was accepted just then is nobody's yet
            for transport in list(getattr(loop, "_transports", {}).values()):
                transport.abort()
            await asyncio.sleep(0.01)

        def work() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(live())

        thread = threading.Thread(target=work, name="openai-server", daemon=True)
        thread.start()
        started.wait()
        if failure:
            thread.join()
            raise failure[0]
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(done.set)
            thread.join()
        self.raise_script_errors()

    def raise_script_errors(self) -> None:
        """Raise what went wrong in the script of faults or in the stand-in itself, if anything did."""
        if self.script_errors:
            raise ExceptionGroup("the test's own server was misused", self.script_errors)

    # ------------------------------------------------------------ what it saw

    def seen(self, text: str) -> int:
        """How many requests came whose last user message is exactly `text`."""
        return self._seen[text]

    def _record(self, request: web.Request, body: Any) -> SeenRequest:
        messages = body.get("messages") if isinstance(body, dict) else None
        text = last_user_text(messages) if isinstance(messages, list) else ""
        self._seen[text] += 1
        record = SeenRequest(
            index=len(self.requests),
            turn=self._seen[text],
            connection=self._transports.get(_transport(request), -1),
            text=text,
            body=body if isinstance(body, dict) else {},
            headers=request.headers,
            received_at=time.monotonic(),
        )
        self.requests.append(record)
        return record

    # --------------------------------------------------------------- handlers

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        self.paths.append(f"{request.method} {request.path}")
        transport = _transport(request)
        if transport not in self._transports:
            self._transports[transport] = self.connections
            self.connections += 1
        if request.path.startswith("/v1") and not self._key_fits(request):
            return web.json_response({"error": "Unauthorized"}, status=401)
        try:
            answer: web.StreamResponse = await handler(request)
        except web.HTTPException:
            raise
        except ConnectionError:  # the client went away while we wrote
            raise
        except Exception as error:  # noqa: BLE001 - shown when the server stops
            self.script_errors.append(error)
            return error_reply(500, f"the stand-in failed: {error!r}")
        return answer

    def _key_fits(self, request: web.Request) -> bool:
        return self.api_key is None or request.headers.get("Authorization") == f"Bearer {self.api_key}"

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"})

    async def _metrics(self, _request: web.Request) -> web.Response:
        label = f'{{engine="0",model_name="{self.models[0]}"}}'
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{label} {float(self.running)}",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{label} {float(self.waiting)}",
        ]
        return web.Response(text="\n".join(lines) + "\n")

    async def _models(self, _request: web.Request) -> web.Response:
        card = {"object": "model", "created": int(time.time()), "owned_by": "vllm", "max_model_len": self.max_model_len}
        return web.json_response({"object": "list", "data": [{"id": name, **card} for name in self.models]})

    async def _requests(self, _request: web.Request) -> web.Response:
        rows = [{"text": r.text, "status": r.status, "fault": r.fault, "turn": r.turn} for r in self.requests]
        return web.json_response(rows)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            body = _json_or_none(await request.read())
            record = self._record(request, body)
            try:
                answer = await self._serve(request, record, body)
                if _transport(request) is not None:
                    record.status = answer.status
                return answer
            finally:
                record.finished_at = time.monotonic()
        finally:
            self.in_flight -= 1

    async def _serve(self, request: web.Request, record: SeenRequest, body: Any) -> web.StreamResponse:
        if _transport(request) in self._doomed:
            record.fault = "reuse_reset"
            return await _cut_off(request)
        fault = self._fault_for(record)
        if fault is not None:
            record.fault = fault.kind
            await asyncio.sleep(fault.after_s)
            if (early := await self._play_early(request, fault)) is not None:
                return early
        refusal = refusal_of(body, self.models, self.max_model_len)
        if refusal is not None:
            return refusal
        if self.max_queued is not None and self.waiting >= self.max_queued:
            return error_reply(503, "The server is overloaded: the request queue is full.")
        async with self._slot():
            return await self._generate(request, record, fault)

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            if self._gate is not None:
                await self._gate.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            if self._gate is not None:
                self._gate.release()

    # ----------------------------------------------------------------- faults

    def _fault_for(self, record: SeenRequest) -> Fault | None:
        asked = self.faults(record) if self.faults is not None else None
        if isinstance(asked, str):
            return parse_fault(asked)
        return asked or fault_of_turn(faults_in(record.text), record.turn)

    async def _play_early(self, request: web.Request, fault: Fault) -> web.StreamResponse | None:
        """Faults that need no generation; None for the others."""
        if fault.status is not None:
            return status_fault(fault)
        if fault.kind == "hang":
            await asyncio.Event().wait()
        if fault.kind == "reset":
            return await _cut_off(request)
        plain: dict[str, tuple[bytes, str]] = {
            "html": (PAGE.format("Welcome").encode(), "text/html"),
            "badjson": (b'{"id": "chatcmpl-1", "choices": [{"index": 0, "mess', "application/json"),
            "nonobject": (b"[1, 2, 3]", "application/json"),
            "badutf8": (b'{"choices": "\xff\xfe\x80"}', "application/json"),
        }
        if fault.kind in plain:
            sent, kind = plain[fault.kind]
            return web.Response(body=sent, content_type=kind)
        return None

    # ----------------------------------------------------------------- answers

    async def _generate(self, request: web.Request, record: SeenRequest, fault: Fault | None) -> web.StreamResponse:
        kind = fault.kind if fault is not None else ""
        body = record.body
        drafts = [spoil(self._draft(record, choice), kind, record.text) for choice in range(body.get("n") or 1)]
        if kind == "nochoices":
            drafts = []
        per_token = self.token_delay_s(self.running) if callable(self.token_delay_s) else self.token_delay_s
        await asyncio.sleep(self.latency_s)
        if body.get("stream"):
            return await self._stream(request, record, drafts, kind, per_token)
        await asyncio.sleep(per_token * max((draft.output_tokens for draft in drafts), default=1))
        if kind == "stream_error":
            return error_reply(500, "EngineCore encountered an issue.")
        answer = self._head(request, record, "chat.completion")
        answer["choices"] = [self._choice(record, i, draft) for i, draft in enumerate(drafts)]
        answer["usage"] = None if kind == "nousage" else self._usage(record, drafts)
        sent = json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass")
        return await self._send(request, sent, kind)

    def _draft(self, record: SeenRequest, choice: int) -> Draft:
        thinks = self.reasoning is not None and thinking_wanted(record.body)
        return write_answer(
            record.body, record.text, choice=choice, seed=self.seed, length=self.output_tokens, thinks=thinks
        )

    def _head(self, request: web.Request, record: SeenRequest, kind: str) -> dict[str, Any]:
        own = f"{self.seed:08x}{record.index:08x}"
        return {
            "id": f"chatcmpl-{request.headers.get('X-Request-Id', own)}",
            "object": kind,
            "created": int(time.time()),
            "model": record.body.get("model") or self.models[0],
        }

    def _choice(self, record: SeenRequest, index: int, draft: Draft) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": draft.content, "refusal": draft.refusal}
        message["tool_calls"] = list(draft.tool_calls)
        if record.body.get("include_reasoning", True):
            message[self.reasoning or "reasoning"] = draft.reasoning
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": draft.finish,
            "stop_reason": None,
        }

    def _usage(self, record: SeenRequest, drafts: list[Draft]) -> dict[str, Any]:
        prompt, output = count_prompt_tokens(record.body["messages"]), sum(draft.output_tokens for draft in drafts)
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        usage["prompt_tokens_details"] = None
        thoughts = sum(draft.reasoning_tokens for draft in drafts)
        if thoughts:
            usage["completion_tokens_details"] = {"reasoning_tokens": thoughts}
        return usage

    async def _send(self, request: web.Request, sent: bytes, kind: str) -> web.StreamResponse:
        """The finished JSON, whole or cut as `kind` says."""
        if kind not in {"reset_body", "truncated", "idle_close", "reuse_reset"}:
            return web.Response(body=sent, content_type="application/json")
        answer = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(sent))})
        whole = kind in {"idle_close", "reuse_reset"}
        await answer.prepare(request)
        await answer.write(sent if whole else sent[: len(sent) // 2])
        transport = _transport(request)
        if kind == "reuse_reset":
            self._doomed.add(transport)
            return answer
        await asyncio.sleep(0 if whole else _FLUSH_S)
        if kind == "reset_body":
            _reset(transport)
        else:
            transport.close()
        return answer

    async def _stream(
        self, request: web.Request, record: SeenRequest, drafts: list[Draft], kind: str, per_token: float
    ) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await answer.prepare(request)
        record.status = 200
        head = self._head(request, record, "chat.completion.chunk")
        events = list(self._events(record, drafts, kind))
        for number, event in enumerate(events):
            if kind in {"reset_body", "truncated"} and number >= len(events) // 2:
                await asyncio.sleep(_FLUSH_S)
                _reset(_transport(request)) if kind == "reset_body" else _transport(request).close()
                return answer
            if kind == "stream_error" and number >= len(events) // 2:
                await answer.write(sse_event({"error": details(500, "EngineCore encountered an issue.")}))
                break
            await answer.write(sse_event({**head, **event}))
            await asyncio.sleep(per_token)
        await answer.write(b"data: [DONE]\n\n")
        return answer

    def _events(self, record: SeenRequest, drafts: list[Draft], kind: str) -> Iterator[dict[str, Any]]:
        for index, draft in enumerate(drafts):
            yield delta_chunk(index, {"role": "assistant", "content": ""})
            if record.body.get("include_reasoning", True):
                for piece in pieces(draft.reasoning):
                    yield delta_chunk(index, {self.reasoning or "reasoning": piece})
            for piece in pieces(draft.content):
                yield delta_chunk(index, {"content": piece})
            if draft.refusal:
                yield delta_chunk(index, {"refusal": draft.refusal})
            if draft.tool_calls:
                yield delta_chunk(index, {"tool_calls": [{"index": i, **c} for i, c in enumerate(draft.tool_calls)]})
            yield delta_chunk(index, {}, draft.finish)
        if (record.body.get("stream_options") or {}).get("include_usage") and kind != "nousage":
            yield {"choices": [], "usage": self._usage(record, drafts)}


# --------------------------------------------------------------------- pieces


def _json_or_none(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _transport(request: web.Request) -> Any:
    return request.transport


def _reset(transport: asyncio.Transport) -> None:
    """End a connection with RST instead of FIN, on any event loop."""
    raw = transport.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        with socket.socket(fileno=os.dup(raw.fileno())) as twin:
            twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _cut_off(request: web.Request) -> web.StreamResponse:
    """RST without an answer; what is returned can no longer be sent."""
    _reset(_transport(request))
    await asyncio.sleep(60)  # cancelled as soon as the loss of the connection is noticed
    return web.Response()


# -------------------------------------------------------------------- process


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.servers.openai_server", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", action="append", help="may be repeated")
    parser.add_argument("--api-key")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--max-queued", type=int)
    parser.add_argument("--token-delay", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--max-model-len", type=int, default=131_072)
    parser.add_argument("--reasoning", choices=["reasoning", "reasoning_content"])
    parser.add_argument("--fault", help="one fault for every request, such as 503x20 or reset")
    return parser.parse_args()


async def _serve_until_told(server: OpenAIServer) -> None:
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await server.start()
    print(server.url, flush=True)
    await told.wait()
    await server.stop()


def main() -> None:
    """Serve until SIGINT or SIGTERM; `GET /_requests` tells another process what came."""
    args = _parse()
    server = OpenAIServer(
        models=tuple(args.model or OpenAIServer.models),
        port=args.port,
        api_key=args.api_key,
        slots=args.slots,
        max_queued=args.max_queued,
        token_delay_s=args.token_delay,
        latency_s=args.latency,
        max_model_len=args.max_model_len,
        reasoning=args.reasoning,
    )
    if args.fault:
        fault = parse_fault(args.fault)
        server.faults = lambda request: fault if request.index < fault.count else None
    asyncio.run(_serve_until_told(server))


if __name__ == "__main__":
    main()
