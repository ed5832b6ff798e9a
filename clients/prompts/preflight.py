"""What a run will ask of the model, estimated while its rows are checked: tokens, rows that do not fit, time."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import orjson

from clients.prompts.source import Line

#: A token is about four characters of English, or 1.7 of Korean, Chinese or Japanese, which have three bytes each.
_ASCII_BYTES_PER_TOKEN, _OTHER_BYTES_PER_TOKEN = 4, 5

_NOT_ASCII = bytes(range(128, 256))
_MESSAGES = b'"messages":'
_PARTS = b'"content":['  # of a message in parts, some of which may be images
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens":(\d+)')

#: Rows whose need of tokens is within a tenth of each other share a bucket.
_LOG_WIDTH = math.log(1.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """Estimates over the rows that can be sent.

    A prompt's tokens are estimated from its bytes, see `estimated_tokens`: right within a third for most texts and
    tokenizers, and without the model at hand.

    Attributes:
        prompt: Tokens of all prompts.
        longest: Tokens of the longest prompt, and `longest_at` the line it stands on.
        max_tokens: Sum of the rows' max_tokens; `limited` rows have one.
        most: What the neediest row needs, prompt and max_tokens together.
        needs: How many rows need how much: bucket n holds 1.1**n and more.
    """

    prompt: int = 0
    longest: int = 0
    longest_at: str = ""
    max_tokens: int = 0
    limited: int = 0
    most: int = 0
    needs: tuple[tuple[int, int], ...] = ()

    def beyond(self, limit: int) -> int:
        """About how many rows need more tokens than a model takes."""
        if self.most <= limit:
            return 0
        exact = math.log(max(1, limit)) / _LOG_WIDTH
        full = sum(count for bucket, count in self.needs if bucket > exact)
        split = sum(count for bucket, count in self.needs if bucket <= exact < bucket + 1)
        return max(1, full + round(split * (1 - exact % 1)))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Tokens":
        """Read back what became of it as JSON."""
        return cls(**{**fields, "needs": tuple((bucket, count) for bucket, count in fields["needs"])})


class TokenCounter:
    """Adds up `Tokens` request by request."""

    def __init__(self) -> None:
        self._prompt = self._longest = self._max_tokens = self._limited = self._most = 0
        self._longest_at = ""
        self._needs: collections.Counter[int] = collections.Counter()

    def take(self, payload: bytes, line: Line) -> None:
        """Count in one request, at some 1 us per kB."""
        at = payload.find(_MESSAGES)
        tokens = estimated_tokens(payload, at)
        self._prompt += tokens
        if tokens > self._longest:
            self._longest, self._longest_at = tokens, f"{line.unit} {line.number}"
        if match := _MAX_TOKENS.search(payload, 0, at):
            answer = int(match[1])
            self._max_tokens += answer
            self._limited += 1
            tokens += answer
        if tokens > self._most:
            self._most = tokens
        self._needs[int(math.log(tokens or 1) / _LOG_WIDTH)] += 1

    def tokens(self) -> Tokens:
        """The numbers so far."""
        return Tokens(
            prompt=self._prompt,
            longest=self._longest,
            longest_at=self._longest_at,
            max_tokens=self._max_tokens,
            limited=self._limited,
            most=self._most,
            needs=tuple(sorted(self._needs.items())),
        )


def estimated_tokens(payload: bytes, at: int) -> int:
    """Tokens of a request's prompt: one for 4 bytes of ASCII, or for 5 bytes of other letters, which have 2 to 4 each.

    The JSON around the messages stands for what a chat template adds; descriptions of tools count too, images, audio
    and other attachments do not.

    Args:
        payload: The request as JSON.
        at: Where its messages begin.
    """
    text = payload if payload.find(b'"tools":', 0, at) >= 0 else payload[at:]
    if _PARTS in text:
        text = orjson.dumps(_without_attachments(orjson.loads(payload)["messages"]))
    if text.isascii():
        return len(text) // _ASCII_BYTES_PER_TOKEN
    plain = len(text.translate(None, _NOT_ASCII))
    return plain // _ASCII_BYTES_PER_TOKEN + (len(text) - plain) // _OTHER_BYTES_PER_TOKEN


def _without_attachments(messages: list[dict[str, Any]]) -> list[Any]:
    return [
        [part.get("text") for part in message["content"] if isinstance(part, dict)]
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast answers came in an earlier run.

    Attributes:
        output_tokens_per_s: By all servers together.
        tokens_per_row: Mean length of an answer.
    """

    output_tokens_per_s: float
    tokens_per_row: float

    @classmethod
    def from_summary(cls, summary: Any) -> "Rate | None":
        """The rate that a summary.json tells; None when that run was too short to tell one."""
        try:
            per_s, per_row = summary["output_tokens_per_s"], summary["completion_tokens_per_row"]["mean"]
            return cls(output_tokens_per_s=float(per_s), tokens_per_row=float(per_row)) if per_s and per_row else None
        except (KeyError, TypeError, ValueError):
            return None

    def seconds(self, rows: int) -> float:
        """How long so many answers take."""
        return rows * self.tokens_per_row / self.output_tokens_per_s
