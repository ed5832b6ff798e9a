"""The stand-in for vLLM does what its directives say; a test double that lies would make every other test worthless."""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.servers.answers import HUGE_BYTES, digest
from tests.servers.faults import Fault, ScriptError, fault_of_turn, faults_in, first, parse_fault, share
from tests.servers.openai_server import OpenAIServer

ROOT = Path(__file__).resolve().parents[2]


def body_of(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "qwen3-30b-fp8", "messages": [{"role": "user", "content": text}], **more}


async def post(server: OpenAIServer, text: str, headers: dict[str, str] | None = None, **more: Any) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/chat/completions", json=body_of(text, **more), headers=headers) as answer,
    ):
        return answer.status, await answer.json(content_type=None)


async def message_of(server: OpenAIServer, text: str, **more: Any) -> tuple[dict[str, Any], str]:
    status, answer = await post(server, text, **more)
    assert status == 200, answer
    return answer["choices"][0]["message"], answer["choices"][0]["finish_reason"]


async def test_an_answer_names_its_prompt_and_is_the_same_every_time() -> None:
    async with OpenAIServer() as server:
        status, answer = await post(server, "안녕 1", headers={"X-Request-Id": "row-1"})
        again, _ = await message_of(server, "안녕 1")
    assert status == 200
    assert answer["id"] == "chatcmpl-row-1"
    message, usage = answer["choices"][0]["message"], answer["usage"]
    assert digest("안녕 1") in message["content"]
    assert "안녕 1" in message["content"]
    assert message["content"] == again["content"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert server.seen("안녕 1") == 2
    assert [(r.index, r.turn, r.status, r.fault) for r in server.requests] == [(0, 1, 200, None), (1, 2, 200, None)]
    assert server.requests[0].headers["x-request-id"] == "row-1"


async def test_max_tokens_cuts_the_answer_and_says_so() -> None:
    async with OpenAIServer() as server:
        status, answer = await post(server, "long", max_tokens=3)
    assert status == 200
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3
    assert digest("long") in answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
async def test_a_thinking_model_puts_its_thoughts_apart_and_may_run_out_of_tokens_there(name: Any) -> None:
    async with OpenAIServer(reasoning=name) as server:
        message, _ = await message_of(server, "why")
        cut, finish = await message_of(server, "why", max_tokens=2)
        plain, _ = await message_of(server, "why", chat_template_kwargs={"enable_thinking": False})
        hidden, _ = await message_of(server, "why", include_reasoning=False)
    assert digest("why") in message[name]
    assert cut["content"] is None
    assert cut[name]
    assert finish == "length"
    assert plain[name] is None
    assert name not in hidden


async def test_a_json_schema_is_obeyed_or_broken_on_purpose() -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"$ref": "#/$defs/city"},
            "score": {"type": "integer", "minimum": 3},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
        },
        "required": ["city", "score", "tags"],
        "$defs": {"city": {"type": "string"}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with OpenAIServer() as server:
        good, _ = await message_of(server, "row", response_format=wanted)
        broken, _ = await message_of(server, "[[fault:schema_broken]]", response_format=wanted)
        wrong, _ = await message_of(server, "[[fault:schema_wrong]]", response_format=wanted)
    assert json.loads(good["content"]) == {"city": digest("row"), "score": 3, "tags": ["a"]}
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken["content"])
    assert "city" not in json.loads(wrong["content"])


async def test_requests_that_vllm_would_refuse_are_refused_in_its_words() -> None:
    async with OpenAIServer(max_model_len=20) as server:
        assert (await post(server, "x", model="other"))[0] == 404
        status, answer = await post(server, "word " * 30)
        assert (await post(server, "x", max_tokens=0))[0] == 400
        assert (await post(server, "x", messages=[]))[0] == 400
        server.api_key = "sesame"
        assert await post(server, "x") == (401, {"error": "Unauthorized"})
        assert (await post(server, "x", headers={"Authorization": "Bearer sesame"}))[0] == 200
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert "maximum context length is 20 tokens" in answer["error"]["message"]


async def test_a_stream_joins_to_the_answer_that_is_not_streamed() -> None:
    pieces: dict[str, str] = {"content": "", "reasoning": ""}
    async with OpenAIServer(reasoning="reasoning") as server, aiohttp.ClientSession() as session:
        whole, _ = await message_of(server, "flow")
        request = body_of("flow", stream=True, stream_options={"include_usage": True})
        async with session.post(f"{server.url}/chat/completions", json=request) as answer:
            lines = [line.decode().strip() async for line in answer.content if line.strip()]
    assert lines.pop() == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert events.pop()["usage"]["completion_tokens"] > 1
    for event in events:
        for name in pieces:
            pieces[name] += event["choices"][0]["delta"].get(name, "")
    assert pieces == {name: whole[name] for name in pieces}
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


async def test_n_choices_differ_and_each_names_the_prompt() -> None:
    async with OpenAIServer() as server:
        _, answer = await post(server, "many", n=3)
    contents = {choice["message"]["content"] for choice in answer["choices"]}
    assert len(contents) == 3
    assert all(digest("many") in content for content in contents)


async def test_a_fault_is_played_as_often_as_asked_and_then_the_request_works() -> None:
    text = "[[fault:503x1]] and then [[fault:429x1,retry-after=0.2]]"
    async with OpenAIServer() as server, aiohttp.ClientSession() as session:
        seen = []
        for _ in range(3):
            async with session.post(f"{server.url}/chat/completions", json=body_of(text)) as answer:
                seen.append((answer.status, answer.headers.get("Retry-After")))
        other, _ = await post(server, "nobody else is hit")
    assert seen == [(503, None), (429, "0.2"), (200, None)]
    assert other == 200
    assert [r.fault for r in server.requests] == ["503", "429", None, None]


@pytest.mark.parametrize("status", [400, 401, 404, 408, 429, 500, 502, 503, 504])
async def test_every_status_can_be_asked_for(status: int) -> None:
    async with (
        OpenAIServer() as server,
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/chat/completions", json=body_of(f"[[fault:{status}]]")) as answer,
    ):
        assert answer.status == status
        assert server.requests[0].fault == str(status)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("reset", (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)),
        ("reset_body", (aiohttp.ClientPayloadError, aiohttp.ClientOSError)),
        ("truncated", aiohttp.ClientPayloadError),
        ("badjson", json.JSONDecodeError),
        ("html", json.JSONDecodeError),
        ("badutf8", UnicodeDecodeError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_faults_on_the_wire_reach_the_client_as_what_they_are(kind: str, error: Any, stream: bool) -> None:
    async with OpenAIServer() as server:
        with pytest.raises(error):
            await post(server, f"[[fault:{kind}]]", stream=stream)
        assert server.requests[0].fault == kind
        assert (await post(server, "still alive"))[0] == 200


@pytest.mark.parametrize(
    ("kind", "content", "finish"),
    [
        ("empty", "", "stop"),
        ("null", None, "stop"),
        ("length_in_reasoning", None, "length"),
        ("refusal", None, "stop"),
        ("toolcall", None, "tool_calls"),
    ],
)
async def test_faults_in_the_answer_keep_the_form_of_an_answer(kind: str, content: str | None, finish: str) -> None:
    async with OpenAIServer() as server:
        message, reason = await message_of(server, f"[[fault:{kind}]]")
    assert (message["content"], reason) == (content, finish)
    assert bool(message["refusal"]) == (kind == "refusal")
    assert bool(message["tool_calls"]) == (kind == "toolcall")


async def test_answers_may_lack_choices_or_usage_or_be_huge() -> None:
    async with OpenAIServer() as server:
        assert (await post(server, "[[fault:nochoices]]"))[1]["choices"] == []
        assert (await post(server, "[[fault:nousage]]"))[1]["usage"] is None
        assert (await post(server, "[[fault:nonobject]]"))[1] == [1, 2, 3]
        huge, _ = await message_of(server, "[[fault:huge]]")
    assert len(huge["content"]) == HUGE_BYTES


async def test_a_connection_can_be_closed_or_reset_after_a_good_answer() -> None:
    async with OpenAIServer() as server, aiohttp.ClientSession() as session:

        async def ask(text: str) -> int:
            async with session.post(f"{server.url}/chat/completions", json=body_of(text)) as answer:
                await answer.read()
                return answer.status

        assert [await ask("a"), await ask("b")] == [200, 200]
        assert await ask("[[fault:idle_close]]") == 200
        await asyncio.sleep(0.05)
        assert await ask("c") == 200
        assert [r.connection for r in server.requests] == [0, 0, 0, 1]
        assert await ask("[[fault:reuse_reset]]") == 200
        with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
            await ask("d")
    assert server.requests[-1].fault == "reuse_reset"
    assert server.requests[-1].status is None


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what we wait for is a count, not an event
            await asyncio.sleep(0.01)


async def test_slots_bound_the_work_but_not_the_queue_and_metrics_show_both() -> None:
    async with OpenAIServer(slots=2, latency_s=3600) as server, asyncio.TaskGroup() as group:
        tasks = [group.create_task(post(server, f"row {number}")) for number in range(6)]
        await until(lambda: server.in_flight == 6)
        async with aiohttp.ClientSession() as session, session.get(server.url.replace("/v1", "/metrics")) as answer:
            metrics = await answer.text()
        assert 'vllm:num_requests_running{engine="0",model_name="qwen3-30b-fp8"} 2.0' in metrics
        assert 'vllm:num_requests_waiting{engine="0",model_name="qwen3-30b-fp8"} 4.0' in metrics
        server.latency_s = 0
        holding = {request.text for request in server.requests[:2]}
        for number, task in enumerate(tasks):
            if f"row {number}" in holding:
                task.cancel()
    assert server.peak_in_flight == 6
    assert (server.in_flight, server.running, server.waiting) == (0, 0, 0)
    assert [r.status for r in server.requests] == [None, None, 200, 200, 200, 200]
    ends = [r.finished_at or 0 for r in server.requests[2:]]
    assert ends == sorted(ends)


async def test_a_bounded_queue_answers_503_without_retry_after() -> None:
    async with OpenAIServer(slots=1, max_queued=1, latency_s=3600) as server, asyncio.TaskGroup() as group:
        tasks = [group.create_task(post(server, f"row {number}")) for number in range(4)]
        await until(lambda: sum(task.done() for task in tasks) == 2)
        assert [task.result()[0] for task in tasks if task.done()] == [503, 503]
        assert (server.running, server.waiting) == (1, 1)
        for task in tasks:
            task.cancel()


async def test_a_client_that_goes_away_frees_its_slot() -> None:
    async with OpenAIServer(slots=1, latency_s=30) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await post(server, "impatient")
        await until(lambda: server.running == 0)
        server.latency_s = 0
        assert (await post(server, "next"))[0] == 200
    assert server.requests[0].status is None


async def test_tokens_take_their_time_and_may_slow_down_with_load() -> None:
    async with OpenAIServer(token_delay_s=lambda running: 0.01 * running, output_tokens=(10, 10)) as server:
        begun = time.monotonic()
        await post(server, "x")
        assert 0.09 < time.monotonic() - begun < 5


async def test_hanging_requests_do_not_hold_up_the_end_and_the_address_can_be_used_again() -> None:
    server = OpenAIServer(slots=1)
    await server.start()
    async with asyncio.TaskGroup() as group, aiohttp.ClientSession() as session:

        async def hang(text: str) -> None:
            with pytest.raises(aiohttp.ClientError):
                async with session.post(f"{server.url}/chat/completions", json=body_of(text)):
                    pass

        for number in range(20):
            group.create_task(hang(f"{number} [[fault:hang]]"))
        await until(lambda: server.in_flight == 20)
        address, begun = server.url, time.monotonic()
        await server.stop()
        assert time.monotonic() - begun < 1
        with pytest.raises(aiohttp.ClientConnectorError):
            await post(server, "nobody listens")
    async with server:
        assert server.url == address
        assert (await post(server, "back again"))[0] == 200
    assert len(server.requests) == 21


async def test_a_hook_decides_before_the_text_does() -> None:
    async with OpenAIServer(faults=first(2, "500")) as server:
        assert [(await post(server, "x"))[0] for _ in range(3)] == [500, 500, 200]
        server.faults = lambda request: Fault(kind="503") if request.text == "y" else None
        assert [(await post(server, text))[0] for text in "xy"] == [200, 503]
        server.faults = share(1.0, "429")
        assert (await post(server, "x"))[0] == 429


async def test_a_misspelt_fault_fails_the_test_that_asked_for_it() -> None:
    with pytest.raises(ExceptionGroup, match="misused") as caught:
        async with OpenAIServer() as server:
            assert (await post(server, "[[fault:hangs]]"))[0] == 500
    assert caught.group_contains(ScriptError, match="unknown fault 'hangs'")


def test_directives_are_read_in_order() -> None:
    faults = faults_in("a [[fault:503x2]] b [[fault:resetx1,after=0.5]] c [[fault:429x*,retry-after=date:2]]")
    assert [fault_of_turn(faults, turn) for turn in (1, 2, 3, 4, 99)] == [faults[i] for i in (0, 0, 1, 2, 2)]
    assert faults[1].after_s == 0.5
    assert faults[2].retry_after == "date:2"
    for wrong in ("503y2", "503,later=1", "", "x3", "200"):
        with pytest.raises(ScriptError):
            parse_fault(wrong)


def test_it_runs_in_a_thread_for_tests_without_an_event_loop() -> None:
    with OpenAIServer().in_thread() as server:
        with urllib.request.urlopen(f"{server.url}/models", timeout=5) as answer:  # noqa: S310 - our own address
            listed = json.load(answer)
        server.healthy = False
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            urllib.request.urlopen(server.url.replace("/v1", "/health"), timeout=5)  # noqa: S310
        caught.value.close()
        with pytest.raises(OSError, match="address already in use"), OpenAIServer(port=server.port).in_thread():
            pass
    assert [card["id"] for card in listed["data"]] == ["qwen3-30b-fp8"]
    assert server.paths == ["GET /v1/models", "GET /health"]


def test_it_runs_as_a_process_of_its_own() -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.servers.openai_server", "--fault", "503x1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()

            async def ask() -> list[int]:
                remote = OpenAIServer(port=int(url.split(":")[2].split("/")[0]))
                return [(await post(remote, "x"))[0] for _ in range(2)]

            assert asyncio.run(ask()) == [503, 200]
        finally:
            process.terminate()
        assert process.wait(timeout=5) == 0
