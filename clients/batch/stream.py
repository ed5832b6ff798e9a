"""One answer as a stream of server-sent events: how it is asked for, and how its parts become a whole again."""

from typing import Any

import orjson

from clients.errors import TransientError

#: A request with one of these has parts that do not simply add up; it is not streamed.
_NOT_SIMPLE = (
    b'"n":', b'"logprobs":', b'"tools":', b'"response_format":', b'"structured_outputs":', b'"stream":',
    b'"modalities":',
)  # fmt: skip

#: Text in a message that arrives piece by piece.
_TEXTS = ("content", "reasoning", "reasoning_content", "refusal")

CONTENT_TYPE = b"text/event-stream"


def streamed(payload: bytes) -> bytes | None:
    """A request for the same answer as a stream; None where that could cost a part of it."""
    if any(word in payload for word in _NOT_SIMPLE):
        return None
    return payload.rstrip()[:-1] + b',"stream":true,"stream_options":{"include_usage":true}}'


def assembled(body: bytes) -> dict[str, Any]:
    """The chat completion that a complete stream adds up to.

    Raises:
        TransientError: it has no end, or tells of an error.
    """
    message: dict[str, Any] = {"role": "assistant", "content": None}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": None}
    whole: dict[str, Any] = {"object": "chat.completion", "choices": []}
    ended = False
    for line in body.split(b"\n"):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            ended = True
            break
        _add(_event(data), whole, choice, message)
    if not ended:
        raise TransientError("connection", "the connection broke: the stream has no end")
    return whole


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise TransientError("bad_json", f"a part of the answer is not JSON: {error.msg}") from error
    if not isinstance(event, dict) or "error" in event:
        raise TransientError("stream_error", "the server ended the answer with an error")
    return event


def _add(event: dict[str, Any], whole: dict[str, Any], choice: dict[str, Any], message: dict[str, Any]) -> None:
    for name in ("id", "created", "model", "usage"):
        if event.get(name) is not None:
            whole[name] = event[name]
    for part in event.get("choices") or ():
        whole["choices"] = [choice]
        delta = part.get("delta") or {}
        for name in _TEXTS:
            if delta.get(name):
                message[name] = (message.get(name) or "") + delta[name]
        for name in ("finish_reason", "stop_reason"):
            if part.get(name) is not None:
                choice[name] = part[name]
