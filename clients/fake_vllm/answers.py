"""How long each answer is and what it says: pure functions of the seed and the request."""

import dataclasses
import math
from statistics import NormalDist
from typing import Any

import orjson

from clients.fake_vllm.chat import Asked
from clients.fake_vllm.draws import uniform

#: Share of a thinking model's tokens that are thoughts.
_THOUGHTS = 0.7

_FILLER = "Seen from afar the harbour lights blink in the dusk and every boat finds its own way home. "
_STANDARD_NORMAL = NormalDist()


@dataclasses.dataclass(frozen=True, slots=True)
class Length:
    """Tokens of one choice.

    Attributes:
        tokens: What is generated.
        wanted: What it would have been without a limit.
        thoughts: How many of `tokens` are thoughts; all of them when the limit came before the answer.
        all_thoughts: How many of `wanted` are.
    """

    tokens: int
    wanted: int
    thoughts: int = 0
    all_thoughts: int = 0

    @property
    def finish(self) -> str:
        """The finish_reason."""
        return "stop" if self.tokens == self.wanted else "length"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AnswerModel:
    """What the model would say.

    Attributes:
        seed: Another seed, other lengths.
        median: Median tokens of an answer.
        sigma: Spread of their logarithm; 0 makes all answers equally long.
        longest: No answer wants more tokens.
        text_bytes: About how long an answer's text is; its tokens have no part in that.
        thinking: Whether thoughts come first.
    """

    seed: int = 0
    median: float = 200.0
    sigma: float = 0.8
    longest: int = 4000
    text_bytes: int = 200
    thinking: bool = False

    def wanted_tokens(self, mark: bytes, choice: int = 0) -> int:
        """Tokens of the answer to the text with the digest `mark`, before any limit."""
        chance = uniform(self.seed, b"length", mark, choice)
        deviation = _STANDARD_NORMAL.inv_cdf(max(chance, 1e-12))
        return max(1, min(self.longest, round(self.median * math.exp(self.sigma * deviation))))

    def lengths(self, asked: Asked) -> tuple[Length, ...]:
        """The tokens of every choice."""
        return tuple(self._length(asked, choice) for choice in range(asked.choices))

    def _length(self, asked: Asked, choice: int) -> Length:
        wanted = self.wanted_tokens(asked.mark, choice)
        tokens = min(wanted, asked.limit)
        if not (self.thinking and asked.thinking):
            return Length(tokens, wanted)
        thoughts = min(wanted - 1, math.ceil(wanted * _THOUGHTS))
        return Length(tokens, wanted, min(tokens, thoughts), thoughts)

    def message(self, asked: Asked, length: Length) -> dict[str, Any]:
        """The message of one choice; who runs out of tokens while thinking has no content."""
        name = asked.mark[:6].hex()
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if length.thoughts < length.tokens:
            share = (length.tokens - length.thoughts) / (length.wanted - length.all_thoughts)
            message["content"] = _text(f"answer-{name} ", self.text_bytes, share)
        if length.all_thoughts and asked.show_reasoning:
            share = length.thoughts / length.all_thoughts
            message["reasoning"] = _text(f"thoughts-{name} ", self.text_bytes, share)
        return message


def usage_of(asked: Asked, lengths: tuple[Length, ...]) -> dict[str, Any]:
    """The `usage` of an answer."""
    output = sum(length.tokens for length in lengths)
    usage: dict[str, Any] = {
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": output,
        "total_tokens": asked.prompt_tokens + output,
    }
    if thoughts := sum(length.thoughts for length in lengths):
        usage["completion_tokens_details"] = {"reasoning_tokens": thoughts}
    return usage


def completion(
    model: AnswerModel, asked: Asked, lengths: tuple[Length, ...], answer_id: str, *, empty: bool = False
) -> bytes:
    """The JSON of a complete answer.

    Args:
        model: Writes the texts.
        asked: The request.
        lengths: Of each choice.
        answer_id: Its `id`.
        empty: Leave out the choices, which is a fault.
    """
    choices = [
        {
            "index": index,
            "message": model.message(asked, length),
            "logprobs": None,
            "finish_reason": length.finish,
            "stop_reason": None,
        }
        for index, length in enumerate(() if empty else lengths)
    ]
    return orjson.dumps(
        {
            "id": answer_id,
            "object": "chat.completion",
            "created": 0,
            "model": asked.model,
            "choices": choices,
            "usage": usage_of(asked, lengths),
        }
    )


def events(
    model: AnswerModel, asked: Asked, lengths: tuple[Length, ...], answer_id: str, *, empty: bool = False
) -> list[bytes]:
    """The events of a stream, `[DONE]` included: three for each choice, then usage if it is wanted.

    Args:
        model: As for `completion`; so are the four that follow.
        asked: The request.
        lengths: Of each choice.
        answer_id: Its `id`.
        empty: Leave out the choices.
    """
    head = {"id": answer_id, "object": "chat.completion.chunk", "created": 0, "model": asked.model}
    chunks: list[dict[str, Any]] = []
    for index, length in enumerate(() if empty else lengths):
        message = model.message(asked, length)
        text = {key: value for key, value in message.items() if key != "role" and value is not None}
        for delta, finish in (({"role": "assistant", "content": ""}, None), (text, None), ({}, length.finish)):
            chunks.append({"choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]})
    if asked.stream_usage:
        chunks.append({"choices": [], "usage": usage_of(asked, lengths)})
    return [b"data: %b\n\n" % orjson.dumps(head | chunk) for chunk in chunks] + [b"data: [DONE]\n\n"]


def _text(start: str, size: int, share: float) -> str:
    """`start`, then filler up to `share` of `size` bytes."""
    missing = int(size * share) - len(start)
    if missing <= 0:
        return start.rstrip()
    return start + (_FILLER * (missing // len(_FILLER) + 1))[:missing]
