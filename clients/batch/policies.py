"""What happens to an answer that is not `ok`: kept as it is, or asked for once more in another way. Pure."""

import dataclasses
from typing import Any

import orjson

from clients.errors import SettingsError
from clients.records import ChatRequest, Outcome

#: Outcomes that another sample of the same request may mend.
_MAY_DIFFER = frozenset({Outcome.SCHEMA_INVALID, Outcome.EMPTY, Outcome.TRUNCATED, Outcome.TRUNCATED_IN_REASONING})

#: A JSON answer that runs into one of these is a loop that would fill the whole token limit with blanks.
BLANKS = ["\n" * 64, " " * 256, "\t" * 64, " \n" * 32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policies:
    """Second chances, at most one a row and run.

    Attributes:
        resample: Outcomes whose row is sent once more as it is.
        reasoning_max_tokens: A row that used up its token limit while thinking is sent once more with this limit.
        thinking_token_budget: Such a row is sent once more and has to end its thinking after so many tokens (vLLM).
    """

    resample: frozenset[Outcome] = frozenset()
    reasoning_max_tokens: int | None = None
    thinking_token_budget: int | None = None

    def __post_init__(self) -> None:
        if wrong := self.resample - _MAY_DIFFER:
            allowed = ", ".join(sorted(_MAY_DIFFER))
            raise SettingsError(f"resample knows {allowed}; found {', '.join(sorted(wrong))}")
        for name in ("reasoning_max_tokens", "thinking_token_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1, found {value}")

    def second_payload(self, request: ChatRequest, outcome: Outcome) -> bytes | None:
        """What to send after this outcome, or None to keep the answer."""
        if outcome is Outcome.TRUNCATED_IN_REASONING and (body := self._with_more_room(request)) is not None:
            return orjson.dumps(body)
        return first_payload(request) if outcome in self.resample else None

    def _with_more_room(self, request: ChatRequest) -> dict[str, Any] | None:
        if self.reasoning_max_tokens is None and self.thinking_token_budget is None:
            return None
        body = request.body
        if self.thinking_token_budget is not None:
            body["thinking_token_budget"] = self.thinking_token_budget
        if self.reasoning_max_tokens is not None:
            name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
            if self.reasoning_max_tokens <= (body.get(name) or 0) and self.thinking_token_budget is None:
                return None  # it had as much already
            body[name] = max(self.reasoning_max_tokens, body.get(name) or 0)
        return body


def first_payload(request: ChatRequest) -> bytes:
    """What to send at first: the request, with an end to loops of blanks where JSON is asked for.

    Guided decoding allows any number of blanks between JSON tokens, and some models fall into writing nothing else.
    """
    payload = request.payload
    if b'"response_format"' not in payload or b'"stop"' in payload:
        return payload
    body = request.body
    if (body.get("response_format") or {}).get("type") not in ("json_schema", "json_object") or "stop" in body:
        return payload
    return orjson.dumps({**body, "stop": BLANKS})
