"""What a row's span says, decoded with the real protobuf package; and what it does not say."""

import datetime as dt
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langfuse import Langfuse
from langfuse._client.attributes import LangfuseOtelSpanAttributes
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from clients.records import ChatResult, Outcome
from clients.tracing import wire
from clients.tracing.masks import masked, masked_text
from clients.tracing.scores import scores_of
from clients.tracing.spans import Origin, SpanWriter, iso_time, keeps
from tests.servers.otlp_sink import SeenSpan, _spans
from tests.unit.tracing_rows import ORIGIN, STARTED, request, result, settings


def decoded(*spans: bytes, writer: SpanWriter | None = None) -> list[SeenSpan]:
    message = ExportTraceServiceRequest()
    message.ParseFromString((writer or SpanWriter(ORIGIN, settings())).request(list(spans)))
    return list(_spans(message))


def span_of(
    row: ChatResult, payload: bytes | None = None, first_token_s: float | None = None, **changes: Any
) -> SeenSpan:
    writer = SpanWriter(ORIGIN, settings(**changes))
    (span,) = decoded(writer.row(payload or request(row.row).payload, row, first_token_s), writer=writer)
    return span


def test_a_row_is_a_trace_with_one_generation_that_tells_all_of_it() -> None:
    asked = request(5, "안녕", temperature=0.6, max_tokens=100, tools=[{"type": "function"}], stream=False)
    row = result(5, reasoning="Let me think.", cached_tokens=2, attempts=3)
    span = span_of(row, asked.payload, first_token_s=0.25, environment="prod", release="v1.2")
    assert span.trace_id == row.trace_id == Langfuse.create_trace_id(seed=f"run-7:5:{5:032x}")
    assert span.parent == ""
    assert span.start_ns == 1764063000128456000
    assert span.end_ns - span.start_ns == 1_500_000_000
    assert span.status == 0
    attributes = span.attributes
    assert attributes["langfuse.observation.type"] == "generation"
    assert attributes["langfuse.observation.model.name"] == "qwen3"
    assert span.json("model.parameters") == {
        "temperature": 0.6,
        "max_tokens": 100,
        "tools": '[{"type":"function"}]',
        "stream": False,
    }
    assert span.json("input") == [{"role": "user", "content": "안녕"}]
    assert span.json("output") == {"role": "assistant", "content": "answer 5", "reasoning": "Let me think."}
    assert span.json("usage_details") == {"input": 10, "input_cached_tokens": 2, "output": 34, "total": 46}
    assert span.json("completion_start_time") == "2025-11-25T09:30:00.378456Z"
    assert attributes["session.id"] == "run-7/00003"
    assert attributes["langfuse.trace.tags"] == ["run:run-7", "pipeline:batch-inference", "model:qwen3"]
    assert attributes["langfuse.environment"] == "prod"
    assert attributes["langfuse.release"] == "v1.2"
    assert attributes["langfuse.internal.is_app_root"] is True
    metadata = {
        name.removeprefix("langfuse.observation.metadata."): value
        for name, value in attributes.items()
        if name.startswith("langfuse.observation.metadata.")
    }
    assert metadata == {
        "run": "run-7",
        "shard": "3",
        "kfp_run_id": "5b1f",
        "kfp_run_url": "https://kfp.example/#/runs/details/5b1f",
        "row": "5",
        "id": "row-5",
        "outcome": "ok",
        "attempts": "3",
        "finish_reason": "stop",
        "endpoint": "http://vllm:8000/v1",
    }
    assert attributes["langfuse.trace.metadata.kfp_run_url"] == "https://kfp.example/#/runs/details/5b1f"
    assert span.resource == {
        "service.name": "kubeflow-llm-inference",
        "langfuse.environment": "prod",
        "langfuse.release": "v1.2",
    }


def test_every_name_is_one_that_langfuse_knows() -> None:
    known = {value for name, value in vars(LangfuseOtelSpanAttributes).items() if name.isupper()}
    spans = [
        span_of(result(1, outcome=Outcome.FAILED, error_code="http_500", error_message="x"), first_token_s=1.0),
        span_of(result(2), environment="prod", release="1"),
    ]
    for name in {name for span in spans for name in span.attributes}:
        assert name in known or name.rsplit(".", 1)[0] in known, name


def test_a_failed_row_says_why_and_is_an_error() -> None:
    span = span_of(
        result(1, outcome=Outcome.FAILED, content=None, error_code="http_500", error_message="EngineCore died")
    )
    assert span.attributes["langfuse.observation.level"] == "ERROR"
    assert span.attributes["langfuse.observation.status_message"] == span.message == "http_500: EngineCore died"
    assert span.attributes["langfuse.observation.metadata.error_code"] == "http_500"
    assert span.status == 2
    assert "langfuse.observation.output" not in span.attributes
    cut = span_of(result(1, outcome=Outcome.TRUNCATED, error_code="length", error_message="raise max_tokens"))
    assert cut.attributes["langfuse.observation.level"] == "WARNING"
    assert cut.status == 0


def test_tool_calls_and_reasoning_tokens_are_told_where_they_are_known() -> None:
    raw = '{"usage":{"completion_tokens_details":{"reasoning_tokens":30}}}'
    span = span_of(result(1, content=None, tool_calls='[{"id":"1"}]', raw_response=raw))
    assert span.json("output") == {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert span.json("usage_details") == {"input": 12, "output": 4, "output_reasoning_tokens": 30, "total": 46}
    for odd in ('{"usage":{"reasoning_tokens":1}}', "reasoning_tokens", '{"usage":null,"reasoning_tokens":1}'):
        assert span_of(result(1, raw_response=odd)).json("usage_details")["output"] == 34
    assert "langfuse.observation.usage_details" not in (
        span_of(result(1, prompt_tokens=None, completion_tokens=None)).attributes
    )


def test_the_same_record_makes_the_same_span_and_another_execution_another_in_the_same_trace() -> None:
    first, again = span_of(result(4)), span_of(result(4))
    assert first == again
    later = span_of(result(4, started_at=STARTED + dt.timedelta(hours=1)))
    assert later.trace_id == first.trace_id
    assert later.span_id != first.span_id


def test_a_record_without_a_trace_or_a_time_has_no_span() -> None:
    for missing in ({"trace_id": None}, {"started_at": None}):
        with pytest.raises(ValueError, match="never sent"):
            SpanWriter(ORIGIN, settings()).row(request(1).payload, result(1, **missing))
        assert scores_of(request(1).payload, result(1, **missing), "") == []


@pytest.mark.parametrize("content", ["hash", "none"])
def test_masked_content_tells_nothing_of_prompt_or_answer(content: str) -> None:
    asked = request(
        1, "geheim prompt", stop=["geheim stop"], user="geheim user", seed=7, response_format={"schema": "geheim"}
    )
    row = result(
        1,
        outcome=Outcome.SCHEMA_INVALID,
        content="geheim answer",
        reasoning="geheim thought",
        error_code="schema",
        error_message="'geheim' is no integer",
    )
    span = span_of(row, asked.payload, content=content)
    assert "geheim" not in repr(span)
    assert span.json("model.parameters") == {"seed": 7}
    assert span.attributes["langfuse.observation.status_message"] == "schema"
    if content == "none":
        assert not {"langfuse.observation.input", "langfuse.observation.output"} & set(span.attributes)
    else:
        messages = b'[{"role":"user","content":"geheim prompt"}]'
        assert span.json("input") == {"sha256": hashlib.sha256(messages).hexdigest(), "bytes": len(messages)}
        assert span.json("output")["bytes"] > 10


def test_no_secret_of_a_request_or_an_error_reaches_a_span() -> None:
    asked = request(
        1,
        api_key="hunter-1",
        extra_body={"API-Key": "hunter-2", "nested": [{"client_secret": "hunter-3"}], "max_tokens": 5},
        extra_headers={"X-Whatever": "hunter-4"},
        tools=[{"type": "mcp", "authorization": "hunter-5", "headers": {"Auth": "hunter-6"}}],
        note="call with Bearer hunter-seven-7 or https://me:hunter-8@host/",
        max_completion_tokens=7,
        stop_token_ids=[1, 2],
        response_format={"schema": {"properties": {"password": {"type": "string"}}}},
    )
    row = result(
        1,
        outcome=Outcome.FAILED,
        error_code="http_500",
        error_message="key sk-hunterhunterhunter9 and Basic aHVudGVyOnRlbg==",
    )
    span = span_of(row, asked.payload)
    assert "hunter" not in repr(span)
    assert "aHVudGVy" not in repr(span)
    parameters = span.json("model.parameters")
    assert parameters["api_key"] == "***"
    assert parameters["max_completion_tokens"] == 7
    assert parameters["stop_token_ids"] == "[1,2]"
    assert json.loads(parameters["extra_body"]) == {
        "API-Key": "***",
        "nested": [{"client_secret": "***"}],
        "max_tokens": 5,
    }
    assert json.loads(parameters["response_format"])["schema"]["properties"]["password"] == {"type": "string"}


@given(st.dictionaries(st.text(max_size=8), st.recursive(st.text() | st.integers() | st.none(), st.lists)))
def test_masking_keeps_what_is_no_secret(body: dict[str, Any]) -> None:
    plain = {f"x{name}x": value for name, value in body.items() if not set(name) & set("kaspct")}
    if all(masked_text(str(value)) == str(value) for value in plain.values()):
        assert masked(plain) == plain


def test_odd_text_does_no_harm() -> None:
    payload = b'{"model":"m","messages":[{"role":"user","content":"\\ud83d alone"}]}'
    span = span_of(result(1, content="\ud800", model="", id="\udc00", prompt_tokens=None), payload)
    assert span.json("input") == [{"role": "user", "content": "? alone"}]
    assert span.attributes["langfuse.observation.model.name"] == "m"
    odd = Origin(run="실행 " * 100, shard=1, model="m" * 300)
    assert odd.session.isascii()
    assert len(odd.session) <= 200
    assert all(len(tag) <= 200 for tag in odd.tags())


def test_the_summary_is_a_trace_of_its_own() -> None:
    writer = SpanWriter(ORIGIN, settings())
    (span,) = decoded(writer.summary(1_000_000, 3_000_000, {"rows": 5, "api_key": "x"}))
    (again,) = decoded(writer.summary(1_000_000, 3_000_000, {"rows": 6}))
    assert (span.identity, span.name) == (again.identity, "shard summary")
    assert span.json("output") == {"rows": 5, "api_key": "***"}
    assert span.attributes["session.id"] == "run-7/00003"


@given(st.floats(0, 1), st.text("0123456789abcdef", min_size=32, max_size=32))
def test_sampling_follows_the_rule_of_the_sdk_and_keeps_what_went_wrong(rate: float, trace: str) -> None:
    assert keeps(result(1, trace_id=trace), rate) == (int(trace[16:], 16) < rate * 2**64 or rate >= 1)
    assert keeps(result(1, trace_id=trace, outcome=Outcome.EMPTY), rate)


def test_scores_tell_the_outcome_and_whether_a_schema_was_kept() -> None:
    plain = [json.loads(score) for score in scores_of(request(1).payload, result(1), "prod")]
    assert [(score["name"], score["value"], score["dataType"]) for score in plain] == [("outcome", "ok", "CATEGORICAL")]
    assert plain[0]["traceId"] == result(1).trace_id
    assert plain[0]["id"] == f"{result(1).trace_id}-outcome"
    assert plain[0]["timestamp"] == "2025-11-25T09:30:01.624456Z"
    assert plain[0]["environment"] == "prod"
    asked = request(1, response_format={"type": "json_schema"}).payload
    for outcome, value in ((Outcome.OK, 1), (Outcome.SCHEMA_INVALID, 0)):
        found = json.loads(scores_of(asked, result(1, outcome=outcome), "")[1])
        assert (found["name"], found["value"], found["dataType"]) == ("schema_valid", value, "BOOLEAN")
    assert len(scores_of(asked, result(1, outcome=Outcome.FAILED), "")) == 1


# ------------------------------------------------------------------------ wire


@given(st.lists(st.binary(max_size=300), max_size=5), st.text(max_size=300))
def test_a_request_is_taken_apart_and_put_together_again(spans: list[bytes], value: str) -> None:
    resource = wire.attribute("service.name", value, number=1)
    body = wire.request(resource, "scope", spans)
    assert wire.unpacked(wire.packed(body)) == body
    parts = wire.parts(body)
    assert parts[0] == resource
    assert parts[2] == spans
    assert wire.joined(*parts) == body


@given(st.sampled_from([0, 1, 60, 90, 110, 120, 127, 128, 129, 16383, 16384, 70000, 3_000_000]))
def test_attributes_of_every_length_are_well_formed(size: int) -> None:
    head = wire.field(1, b"a" * 16) + wire.field(2, b"b" * 8) + wire.eight(7, 1) + wire.eight(8, 2)
    span = head + wire.Attribute("some.key")(b"x" * size) + wire.attribute("number", size) + wire.attribute("minus", -1)
    (found,) = decoded(span)
    assert found.attributes == {"some.key": "x" * size, "number": size, "minus": -1}


def test_a_span_that_is_too_large_is_cut_where_its_texts_are_long_and_says_so() -> None:
    row = result(1, content="답" * 50_000, id="row-1")
    span = SpanWriter(ORIGIN, settings()).row(request(1, "x" * 1000).payload, row)
    shorter = wire.cut(span)
    assert shorter is not None
    (found,) = decoded(shorter)
    (whole,) = decoded(span)
    assert found.identity == whole.identity
    assert found.attributes[wire.CUT_MARK] == "true"
    assert found.json("input") == whole.json("input")
    output = found.attributes["langfuse.observation.output"]
    assert len(output.encode()) < 21_000
    assert "[cut here: too large for Langfuse, 1500" in output
    assert wire.cut(shorter) is None


@pytest.mark.parametrize(
    "damaged", [b"", b"\x1f\x8bxx", wire.packed(b"abc" * 100)[:-4], wire.packed(b"\x0a\x7fabc"), wire.packed(b"\x0f")]
)
def test_a_damaged_body_is_told_as_such(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut short|while decompressing"):
        wire.parts(wire.unpacked(damaged))


def test_times_are_written_as_langfuse_reads_them() -> None:
    assert iso_time(1764063000000000) == "2025-11-25T09:30:00.000000Z"
