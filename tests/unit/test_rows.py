import random
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clients.errors import SettingsError
from clients.prompts.cells import PLAIN_FIELDS
from clients.prompts.lines import BadLine, Line
from clients.prompts.rows import JobDefaults, Row, parse_row, request_hash
from clients.records import ChatRequest, InvalidRow
from clients.steps.boundary import whole_numbers

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)
FIELDS = st.sampled_from(
    [
        "prompt",
        "messages",
        "custom_id",
        "id",
        "method",
        "url",
        "body",
        "system",
        "extra_body",
        "model",
        "temperature",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "seed",
        "top_p",
        "response_format",
        "tools",
        "stream",
        "topic",
    ]
)
MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "system"]) | JSON, "content": TEXT | JSON}
)
PLAIN = st.dictionaries(FIELDS, JSON | st.lists(MESSAGE, max_size=3), max_size=6)


def line(fields: Any, number: int = 7) -> Line:
    return Line(
        row=number - 1, number=number, start=0, data=fields if isinstance(fields, bytes) else orjson.dumps(fields)
    )


def parse(fields: Any, **defaults: Any) -> Row:
    return parse_row(line(fields), JobDefaults(**{"model": "m", **defaults}))


def sent(fields: Any, **defaults: Any) -> ChatRequest:
    request = parse(fields, **defaults).request
    assert isinstance(request, ChatRequest), request
    return request


def refused(fields: Any, **defaults: Any) -> InvalidRow:
    request = parse(fields, **defaults).request
    assert isinstance(request, InvalidRow), request
    assert request.error_message.startswith("line 7: ")
    assert "\n" not in request.error_message
    return request


@given(st.one_of(JSON, PLAIN, PLAIN.map(lambda body: {"custom_id": "a", "body": body})))
def test_any_json_is_a_request_or_a_bad_row(fields: Any) -> None:
    row = parse(fields)
    if isinstance(row.request, InvalidRow):
        refused(fields)
    else:
        assert row.request.body["messages"]
        assert row.request.request_hash == request_hash(row.request.body)
    assert row.request.id
    if isinstance(fields, dict):
        assert all(fields[name] == value for name, value in row.carried.items())


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_bad_row(data: bytes) -> None:
    row = parse(data)
    assert row.request.row == 6


def shuffled(value: Any, order: random.Random) -> Any:
    if isinstance(value, dict):
        names = list(value)
        order.shuffle(names)
        return {name: shuffled(value[name], order) for name in names}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


BODIES = st.dictionaries(TEXT, JSON, max_size=4)


@given(BODIES, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_change_the_hash(body: dict[str, Any], order: random.Random) -> None:
    assert request_hash(body) == request_hash(shuffled(body, order))


@given(BODIES, BODIES)
def test_hashes_are_equal_exactly_when_the_requests_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    texts = [orjson.dumps(body, option=orjson.OPT_SORT_KEYS) for body in (one, other)]
    assert (request_hash(one) == request_hash(other)) == (texts[0] == texts[1])


REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "max_tokens": st.integers(1, 99),
        "seed": st.integers(0, 9),
        "stop": st.lists(TEXT, max_size=2),
        "model": st.sampled_from(["m", "other"]),
    },
)


@given(REQUEST, REQUEST)
def test_a_field_means_the_same_in_the_row_and_in_the_jobs_defaults(
    own: dict[str, Any], defaults: dict[str, Any]
) -> None:
    prompt = {"prompt": "Hello"}
    whole = sent({**prompt, **defaults, **own})
    assert sent({**prompt, **own}, request_defaults=defaults).request_hash == whole.request_hash
    assert sent({**prompt, "extra_body": own}, request_defaults=defaults).request_hash == whole.request_hash
    batch = {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "Hello"}], **own}}
    assert sent(batch, request_defaults=defaults).request_hash == whole.request_hash


def test_the_id_the_line_and_the_rows_own_columns_do_not_change_the_hash() -> None:
    first = sent({"prompt": "Hello"})
    assert sent({"topic": "x", "prompt": "Hello", "custom_id": "c", "id": 5}).request_hash == first.request_hash
    assert sent({"prompt": "Hello", "stream": True}).request_hash == first.request_hash
    assert sent({"prompt": "Hello"}, model="other").request_hash != first.request_hash
    assert sent({"prompt": "Hello!"}).request_hash != first.request_hash
    assert sent({"prompt": "Hello"}, system_prompt="Be kind").request_hash != first.request_hash


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "Hello", "stream": True, "stream_options": {}},
        {"prompt": "Hello", "extra_body": {"stream": True, "stream_options": {}}},
        {"body": {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "stream_options": {}}},
    ],
)
def test_how_the_answer_travels_is_not_part_of_the_request(fields: dict[str, Any]) -> None:
    body = sent(fields, request_defaults={"stream": True, "stream_options": {"include_usage": True}}).body
    assert not {"stream", "stream_options"} & body.keys()


@pytest.mark.parametrize("own", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("default", ["max_tokens", "max_completion_tokens"])
def test_the_rows_own_token_limit_replaces_the_jobs_under_either_name(own: str, default: str) -> None:
    body = sent({"prompt": "Hello", own: 5}, request_defaults={default: 9}).body
    assert {name: body[name] for name in body if name.startswith("max")} == {own: 5}


def test_several_choices_may_be_asked_for() -> None:
    assert sent({"prompt": "Hello", "n": 2}).body["n"] == 2


def test_null_takes_a_default_away() -> None:
    assert "max_tokens" not in sent({"prompt": "Hello", "max_tokens": None}, request_defaults={"max_tokens": 9}).body


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Own"}, {"role": "user", "content": "Hello"}],
        [{"role": "developer", "content": "Own"}, {"role": "user", "content": "Hello"}],
        [{"role": "user", "content": "Hello"}, {"role": "system", "content": "Own"}],
    ],
)
def test_a_row_with_a_system_message_of_its_own_keeps_it(messages: list[dict[str, str]]) -> None:
    assert sent({"messages": messages}, system_prompt="The job's").body["messages"] == messages


def test_the_jobs_system_prompt_comes_first_in_other_rows() -> None:
    body = sent({"prompt": "Hello"}, system_prompt="Be kind").body
    assert body["messages"] == [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hello"}]
    own = sent({"prompt": "Hello", "system": "Be brief"}, system_prompt="Be kind").body
    assert own["messages"][0] == {"role": "system", "content": "Be brief"}


@pytest.mark.parametrize(
    ("fields", "row_id", "named", "carried"),
    [
        ({"custom_id": "a"}, "a", True, {}),
        ({"id": "a"}, "a", True, {}),
        ({"id": 17}, "17", True, {}),
        ({"custom_id": "a", "id": "b"}, "a", True, {"id": "b"}),
        ({"id": ""}, "row-6", False, {"id": ""}),
        ({"id": True}, "row-6", False, {"id": True}),
        ({"id": 1.5}, "row-6", False, {"id": 1.5}),
        ({"id": None}, "row-6", False, {"id": None}),
        ({"row": 3, "user": "u", "metadata": {"a": 1}}, "row-6", False, {"row": 3, "user": "u", "metadata": {"a": 1}}),
    ],
)
def test_a_row_is_named_by_its_own_id_and_everything_else_is_carried(
    fields: dict[str, Any], row_id: str, named: bool, carried: dict[str, Any]
) -> None:
    row = parse({"prompt": "Hello", **fields})
    assert (row.request.id, row.named, row.carried) == (row_id, named, carried)
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    row = parse({"method": "POST", "url": "/v1/chat/completions", "body": body, **fields})
    assert (row.request.id, row.named, row.carried) == (row_id, named, carried)
    row = parse({"prompt": "", **fields})
    assert (row.request.id, row.named, row.carried) == (row_id, named, carried)


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"{", "not_json", "jq -c ."),
        (b'{"prompt": "Hello"} x', "not_json", "column 21"),
        (b'{"prompt": "\\ud800"}', "not_json", "surrogate"),
        (b'{"prompt": "a", "seed": NaN}', "not_json", "column"),
        (b'{"prompt": "a", "x": Infinity}', "not_json", "column"),
        (b'{"prompt": "a", "x": 1e999}', "not_json", "infinity"),
        (b'{"prompt": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "not_json", "depth"),
        (b'{"prompt": "a", "x": ' + b"[" * 500 + b"]" * 500 + b"}", "too_deep", "254 levels"),
        (b"[" * 500 + b"]" * 500, "too_deep", "254 levels"),
        (b'{"prompt": "a", "temperature": ' + b"[" * 500 + b"]" * 500 + b"}", "too_deep", "254 levels"),
        (b'{"prompt": "\xed\xa0\x80"}', "not_utf8", "byte 13"),
        (b'"Hello"', "not_an_object", "found text"),
        (b"[]", "not_an_object", "found a list"),
        (b"null", "not_an_object", "found nothing"),
        (b"17", "not_an_object", "found a number"),
        (b"{}", "no_prompt", "neither"),
    ],
)
def test_a_line_that_is_no_row_says_why(data: bytes, code: str, words: str) -> None:
    bad = refused(data)
    assert bad.error_code == code
    assert words in bad.error_message
    assert bad.id == "row-6"


def test_many_brackets_are_not_depth() -> None:
    nested = orjson.loads(b"[" * 250 + b"]" * 250)
    assert parse({"prompt": "Hello", "x": [[]] * 400, "y": nested}).carried["y"] == nested


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"prompt": "a", "messages": []}, "no_prompt", "found both"),
        ({"question": "a", "answer": "b"}, "no_prompt", 'neither (fields: ["answer","question"])'),
        ({"prompt": ""}, "wrong_type", 'found empty text ""'),
        ({"prompt": " \n"}, "wrong_type", "prompt must be text that is not empty"),
        ({"prompt": 5}, "wrong_type", "found a number"),
        ({"prompt": None}, "wrong_type", "found nothing"),
        ({"prompt": ["a"]}, "wrong_type", "found a list"),
        ({"prompt": "a", "custom_id": 5}, "wrong_type", "custom_id must be text, found a number"),
        ({"prompt": "a", "custom_id": ""}, "wrong_type", 'custom_id must be text, found empty text ""'),
        ({"prompt": "a", "system": 5}, "wrong_type", "system must be text"),
        ({"prompt": "a", "extra_body": [1]}, "wrong_type", "extra_body must be an object"),
        ({"prompt": "a", "model": 5}, "wrong_type", "model must be text, found 5"),
        (
            {"prompt": "a", "temperature": "0.5"},
            "wrong_type",
            'temperature must be a number of at least 0, found "0.5"',
        ),
        ({"prompt": "a", "temperature": -1}, "wrong_type", "found -1"),
        ({"prompt": "a", "temperature": True}, "wrong_type", "found true"),
        ({"prompt": "a", "top_p": 0}, "wrong_type", "top_p"),
        ({"prompt": "a", "max_tokens": 0}, "wrong_type", "max_tokens must be a whole number of at least 1, found 0"),
        ({"prompt": "a", "max_tokens": 1.5}, "wrong_type", "found 1.5"),
        ({"prompt": "a", "max_completion_tokens": "many"}, "wrong_type", "max_completion_tokens"),
        ({"prompt": "a", "seed": 0.5}, "wrong_type", "seed"),
        ({"prompt": "a", "n": 0}, "wrong_type", "n must be a whole number of at least 1, found 0"),
        ({"prompt": "a", "n": True}, "wrong_type", "n must be a whole number of at least 1, found true"),
        ({"prompt": "a", "response_format": "json"}, "wrong_type", "response_format must be an object"),
        ({"prompt": "a", "tools": {"x": "y" * 99}}, "wrong_type", "..."),
        ({"messages": "Hello"}, "wrong_type", "messages must be a list of at least one message, found text"),
        ({"messages": []}, "wrong_type", "at least one message"),
        ({"messages": ["Hello"]}, "wrong_type", "messages[0] must be an object with a role"),
        ({"messages": [{"role": [], "content": "a"}]}, "wrong_type", "messages[0]"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "wrong_type", "messages[0]"),
        ({"messages": [{"role": "user"}]}, "wrong_type", "messages[0].content must be text or a list, found nothing"),
        ({"body": "Hello"}, "wrong_type", "body must be an object"),
        ({"body": {}}, "wrong_type", "messages must be a list"),
        ({"body": {"messages": [{"role": "user", "content": "a"}]}, "method": "GET"}, "unsupported", 'found "GET"'),
        ({"body": {}, "url": "/v1/embeddings"}, "unsupported", "url must be /v1/chat/completions"),
        ({"body": {}, "url": ["x"]}, "unsupported", 'found ["x"]'),
    ],
)
def test_a_row_of_wrong_types_says_what_was_found(fields: dict[str, Any], code: str, words: str) -> None:
    bad = refused(fields)
    assert bad.error_code == code
    assert words in bad.error_message


def test_a_message_of_an_assistant_may_have_tool_calls_in_place_of_content() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": None}]
    assert sent({"messages": messages}).body["messages"] == messages


@given(JSON)
def test_whole_numbers_come_back_whole_from_kubeflow(value: Any) -> None:
    assert whole_numbers(value) == value
    assert orjson.loads(orjson.dumps(whole_numbers({"a": [1024.0, 0.5, True]}))) == {"a": [1024, 0.5, True]}


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"), min_size=1, max_size=6)
FILLED = TEXT.filter(str.strip)


class TestTemplate:
    """The user message from a row's columns."""

    @given(st.lists(st.tuples(TEXT, NAMES), min_size=1, max_size=4), TEXT, st.data())
    def test_a_message_is_the_template_with_each_name_replaced_by_its_value(
        self, pieces: list[tuple[str, str]], last: str, data: st.DataObject
    ) -> None:
        names = {name for _, name in pieces}
        assume(not names & PLAIN_FIELDS)
        values = data.draw(st.fixed_dictionaries(dict.fromkeys(sorted(names), FILLED)))
        template = "".join(f"{escaped(text)}{{{name}}}" for text, name in pieces) + escaped(last)
        expected = "".join(f"{text}{values[name]}" for text, name in pieces) + last
        row = parse(values, template=template)
        assert isinstance(row.request, ChatRequest)
        assert row.request.body["messages"] == [{"role": "user", "content": expected}]
        assert {**row.carried, **({"id": values["id"]} if "id" in values else {})} == values

    @pytest.mark.parametrize(
        ("template", "words"),
        [
            ("Hello", "names no column"),
            ("{{text}}", "names no column"),
            ("{", "'{' at character 1 names no column"),
            ("{text", "'{' at character 1"),
            ("text}", "'}' at character 5"),
            ("a {} b", "'{}' at character 3"),
            ("{a{b}}", "'{' at character 1"),
            ("\udcff{a}", "not UTF-8"),
        ],
    )
    def test_one_that_cannot_be_used_is_a_usage_error(self, template: str, words: str) -> None:
        with pytest.raises(SettingsError) as caught:
            JobDefaults(template=template)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["text.__class__", "text[0]", "text!r", "text:>9", "0", " text"])
    def test_a_name_is_nothing_but_a_name(self, name: str) -> None:
        assert refused({"text": "a"}, template=f"{{{name}}}").error_code == "no_column"
        assert sent({name: "a"}, template=f"{{{name}}}").body["messages"][0]["content"] == "a"

    @pytest.mark.parametrize("value", ["", " \n", None])
    def test_a_row_without_the_column_says_which_ones_it_has(self, value: str | None) -> None:
        assert refused({"title": "a", "body": "b"}, template="{text}").error_message == (
            "line 7: no column 'text'; the row has: title, body"
        )
        bad = refused({"title": "a", "text": value}, template="{title} {text}")
        assert (bad.error_code, bad.error_message) == (
            "no_column",
            "line 7: column 'text' is empty; the row has: title, text",
        )
        assert parse({"title": "a"}, template="{text}").carried == {"title": "a"}

    def test_what_is_not_text_stands_there_as_json(self) -> None:
        fields = {"a": 5, "b": 0.5, "c": True, "d": ["x", None], "e": {"k": "값"}}
        content = sent(fields, template="{a} {b} {c} {d} {e}").body["messages"][0]["content"]
        assert content == '5 0.5 true ["x",null] {"k":"값"}'

    def test_prompt_and_messages_and_a_body_are_columns_like_any_other(self) -> None:
        fields = {"prompt": "p", "messages": [], "body": "b", "url": "u", "max_tokens": 5, "system": "s", "n": None}
        row = parse(fields, template="{body}")
        assert isinstance(row.request, ChatRequest)
        assert row.request.body == {
            "model": "m",
            "max_tokens": 5,
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}],
        }
        assert row.carried == {"prompt": "p", "messages": [], "body": "b", "url": "u"}

    def test_a_column_may_be_both_data_and_a_field_of_the_request(self) -> None:
        row = parse({"id": 4, "max_tokens": 5}, template="{max_tokens} words")
        assert isinstance(row.request, ChatRequest)
        assert (row.request.id, row.request.body["max_tokens"], row.carried) == ("4", 5, {"max_tokens": 5})


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def test_what_a_format_finds_broken_is_a_bad_row_with_its_reason() -> None:
    bad = parse_row(BadLine(6, 7, 0, None, "wrong_cells", "3 cells"), JobDefaults()).request
    assert bad == InvalidRow(6, "row-6", "wrong_cells", "line 7: 3 cells")
