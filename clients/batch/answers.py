"""What a chat completion means for its row: the answer's parts and the row's outcome. Pure functions."""

from collections.abc import Mapping
from typing import Any

import orjson

from clients.batch.policies import BLANKS
from clients.batch.schemas import schema_problem, wanted_format
from clients.errors import TransientError
from clients.records import ChatRequest, Outcome

#: What vLLM calls an answer that it broke off for reasons of its own.
_NOT_FINISHED = ("abort", "error")


def read_answer(request: ChatRequest, payload: Any, raw: bytes = b"", *, keep_raw: bool = False) -> dict[str, Any]:
    """The `ChatResult` fields that a chat completion's JSON yields.

    Reasoning is read from `reasoning` (vLLM today) and from `reasoning_content` (older vLLM, llama.cpp).

    Args:
        request: What was asked.
        payload: The JSON, decoded.
        raw: The JSON as it came; kept when there is more than one choice or there are log probabilities.
        keep_raw: Keep it in any case.

    Raises:
        TransientError: the JSON is not a chat completion with a choice in it; another attempt may bring one.
    """
    try:
        choice = payload["choices"][0]
        message = choice["message"]
        content, reasoning = _text(message.get("content")), _reasoning(message)
        tools, refusal = message.get("tool_calls"), message.get("refusal")
        tool_calls = orjson.dumps(tools).decode() if tools else None
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:  # orjson's own error is a TypeError
        raise TransientError("no_choices", "the answer holds no choice with a message") from error
    if finish in _NOT_FINISHED:
        raise TransientError("aborted", f"the server gave the answer up: finish_reason {finish}")
    outcome, code, problem = _judge(request, content, bool(tools), finish, refusal)
    if outcome is not Outcome.OK and choice.get("stop_reason") in BLANKS:
        outcome, code, problem = Outcome.SCHEMA_INVALID, "blank_loop", "the model fell into writing only blanks"
    model, (prompt_tokens, completion_tokens, cached_tokens) = payload.get("model"), _usage(payload.get("usage"))
    fields: dict[str, Any] = {
        "content": content,
        "reasoning": reasoning,
        "tool_calls": tool_calls,
        "finish_reason": finish if isinstance(finish, str) else None,
        "model": model if isinstance(model, str) else None,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cached_tokens": cached_tokens,
        "outcome": outcome,
        "error_code": code,
        "error_message": problem,
    }
    if keep_raw or len(payload["choices"]) > 1 or choice.get("logprobs"):
        fields["raw_response"] = raw.decode("utf-8", "replace")
    return fields


def _judge(
    request: ChatRequest, content: str | None, has_tools: bool, finish: Any, refusal: Any
) -> tuple[Outcome, str | None, str | None]:
    answered = bool(content and content.strip())
    if finish == "length":
        if answered or has_tools:
            return Outcome.TRUNCATED, "length", "the answer reached the token limit; raise max_tokens"
        return Outcome.TRUNCATED_IN_REASONING, "length", "the token limit ended the reasoning; raise max_tokens"
    if finish == "content_filter" or refusal:
        return Outcome.FILTERED, "filtered", str(refusal or "the server's content filter ended the answer")[:500]
    if not answered and not has_tools:
        return Outcome.EMPTY, "empty", "the answer has neither text nor tool calls"
    problem = None if has_tools else _schema_problem(request, content or "")
    return (Outcome.SCHEMA_INVALID, "schema", problem) if problem else (Outcome.OK, None, None)


def _schema_problem(request: ChatRequest, content: str) -> str | None:
    if b'"response_format"' not in request.payload and b'"structured_outputs"' not in request.payload:
        return None  # decoding every request again would cost more than its answer
    return schema_problem(wanted_format(request.body), content)


def _text(content: Any) -> str | None:
    """Message content as text; a list of parts is joined, null stays None (it is not the same as "")."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if content is None or isinstance(content, str) else orjson.dumps(content).decode()


def _reasoning(message: Mapping[str, Any]) -> str | None:
    found = message.get("reasoning") or message.get("reasoning_content")
    return found if isinstance(found, str) else None


def _usage(usage: Any) -> tuple[int | None, int | None, int | None]:
    """Tokens of the prompt, of the completion, and of the prompt those that were cached."""
    if not isinstance(usage, dict):
        return None, None, None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(cached)


def _count(value: Any) -> int | None:
    """What the column can hold; a bool is an int to isinstance."""
    return value if type(value) is int and 0 <= value < 1 << 63 else None
