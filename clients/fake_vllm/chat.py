"""What a chat request asks for, or why it is refused; in vLLM's words."""

import dataclasses
import hashlib
from typing import Any

import orjson

#: Tokens that the chat template adds to each message, and bytes of text to a token.
_TEMPLATE_TOKENS, _BYTES_PER_TOKEN = 4, 4

_MAX_CHOICES = 128


@dataclasses.dataclass(slots=True)
class Asked:
    """A request that the server would work on.

    Attributes:
        model: Served name.
        mark: SHA-256 of the last user message's text.
        prompt_tokens: Tokens of the whole conversation.
        limit: Most tokens of an answer.
        choices: How many answers (`n`).
        stream: Whether events are wanted.
        stream_usage: Whether the stream ends with usage.
        thinking: Whether a thinking model may think.
        show_reasoning: Whether the thoughts are wanted in the answer.
    """

    model: str
    mark: bytes
    prompt_tokens: int
    limit: int
    choices: int
    stream: bool
    stream_usage: bool
    thinking: bool
    show_reasoning: bool


@dataclasses.dataclass(slots=True)
class Refusal:
    """Why a request cannot work; `param` names the field."""

    status: int
    message: str
    param: str | None = None


def mark_of(text: str) -> bytes:
    """The digest by which a text is known; the first six bytes stand in its answers."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def read_request(raw: bytes, model: str, max_model_len: int) -> Asked | Refusal:
    """Read a body.

    Args:
        raw: The body as it came.
        model: The served model.
        max_model_len: Most tokens of prompt and answer together.
    """
    try:
        body: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return Refusal(400, f"[{{'type': 'json_invalid', 'loc': ('body', {error.pos}), 'msg': 'JSON decode error'}}]")
    if not isinstance(body, dict):
        return Refusal(400, "[{'type': 'model_attributes_type', 'loc': ('body',), 'msg': 'Input should be an object'}]")
    if (body.get("model") or model) != model:
        return Refusal(404, f"The model `{body['model']}` does not exist.", "model")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return Refusal(400, "messages: Field required, a list with at least one message", "messages")
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
        return Refusal(400, "messages: each one needs a role and content", "messages")
    for name in ("max_tokens", "max_completion_tokens", "n"):
        value = body.get(name)
        if value is not None and (type(value) is not int or value < 1 or (name == "n" and value > _MAX_CHOICES)):
            return Refusal(400, f"{name} must be at least 1, got {value}.", name)
    return _asked(body, messages, model, max_model_len)


def _asked(body: dict[str, Any], messages: list[dict[str, Any]], model: str, max_model_len: int) -> Asked | Refusal:
    prompt, last = 0, ""
    for message in messages:
        text = _text_of(message.get("content"))
        prompt += _TEMPLATE_TOKENS + -(-len(text) // _BYTES_PER_TOKEN)
        if message["role"] == "user":
            last = text
    wanted = body.get("max_completion_tokens") or body.get("max_tokens")
    if prompt + (wanted or 1) > max_model_len:
        too_long = (
            f"This model's maximum context length is {max_model_len} tokens. However, you requested {wanted or 1} "
            f"output tokens and your prompt contains {prompt} input tokens. Please reduce the length of the messages."
        )
        return Refusal(400, too_long, "input_tokens")
    template = body.get("chat_template_kwargs") or {}
    return Asked(
        model=model,
        mark=mark_of(last),
        prompt_tokens=prompt,
        limit=wanted or max_model_len - prompt,
        choices=body.get("n") or 1,
        stream=bool(body.get("stream")),
        stream_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        thinking=bool(template.get("enable_thinking", True)),
        show_reasoning=bool(body.get("include_reasoning", True)),
    )


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""
