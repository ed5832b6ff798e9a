"""A row as a span that Langfuse shows as one trace with one generation, and a shard's summary as another trace.

Names of attributes are those of langfuse's `LangfuseOtelSpanAttributes`. Ids and times come from the row's record
alone: Langfuse keeps one observation for a trace id, a span id and a start, so what is sent again replaces.
"""

import dataclasses
import datetime as dt
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from clients.records import ERROR_OUTCOMES, ChatResult, Outcome
from clients.tracing.masks import is_suspect, masked, masked_text
from clients.tracing.settings import TraceSettings
from clients.tracing.wire import Attribute, attribute, eight, field, request, text

SCOPE = "kubeflow-llm-inference"

_OBSERVATION, _TRACE = "langfuse.observation.", "langfuse.trace."
_TYPE, _LEVEL, _STATUS = f"{_OBSERVATION}type", f"{_OBSERVATION}level", f"{_OBSERVATION}status_message"
_SESSION, _TAGS, _NAME = "session.id", f"{_TRACE}tags", f"{_TRACE}name"
_ENVIRONMENT, _RELEASE, _ROOT = "langfuse.environment", "langfuse.release", "langfuse.internal.is_app_root"

_MODEL = Attribute(f"{_OBSERVATION}model.name")
_PARAMETERS = Attribute(f"{_OBSERVATION}model.parameters")
_INPUT, _OUTPUT = Attribute(f"{_OBSERVATION}input"), Attribute(f"{_OBSERVATION}output")
_USAGE = Attribute(f"{_OBSERVATION}usage_details")
_FIRST_TOKEN = Attribute(f"{_OBSERVATION}completion_start_time")
_LEVEL_OF, _MESSAGE = Attribute(_LEVEL), Attribute(_STATUS)
_METADATA = {
    name: Attribute(f"{_OBSERVATION}metadata.{name}")
    for name in ("row", "id", "outcome", "attempts", "finish_reason", "endpoint", "error_code")
}

_ROW_NAME, _SUMMARY_NAME = "batch row", "shard summary"

#: Langfuse leaves out longer ids of sessions, and longer tags.
_LONGEST = 200

_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """What all traces of a shard have in common.

    Attributes:
        run: Name of the run. Traces of a later run with the same name replace those of the same rows.
        shard: Number of the shard.
        pipeline: Name of the pipeline.
        model: The model that rows name unless they name another.
        kfp_run_id: Of the run in Kubeflow Pipelines; "" outside.
        kfp_run_url: Its page.
    """

    run: str
    shard: int
    pipeline: str = ""
    model: str = ""
    kfp_run_id: str = ""
    kfp_run_url: str = ""

    @property
    def session(self) -> str:
        """The Langfuse session: one a shard, since one of very many traces cannot be opened or removed there."""
        return f"{_ascii(self.run)[: _LONGEST - 6]}/{self.shard:05d}"

    def trace_id(self, row: int, request_hash: str) -> str:
        """The trace of a row, as `Langfuse.create_trace_id` makes it of the same seed."""
        return hashlib.sha256(f"{self.run}:{row}:{request_hash}".encode("utf-8", "replace")).hexdigest()[:32]

    def tags(self) -> list[str]:
        """What traces are found by."""
        found = {"run": self.run, "pipeline": self.pipeline, "model": self.model}
        return [f"{name}:{value}"[:_LONGEST] for name, value in found.items() if value]


class SpanWriter:
    """Writes spans.

    Args:
        origin: What they have in common.
        settings: What is in them.
    """

    def __init__(self, origin: Origin, settings: TraceSettings) -> None:
        self._origin, self._content = origin, settings.content
        facts = {
            "run": origin.run,
            "shard": str(origin.shard),
            "kfp_run_id": origin.kfp_run_id,
            "kfp_run_url": origin.kfp_run_url,
        }
        same = {_SESSION: origin.session, _ENVIRONMENT: settings.environment, _RELEASE: settings.release}
        for name, value in facts.items():
            same[f"{_OBSERVATION}metadata.{name}"] = same[f"{_TRACE}metadata.{name}"] = value
        self._same = b"".join(
            [
                *(attribute(name, value) for name, value in same.items() if value),
                attribute(_TAGS, origin.tags()),
                attribute(_ROOT, True),
            ]
        )
        self._row_same = self._same + _called(_ROW_NAME) + attribute(_TYPE, "generation")
        resource = {"service.name": SCOPE, _ENVIRONMENT: settings.environment, _RELEASE: settings.release}
        self._resource = b"".join(attribute(name, value, number=1) for name, value in resource.items() if value)

    def request(self, spans: list[bytes]) -> bytes:
        """A request's body for some spans."""
        return request(self._resource, SCOPE, spans)

    def row(self, payload: bytes, result: ChatResult, first_token_s: float | None = None) -> bytes:
        """The span of a row.

        Args:
            payload: The request as JSON.
            result: Its record, with a `trace_id` and `started_at`.
            first_token_s: Seconds from `started_at` to the first token, where known.

        Raises:
            ValueError: the record has no trace or no time.
        """
        if result.trace_id is None or result.started_at is None:
            raise ValueError("a row that was never sent has no trace")
        body: dict[str, Any] = json.loads(payload)
        start_us = microseconds(result.started_at)
        end_us = start_us + round((result.latency_s or 0.0) * 1e6)
        found = [_head(bytes.fromhex(result.trace_id), start_us, end_us), self._row_same]
        found.append(_MODEL(text(result.model or str(body.get("model") or "unknown"))))
        if parameters := self._parameters(body):
            found.append(_PARAMETERS(parameters))
        if self._content != "none":
            found.append(_INPUT(self._shown(_dumps(body.get("messages")))))
            if result.content is not None or result.reasoning is not None or result.tool_calls is not None:
                found.append(_OUTPUT(self._shown(_answer(result))))
        if usage := _usage(result):
            found.append(_USAGE(usage))
        if first_token_s is not None:
            found.append(_FIRST_TOKEN(f'"{iso_time(start_us + round(first_token_s * 1e6))}"'.encode()))
        for name, metadata in _METADATA.items():
            if (value := getattr(result, name)) is not None:
                found.append(metadata(text(str(value))))
        if result.outcome is not Outcome.OK:
            found.append(self._problem(result))
        return b"".join(found)

    def summary(self, start_us: int, end_us: int, facts: Mapping[str, Any]) -> bytes:
        """The span of the shard's summary; its trace is the same in every run of the same name.

        Args:
            start_us: When the shard started, in microseconds since 1970.
            end_us: When it ended.
            facts: What it says.
        """
        trace = hashlib.sha256(f"{self._origin.run}:{self._origin.shard}:summary".encode("utf-8", "replace"))
        return b"".join(
            [
                _head(trace.digest()[:16], start_us, end_us),
                self._same,
                _called(_SUMMARY_NAME),
                attribute(_TYPE, "span"),
                _OUTPUT(text(_dumps(masked(facts)))),
            ]
        )

    def _parameters(self, body: dict[str, Any]) -> bytes:
        """The request's other fields, flat: Langfuse shows texts, numbers and booleans."""
        rest = {name: value for name, value in body.items() if name not in ("messages", "model") and value is not None}
        if self._content != "full":  # a schema, a stop word, a user's name tell as much as a prompt
            rest = {name: value for name, value in rest.items() if isinstance(value, bool | int | float)}
        if not rest:
            return b""
        if is_suspect(found := _dumps(rest)):
            rest = masked(rest)
        elif "{" not in found[1:] and "[" not in found:
            return text(found)
        return text(
            _dumps({name: _dumps(value) if isinstance(value, dict | list) else value for name, value in rest.items()})
        )

    def _shown(self, content: str) -> bytes:
        found = text(content)
        if self._content == "full":
            return found
        return b'{"sha256":"%b","bytes":%d}' % (hashlib.sha256(found).hexdigest().encode(), len(found))

    def _problem(self, result: ChatResult) -> bytes:
        is_error = result.outcome in ERROR_OUTCOMES
        message = result.error_code or str(result.outcome)
        if result.error_message and self._content == "full":  # it may quote the prompt or the answer
            message = f"{message}: {masked_text(result.error_message)}"
        shown = text(message)
        level = _LEVEL_OF(b"ERROR" if is_error else b"WARNING") + _MESSAGE(shown)
        return level + field(15, field(2, shown) + b"\x18\x02") if is_error else level


def microseconds(time: dt.datetime) -> int:
    """Since 1970: as exact as the ledger keeps it."""
    return round(time.timestamp() * 1e6)


def keeps(result: ChatResult, rate: float) -> bool:
    """Whether a row is traced: by its trace id, with the rule of Langfuse's SDK, and always where it went wrong."""
    if rate >= 1 or result.outcome in ERROR_OUTCOMES:
        return True
    return int((result.trace_id or "")[16:] or "0", 16) < rate * (1 << 64)


def _head(trace: bytes, start_us: int, end_us: int) -> bytes:
    """Ids and times. Each execution of a row has a span id of its own within the row's trace."""
    span = hashlib.sha256(b"%b:%d" % (trace, start_us)).digest()[:8]
    return (
        field(1, trace)
        + field(2, span)
        + b"\x30\x03"
        + eight(7, start_us * 1000)
        + eight(8, max(start_us, end_us) * 1000)
    )


def _called(name: str) -> bytes:
    return field(5, name.encode()) + attribute(_NAME, name)


def _answer(result: ChatResult) -> str:
    found: dict[str, Any] = {"role": "assistant", "content": result.content}
    if result.reasoning is not None:
        found["reasoning"] = result.reasoning
    if result.tool_calls is None:
        return _dumps(found)
    return f'{_dumps(found)[:-1]},"tool_calls":{result.tool_calls}}}'


def _usage(result: ChatResult) -> bytes:
    """Tokens by kind. Langfuse adds up all kinds of input, and of output, so none is counted in two."""
    if result.prompt_tokens is None and result.completion_tokens is None:
        return b""
    prompt, output = result.prompt_tokens or 0, result.completion_tokens or 0
    cached, thought = min(result.cached_tokens or 0, prompt), min(_reasoning_tokens(result), output)
    found = {"input": prompt - cached, "output": output - thought, "total": prompt + output}
    if cached:
        found["input_cached_tokens"] = cached
    if thought:
        found["output_reasoning_tokens"] = thought
    return _dumps(found).encode()


def _reasoning_tokens(result: ChatResult) -> int:
    """Known only where the answer is kept as it came."""
    if result.raw_response is None or "reasoning_tokens" not in result.raw_response:
        return 0
    try:
        found = json.loads(result.raw_response)["usage"]["completion_tokens_details"]["reasoning_tokens"]
    except (ValueError, KeyError, TypeError):
        return 0
    return found if type(found) is int and found > 0 else 0


def iso_time(us: int) -> str:
    """A time as Langfuse reads it."""
    return dt.datetime.fromtimestamp(us / 1e6, dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _ascii(name: str) -> str:
    return name.encode("ascii", "replace").decode()
