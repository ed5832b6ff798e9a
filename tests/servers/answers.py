"""What the stand-in model says: a pure function of the prompt, by which a test finds the row an answer belongs to."""

import hashlib
import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.servers.faults import without_directives

HUGE_BYTES = 5_000_000
_TOKEN = re.compile(r"\S{1,12}\s*|\s+")
_WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "서울", "부산", "바다", "하늘")


def digest(text: str) -> str:
    """The mark by which an answer names its prompt; every answer to `text` contains it, unless a fault empties it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def tokens_of(text: str) -> list[str]:
    """The stand-in's tokens: they join to `text` again, and a digest is exactly one."""
    return _TOKEN.findall(text)


def text_of(message: dict[str, Any]) -> str:
    """The text of one message, whether its content is a string, a list of parts, or absent."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def last_user_text(messages: Iterable[Any]) -> str:
    """The text of the last user message; "" when there is none."""
    texts = [text_of(message) for message in messages if isinstance(message, dict) and message.get("role") == "user"]
    return texts[-1] if texts else ""


def count_prompt_tokens(messages: Iterable[dict[str, Any]]) -> int:
    """Tokens of a whole conversation, with four a message for the template."""
    return sum(4 + len(tokens_of(text_of(message))) for message in messages)


@dataclass
class Draft:
    """One answer before it becomes JSON; `finish` is the finish_reason."""

    content: str | None
    reasoning: str | None = None
    finish: str = "stop"
    refusal: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()

    @property
    def reasoning_tokens(self) -> int:
        return len(tokens_of(self.reasoning or ""))

    @property
    def output_tokens(self) -> int:
        return max(1, self.reasoning_tokens + len(tokens_of(self.content or self.refusal or "")))


def plain_answer(text: str, *, choice: int, seed: int, length: tuple[int, int]) -> str:
    """Digest, echo of the prompt's beginning, then filler up to a length drawn from the prompt."""
    dice = random.Random(f"{seed}/{choice}/{text}")
    tokens = tokens_of(f"{digest(text)} echo: {without_directives(text)[:80]} ")
    wanted = dice.randint(*length)
    tokens += [f"{dice.choice(_WORDS)} " for _ in range(wanted - len(tokens))]
    return "".join(tokens).rstrip()


def write_answer(
    body: dict[str, Any], text: str, *, choice: int, seed: int, length: tuple[int, int], thinks: bool
) -> Draft:
    """The answer to a request without faults, cut at its max_tokens."""
    schema = schema_of(body)
    content = plain_answer(text, choice=choice, seed=seed, length=length)
    if schema is not None:
        content = json.dumps(example_of(schema, schema, digest(text)), ensure_ascii=False)
    reasoning = f"The user wants {digest(text)} answered; I think about it step by step." if thinks else None
    return cut(Draft(content, reasoning), body.get("max_completion_tokens") or body.get("max_tokens"))


def cut(draft: Draft, limit: int | None) -> Draft:
    """`draft` within `limit` tokens; thinking comes first, and who runs out while thinking has no content."""
    if limit is None or draft.output_tokens <= limit:
        return draft
    thoughts, words = tokens_of(draft.reasoning or ""), tokens_of(draft.content or "")
    if limit <= len(thoughts):
        return Draft(None, "".join(thoughts[:limit]), "length")
    return Draft("".join(words[: limit - len(thoughts)]), draft.reasoning, "length")


def spoil(draft: Draft, kind: str, text: str) -> Draft:
    """`draft` as one of the answer faults leaves it."""
    mark = digest(text)
    call = {"id": f"call_{mark}", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "x"}'}}
    spoiled = {
        "empty": Draft("", draft.reasoning),
        "null": Draft(None, draft.reasoning),
        "length": Draft(draft.content, draft.reasoning, "length"),
        "length_in_reasoning": Draft(None, draft.reasoning or f"Thinking about {mark}, and again", "length"),
        "refusal": Draft(None, draft.reasoning, refusal=f"I cannot answer {mark}."),
        "filtered": Draft(draft.content, draft.reasoning, "content_filter"),
        "toolcall": Draft(None, draft.reasoning, "tool_calls", tool_calls=(call,)),
        "huge": Draft(f"{mark} ".ljust(HUGE_BYTES, "."), draft.reasoning),
        "schema_broken": Draft(f'{{"{mark}": "no end', draft.reasoning),
        "schema_wrong": Draft(json.dumps({"unexpected": [mark]}), draft.reasoning),
    }
    return spoiled.get(kind, draft)


def schema_of(body: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON schema a request asks for, by response_format or vLLM's structured_outputs."""
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return dict(wanted["json_schema"].get("schema") or {})
    if wanted.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    structured = body.get("structured_outputs") or {}
    return dict(structured["json"]) if isinstance(structured.get("json"), dict) else None


def example_of(schema: dict[str, Any], root: dict[str, Any], mark: str) -> Any:
    """A value that fits `schema` in the commonest dialect; free strings are the digest."""
    if "$ref" in schema:
        return example_of(_resolve(schema["$ref"], root), root, mark)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if "enum" in schema:
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return example_of(schema[key][0], root, mark)
    kind = schema.get("type", "object")
    return _EXAMPLES[kind[0] if isinstance(kind, list) else kind](schema, root, mark)


def _resolve(pointer: str, root: dict[str, Any]) -> dict[str, Any]:
    found: Any = root
    for part in pointer.removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def _object(schema: dict[str, Any], root: dict[str, Any], mark: str) -> dict[str, Any]:
    return {name: example_of(part, root, mark) for name, part in schema.get("properties", {}).items()}


def _array(schema: dict[str, Any], root: dict[str, Any], mark: str) -> list[Any]:
    return [example_of(schema.get("items", {"type": "string"}), root, mark)] * max(1, schema.get("minItems", 1))


def _number(schema: dict[str, Any], _root: dict[str, Any], _mark: str) -> Any:
    return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)


def _string(schema: dict[str, Any], _root: dict[str, Any], mark: str) -> str:
    return mark.ljust(schema.get("minLength", 0), "-")[: schema.get("maxLength")]


_EXAMPLES = {
    "object": _object,
    "array": _array,
    "number": _number,
    "integer": _number,
    "string": _string,
    "boolean": lambda *_: True,
    "null": lambda *_: None,
}
