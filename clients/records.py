"""The records that travel between the parts: pure data, no I/O, nothing but the standard library.

Nobody changes one that has been made. Those of which every row has one or two do not enforce it: that would take a
tenth of a microsecond a field, 3 us a row.
"""

import dataclasses
import datetime as dt
import enum
import json
from typing import Any


class Outcome(enum.StrEnum):
    """How a row ended. Exactly one per row; the words stand in Parquet, the summary, the report and both READMEs."""

    OK = "ok"
    TRUNCATED = "truncated"  # finish_reason length, with an answer begun
    TRUNCATED_IN_REASONING = "truncated_in_reasoning"  # finish_reason length before any answer
    FILTERED = "filtered"  # finish_reason content_filter, or a refusal
    SCHEMA_INVALID = "schema_invalid"  # the answer breaks the row's json_schema
    EMPTY = "empty"  # finished normally with neither text nor tool calls
    REJECTED = "rejected"  # the server says this request can never work
    FAILED = "failed"  # attempts or deadline used up
    INVALID = "invalid"  # never sent: the row itself is malformed


#: Outcomes that count against the gate's error budget. A truncated answer is a partial answer, not an error.
ERROR_OUTCOMES = frozenset(Outcome) - {Outcome.OK, Outcome.TRUNCATED}


@dataclasses.dataclass(slots=True)
class ChatRequest:
    """One row that can be sent.

    Attributes:
        row: 0-based position among the input's rows (blank lines are not rows).
        id: The row's `custom_id` (or `id`), else `row-<row>`.
        request_hash: 32 hex digits over the canonical body; equal exactly when the request, model included, is equal.
        payload: The chat completion request as JSON in UTF-8, complete with model and job defaults, keys in the
            row's own order: the order of a schema's properties is the order in which a model writes them.
    """

    row: int
    id: str
    request_hash: str
    payload: bytes

    @property
    def body(self) -> dict[str, Any]:
        """The request as an object, decoded anew at every call."""
        found: dict[str, Any] = json.loads(self.payload)
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class InvalidRow:
    """One row that cannot be sent, and why. It becomes a result with `outcome = "invalid"`.

    Attributes:
        row: 0-based position among the input's rows.
        id: As in ChatRequest, where the row could be read that far.
        error_code: Short reason, such as `not_json` or `wrong_type`.
        error_message: For a person, with the 1-based line number.
    """

    row: int
    id: str
    error_code: str
    error_message: str


@dataclasses.dataclass(slots=True, kw_only=True)
class ChatResult:
    """One committed answer, as the ledger keeps it; the columns of `clients.results.schema` without the carried ones.

    Attributes:
        started_at: UTC time at which the last attempt was sent.
        latency_s: Seconds from the start of the last attempt to its last byte.
        attempts: Requests the server may have worked on for this row, the last included; 0 for a row never sent.
        tool_calls: The message's tool calls as JSON text.
        endpoint: Base URL the answer came from.
        raw_response: The server's answer as it came, where it was asked for or holds more than the other columns.
    """

    row: int
    id: str
    request_hash: str
    outcome: Outcome
    content: str | None = None
    reasoning: str | None = None
    tool_calls: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    attempts: int = 0
    started_at: dt.datetime | None = None
    latency_s: float | None = None
    model: str | None = None
    endpoint: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    trace_id: str | None = None
    raw_response: str | None = None
