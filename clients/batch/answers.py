"""What a chat completion means for its row: the answer's parts and the row's outcome. Pure functions."""

from collections.abc import Mapping
from typing import Any

import orjson

from clients.errors import TransientError
from clients.records import ChatRequest, Outcome


def read_answer(request: ChatRequest, payload: Any) -> dict[str, Any]:
    """The `ChatResult` fields that a chat completion's JSON yields.

    Reasoning is read from `reasoning` (vLLM today) and from `reasoning_content` (older vLLM, llama.cpp).

    Raises:
        TransientError: the JSON is not a chat completion with a choice in it; another attempt may bring one.
    """
    try:
        choice = payload["choices"][0]
        message = choice["message"]
        content, reasoning = _text(message.get("content")), _reasoning(message)
        tools, refusal = message.get("tool_calls") or None, message.get("refusal")
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise TransientError("no_choices", "the answer holds no choice with a message") from error
    fields: dict[str, Any] = {
        "content": content,
        "reasoning": reasoning,
        "tool_calls": orjson.dumps(tools).decode() if tools else None,
        "finish_reason": finish if isinstance(finish, str) else None,
        "model": payload.get("model") if isinstance(payload.get("model"), str) else None,
        **_usage(payload.get("usage")),
    }
    outcome, code, message_text = _judge(request, content, bool(tools), finish, refusal)
    return {**fields, "outcome": outcome, "error_code": code, "error_message": message_text}


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
    problem = None if has_tools else _schema_problem(request.body.get("response_format"), content or "")
    return (Outcome.SCHEMA_INVALID, "schema", problem) if problem else (Outcome.OK, None, None)


def _schema_problem(response_format: Any, content: str) -> str | None:
    """Why the answer breaks the row's response_format, or None."""
    if not isinstance(response_format, Mapping) or response_format.get("type") not in ("json_schema", "json_object"):
        return None
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        return f"the answer is not JSON: {error.msg}"
    if response_format["type"] == "json_object":
        return None if isinstance(value, dict) else "the answer is JSON but not an object"
    wrapper = response_format.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, Mapping) else None
    return _schema_error(schema, value) if isinstance(schema, Mapping) else None


def _schema_error(schema: Mapping[str, Any], value: Any) -> str | None:
    import jsonschema

    try:
        jsonschema.validate(value, schema)
    except jsonschema.ValidationError as error:
        return f"the answer breaks its json_schema at {error.json_path}: {error.message}"[:500]
    except Exception as error:  # noqa: BLE001  (a schema the checker cannot read is the row's data, not our failure)
        return f"the json_schema cannot be checked: {type(error).__name__}"
    return None


def _text(content: Any) -> str | None:
    """Message content as text; a list of parts is joined, null stays None (it is not the same as "")."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if content is None or isinstance(content, str) else orjson.dumps(content).decode()


def _reasoning(message: Mapping[str, Any]) -> str | None:
    found = message.get("reasoning") or message.get("reasoning_content")
    return found if isinstance(found, str) else None


def _usage(usage: Any) -> dict[str, int | None]:
    usage = usage if isinstance(usage, Mapping) else {}
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    found = {
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "cached_tokens": cached,
    }
    return {name: value if isinstance(value, int) else None for name, value in found.items()}
