"""What is known of a row's quality as Langfuse scores; optional, and not counted as rows."""

import json
from typing import Any

from clients.records import ChatResult, Outcome
from clients.tracing.spans import iso_time, microseconds

#: Most scores of a request: 60 KB, where Langfuse takes 1 MB.
MAX_SCORES = 256


def scores_of(payload: bytes, result: ChatResult, environment: str) -> list[str]:
    """The scores of a row as JSON. Their ids and times come from its record: what is sent again replaces.

    Args:
        payload: The request's body.
        result: The row's record.
        environment: See TraceSettings; "" for Langfuse's default.

    Returns:
        A JSON object for each score; none for a row without a trace.
    """
    if result.started_at is None or result.trace_id is None:
        return []
    at = iso_time(microseconds(result.started_at) + round((result.latency_s or 0.0) * 1e6))
    common = {"traceId": result.trace_id, "timestamp": at, **({"environment": environment} if environment else {})}
    found: list[dict[str, Any]] = [{"name": "outcome", "value": str(result.outcome), "dataType": "CATEGORICAL"}]
    wanted = b'"response_format"' in payload or b'"structured_outputs"' in payload
    if wanted and result.outcome in (Outcome.OK, Outcome.SCHEMA_INVALID):
        valid = int(result.outcome is Outcome.OK)
        found.append({"name": "schema_valid", "value": valid, "dataType": "BOOLEAN"})
    return [json.dumps({"id": f"{result.trace_id}-{score['name']}", **common, **score}) for score in found]
