import json
import socket
import time
from typing import Any

import pyarrow as pa
import pytest

from clients.batch import schemas
from clients.batch.answers import read_answer
from clients.errors import TransientError
from clients.records import ChatRequest, Outcome
from clients.results.schema import COLUMNS

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


def asking(schema: Any = None, **body: Any) -> ChatRequest:
    if schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return ChatRequest(0, "row-0", "0" * 32, json.dumps({"model": "m", "messages": [], **body}).encode())


def completion(finish: Any = "stop", usage: Any = None, **message: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


def outcome(payload: Any, request: ChatRequest | None = None) -> Outcome:
    fields = read_answer(request or asking(), payload)
    for name in set(fields) & set(COLUMNS.names):
        pa.array([fields[name]], COLUMNS.field(name).type)  # whatever a server sends must fit the results
    assert (fields["error_code"] is None) == (fields["outcome"] is Outcome.OK)
    return Outcome(fields["outcome"])


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (completion(content="Paris"), "ok"),
        (completion(content="Paris", finish=None), "ok"),
        (completion(content=None, tool_calls=[CALL], finish="tool_calls"), "ok"),
        (completion(content="", tool_calls=[CALL]), "ok"),
        (completion(content="Par", finish="length"), "truncated"),
        (completion(content=None, tool_calls=[CALL], finish="length"), "truncated"),
        (completion(content=None, reasoning="hm", finish="length"), "truncated_in_reasoning"),
        (completion(content="\n", reasoning="hm", finish="length"), "truncated_in_reasoning"),
        (completion(content="no", finish="content_filter"), "filtered"),
        (completion(content=None, refusal="I will not."), "filtered"),
        (completion(content=""), "empty"),
        (completion(content=" \n\t"), "empty"),
        (completion(content=None), "empty"),
        (completion(content=None, tool_calls=[]), "empty"),
        (completion(), "empty"),
    ],
)
def test_the_outcome_of_an_answer(payload: Any, expected: str) -> None:
    assert outcome(payload) == expected


def test_null_and_empty_content_stay_what_they_are() -> None:
    assert read_answer(asking(), completion(content=None))["content"] is None
    assert read_answer(asking(), completion(content=""))["content"] == ""


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_is_read_under_both_of_its_names(field: str) -> None:
    assert read_answer(asking(), completion(content="a", **{field: "because"}))["reasoning"] == "because"


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "안녕"}, {"type": "text", "text": "하세요"}, "?", {"type": "image"}]
    assert read_answer(asking(), completion(content=parts))["content"] == "안녕하세요"


def test_tool_calls_are_kept_as_json_beside_the_content() -> None:
    fields = read_answer(asking(logprobs=True), completion(content="see", tool_calls=[CALL], finish="tool_calls"))
    assert fields["content"] == "see"
    assert json.loads(fields["tool_calls"]) == [CALL]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, (None, None, None)),
        ([], (None, None, None)),
        ({"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}}, (3, 5, 2)),
        ({"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": None}, (3, 5, None)),
        (
            {"prompt_tokens": True, "completion_tokens": "5", "prompt_tokens_details": {"cached_tokens": 2.5}},
            (None,) * 3,
        ),
        ({"prompt_tokens": 1 << 63, "completion_tokens": -1}, (None, None, None)),
    ],
)
def test_token_counts_are_taken_only_if_they_are_counts(usage: Any, expected: tuple[int | None, ...]) -> None:
    payload = completion(content="a", usage=usage)
    assert outcome(payload) is Outcome.OK
    fields = read_answer(asking(), payload)
    assert (fields["prompt_tokens"], fields["completion_tokens"], fields["cached_tokens"]) == expected


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "payload",
    [
        None,
        "text",
        [1, 2],
        {},
        {"choices": None},
        {"choices": []},
        {"choices": {}},
        {"choices": [None]},
        {"choices": [{"text": "a completion, not a chat"}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": "hello"}]},
        completion(content=None, tool_calls=nested(600)),
        completion(content={"deep": nested(600)}),
    ],
)
def test_an_answer_without_a_choice_that_can_be_kept_is_worth_another_attempt(payload: Any) -> None:
    with pytest.raises(TransientError) as caught:
        read_answer(asking(), payload)
    assert caught.value.code == "no_choices"


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_an_answer_that_the_server_gave_up_is_worth_another_attempt(finish: str) -> None:
    with pytest.raises(TransientError) as caught:
        read_answer(asking(), completion(content="half an ans", finish=finish))
    assert caught.value.code == "aborted"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"name": "Kim", "age": 3}', "ok"),
        ('{"name": "김"}', "ok"),
        ('{"age": 3}', "schema_invalid"),
        ('{"name": "Kim", "age": "3"}', "schema_invalid"),
        ('{"name": "Kim"} as you asked', "schema_invalid"),
        ("```json\n{}\n```", "schema_invalid"),
    ],
)
def test_an_answer_is_held_against_the_schema_of_its_row(content: str, expected: str) -> None:
    assert outcome(completion(content=content), asking(PERSON)) == expected


def test_a_broken_schema_rule_is_named_with_its_place() -> None:
    message = read_answer(asking(PERSON), completion(content='{"name": "Kim", "age": "3"}'))["error_message"]
    assert message == "the answer breaks its json_schema at $.age: '3' is not of type 'integer'"


@pytest.mark.parametrize(
    ("response_format", "content", "expected"),
    [
        ({"type": "json_object"}, "{}", "ok"),
        ({"type": "json_object"}, "[]", "schema_invalid"),
        ({"type": "json_object"}, "text", "schema_invalid"),
        ({"type": "text"}, "text", "ok"),
        ({"type": "json_schema"}, "[]", "ok"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "[]", "ok"),
        ({"type": ["odd"]}, "text", "ok"),
        ("json", "text", "ok"),
    ],
)
def test_other_response_formats(response_format: Any, content: str, expected: str) -> None:
    assert outcome(completion(content=content), asking(response_format=response_format)) == expected


def test_a_truncated_answer_and_a_tool_call_are_not_held_against_the_schema() -> None:
    assert outcome(completion(content='{"na', finish="length"), asking(PERSON)) is Outcome.TRUNCATED
    assert outcome(completion(content=None, tool_calls=[CALL]), asking(PERSON)) is Outcome.OK


def test_references_within_a_schema_work() -> None:
    tree = {"$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "$ref": "#/$defs/node"}
    assert outcome(completion(content="[[], [[]]]"), asking(tree)) is Outcome.OK
    assert outcome(completion(content="[[], [1]]"), asking(tree)) is Outcome.SCHEMA_INVALID


@pytest.mark.parametrize("dialect", ["http://json-schema.org/draft-07/schema#", "https://example.com/own", 7])
def test_other_dialects_and_unknown_ones_raise_no_warning(dialect: Any) -> None:
    assert outcome(completion(content="3"), asking({"$schema": dialect, "type": "integer"})) in (
        Outcome.OK,
        Outcome.SCHEMA_INVALID,
    )


def test_a_remote_reference_in_a_schema_reaches_neither_the_network_nor_the_disk(tmp_path: Any) -> None:
    (tmp_path / "any.json").write_text("true")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        port = listener.getsockname()[1]
        for address in (f"http://127.0.0.1:{port}/schema.json", (tmp_path / "any.json").as_uri()):
            fields = read_answer(asking({"$ref": address}), completion(content="{}"))
            assert fields["outcome"] is Outcome.SCHEMA_INVALID
            assert "cannot be checked" in fields["error_message"]
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"pattern": "("},
        {"type": "string", "minLength": "x"},
    ],
)
def test_a_schema_that_cannot_be_checked_is_the_rows_problem(schema: Any) -> None:
    fields = read_answer(asking(schema), completion(content='"text"'))
    assert fields["outcome"] is Outcome.SCHEMA_INVALID
    assert "cannot be checked" in fields["error_message"]


def web(depth: int) -> dict[str, Any]:
    """A schema of a few lines that takes 3 ** depth checks."""
    defs: dict[str, Any] = {f"d{at}": {"allOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 3} for at in range(depth)}
    return {"$defs": {**defs, f"d{depth}": {"type": "string"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize("schema", [{"pattern": "^(a+)+$"}, web(40)], ids=["regex", "references"])
def test_a_schema_made_to_take_for_ever_is_given_up(schema: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "_MAX_CHECK_S", 0.1)
    start = time.monotonic()
    fields = read_answer(asking(schema), completion(content=json.dumps("a" * 40 + "!")))
    assert time.monotonic() - start < 3
    assert fields["outcome"] is Outcome.SCHEMA_INVALID
    assert "cannot be checked within 0.1 s" in fields["error_message"]
