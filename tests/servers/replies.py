"""What the stand-in sends besides answers: errors in vLLM's words, refusals of bad requests, the events of a stream."""

import json
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from aiohttp import web

from tests.servers.answers import count_prompt_tokens, tokens_of
from tests.servers.faults import Fault

PAGE = "<!DOCTYPE html><html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>"

_TYPES = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError", 503: "ServiceUnavailableError"}


def details(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": _TYPES.get(status, "Error"), "param": param, "code": status}


def error_reply(
    status: int, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    return web.json_response({"error": details(status, message, param)}, status=status, headers=headers)


def status_fault(fault: Fault) -> web.Response:
    status = fault.status or 500
    headers = {}
    if fault.retry_after is not None:
        headers["Retry-After"] = fault.retry_after
        if fault.retry_after.startswith("date:"):
            moment = datetime.now(UTC) + timedelta(seconds=float(fault.retry_after.removeprefix("date:")))
            headers["Retry-After"] = format_datetime(moment, usegmt=True)
    if status in {502, 504}:  # these come from a proxy in front of the server, in its own words
        return web.Response(status=status, text=PAGE.format(status), content_type="text/html", headers=headers)
    if status == 401:
        return web.json_response({"error": "Unauthorized"}, status=401, headers=headers)
    return error_reply(status, f"scripted fault {status}", headers=headers)


def refusal_of(body: Any, models: tuple[str, ...], max_model_len: int) -> web.Response | None:
    """The refusal that vLLM would give, or None for a request it would work on."""
    if not isinstance(body, dict):
        return error_reply(400, "[{'type': 'json_invalid', 'loc': ('body', 0), 'msg': 'JSON decode error'}]")
    if body.get("model") and body["model"] not in models:
        return error_reply(404, f"The model `{body['model']}` does not exist.", param="model")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return error_reply(400, "messages: Field required, a list with at least one message", param="messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return error_reply(400, "messages: each one needs a role and content", param="messages")
    return _bad_value(body) or _too_long(body, max_model_len)


def _bad_value(body: dict[str, Any]) -> web.Response | None:
    whole = {"n": (1, 128), "max_tokens": (1, math.inf), "max_completion_tokens": (1, math.inf)}
    bounds = {"temperature": (0, math.inf), "top_p": (0, 1), **whole}
    for name, (low, high) in bounds.items():
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int if name in whole else int | float):
            return error_reply(400, f"{name}: Input should be a valid number", param=name)
        if not low <= value <= high:
            return error_reply(400, f"{name} must be in [{low}, {high}], got {value}.", param=name)
    return None


def _too_long(body: dict[str, Any], longest: int) -> web.Response | None:
    prompt = count_prompt_tokens(body["messages"])
    wanted = body.get("max_completion_tokens") or body.get("max_tokens") or 1
    if prompt >= longest:
        message = f"However, your request has {prompt} input tokens. Please reduce the length of the input messages."
    elif prompt + wanted > longest:
        message = f"However, you requested {wanted} output tokens and your prompt contains {prompt} input tokens."
    else:
        return None
    return error_reply(400, f"This model's maximum context length is {longest} tokens. {message}", param="input_tokens")


def thinking_wanted(body: dict[str, Any]) -> bool:
    return bool((body.get("chat_template_kwargs") or {}).get("enable_thinking", True))


def delta_chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]}


def pieces(text: str | None) -> list[str]:
    """The tokens of a stream; a huge text comes in few large ones."""
    if not text:
        return []
    return tokens_of(text) if len(text) < 100_000 else [text[i : i + 50_000] for i in range(0, len(text), 50_000)]


def sse_event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n\n"
