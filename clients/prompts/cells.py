"""What the cells of a table mean: tables know text, numbers and nothing, requests know more."""

from collections.abc import Iterable
from typing import Any

import orjson

#: Fields of a row that belong to the request (OpenAI's chat completions and vLLM's additions). Everything else is the
#: row's own data and carried to the output; so are `user` and `metadata`, which people use as column names.
# fmt: off
REQUEST_FIELDS = frozenset({
    "model", "messages", "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens",
    "min_tokens", "n", "stop", "stop_token_ids", "seed", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "length_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format", "tools",
    "tool_choice", "parallel_tool_calls", "reasoning_effort", "thinking_token_budget", "include_reasoning",
    "chat_template_kwargs", "ignore_eos", "bad_words", "structured_outputs", "priority", "modalities",
    "service_tier",
})
# fmt: on

#: Every field of a plain row, and of a line of the OpenAI batch format, that is not the row's own data.
PLAIN_FIELDS = REQUEST_FIELDS | {"custom_id", "prompt", "system", "extra_body"}
BATCH_FIELDS = frozenset({"custom_id", "method", "url", "body"})

_KNOWN = PLAIN_FIELDS | BATCH_FIELDS
_TEXTS = frozenset({"model", "reasoning_effort", "service_tier", "custom_id", "prompt", "system", "method", "url"})
#: Fields that are lists or objects, or else text.
_NESTED = frozenset({"messages", "body", "extra_body", "stop", "tool_choice"})
#: A column of whole numbers in which some are missing becomes one of floats in pandas.
_WHOLE = frozenset({
    "max_tokens", "max_completion_tokens", "min_tokens", "n", "seed", "top_k", "top_logprobs", "priority",
    "thinking_token_budget",
})  # fmt: skip
_WORDS = {"true": True, "false": False}


def known(names: Iterable[str]) -> list[str]:
    """Those columns of a table that are no mere data of the row."""
    return [name for name in names if name in _KNOWN]


def settle(fields: dict[str, Any], names: Iterable[str]) -> None:
    """Give the cells of columns that `known` found the meaning they have in a request: nothing means not given."""
    for name in names:
        value = fields[name]
        if isinstance(value, str) and name not in _TEXTS:
            value = fields[name] = _read(name, value)
        if value is None:
            del fields[name]
        elif name in _WHOLE and isinstance(value, float) and value.is_integer():
            fields[name] = int(value)
        elif isinstance(value, list | dict):
            fields[name] = _given(value)


def _read(name: str, text: str) -> Any:
    """Text as JSON where it is JSON of a kind that the field can be."""
    if (word := _WORDS.get(text.strip().lower())) is not None and name not in _NESTED:
        return word
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return text if name in _NESTED and not isinstance(value, list | dict) else value


def _given(value: Any) -> Any:
    """Without the empty fields of objects: a struct column of Parquet gives every object every field."""
    if isinstance(value, dict):
        return {name: _given(item) for name, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list) else value
