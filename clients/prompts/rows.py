"""One input row becomes one request, or one reason why it cannot be sent. The same check plans, sends and reports."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from clients.prompts.cells import BATCH_FIELDS, PLAIN_FIELDS, REQUEST_FIELDS
from clients.prompts.source import MAX_LINE_BYTES, BadLine, Line
from clients.prompts.template import NoColumnError, template
from clients.records import ChatRequest, InvalidRow

_CHAT_URLS = ("/v1/chat/completions", "/chat/completions")

#: Levels of lists and objects that orjson writes.
_MAX_DEPTH = 254

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobDefaults:
    """What every row of a job shares unless the row says otherwise.

    Attributes:
        model: Model name for rows that name none; "" leaves it out (a dry check before the endpoint is known).
        system_prompt: First message of rows that have no system message of their own; "" for none.
        request_defaults: Request fields, such as `{"max_tokens": 1024, "temperature": 0.6}`.
        template: See Template; makes the user message from a row's columns, among which `prompt` and `messages` are
            two like any other. "" takes the row's own prompt or messages.

    Raises:
        SettingsError: the template cannot be used.
    """

    model: str = ""
    system_prompt: str = ""
    request_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    template: str = ""

    def __post_init__(self) -> None:
        if self.template:
            template(self.template)


@dataclasses.dataclass(slots=True)
class Row:
    """A parsed row.

    Attributes:
        request: What to send, or why nothing can be sent.
        carried: The row's own columns, in their order in the row.
        named: Whether the row brought its own id.
    """

    request: ChatRequest | InvalidRow
    carried: dict[str, Any]
    named: bool = False


class _BadRowError(Exception):
    """Internal: a code and a sentence, turned into an InvalidRow at once."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def parse_row(line: Line, defaults: JobDefaults) -> Row:
    """Turn one line into a request, or into an InvalidRow whose message names the line and the mend. Never raises."""
    fallback_id = _fallback_id(line)
    fields: dict[str, Any] = {}
    try:
        fields = _decode(line)
        row_id = _row_id(fields)
        body = _body(fields, defaults)
    except _BadRowError as error:
        message = f"{line.unit} {line.number}: {error}"
        row_id = _quiet_id(fields)
        bad = InvalidRow(line.row, row_id or fallback_id, error.code, message)
        return Row(bad, _carried(fields, row_id, defaults), row_id is not None)
    request = ChatRequest(line.row, row_id or fallback_id, request_hash(body), orjson.dumps(body))
    return Row(request, _carried(fields, row_id, defaults), row_id is not None)


def row_of(line: Line, hashed: str, defaults: JobDefaults) -> Row:
    """What `parse_row` finds in a line that can be sent and whose request has the hash given, without the payload.

    Args:
        line: The line.
        hashed: 32 hex digits, see `request_hash`.
        defaults: As for `parse_row`.
    """
    fields = orjson.loads(line.data or b"")
    row_id = _row_id(fields)
    request = ChatRequest(line.row, row_id or _fallback_id(line), hashed, b"")
    return Row(request, _carried(fields, row_id, defaults), row_id is not None)


def bare_row(line: Line, hashed: str) -> Row:
    """The same for a line that is known to have neither an id nor columns of its own."""
    return Row(ChatRequest(line.row, _fallback_id(line), hashed, b""), {})


def request_hash(body: Mapping[str, Any]) -> str:
    """32 hex digits that are equal exactly when two request bodies mean the same JSON value (key order aside)."""
    return hashlib.blake2b(orjson.dumps(body, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def _fallback_id(line: Line) -> str:
    return f"row-{line.row}"


def _decode(line: Line) -> dict[str, Any]:
    if isinstance(line, BadLine):
        raise _BadRowError(line.code, line.problem)
    if line.data is None:
        raise _BadRowError("too_long", f"longer than {MAX_LINE_BYTES >> 20} MiB; split the row")
    try:
        fields = orjson.loads(line.data)
    except orjson.JSONDecodeError as error:
        raise _not_json(line.data, error) from None
    if line.data.count(b"[") + line.data.count(b"{") > _MAX_DEPTH:  # only then is it worth a closer look
        _refuse_too_deep(fields)
    if not isinstance(fields, dict):
        raise _BadRowError("not_an_object", f'expected an object such as {{"prompt": "…"}}, found {_kind(fields)}')
    return fields


def _refuse_too_deep(fields: Any) -> None:
    """What can be read 1024 levels deep can be written only 254 deep, and has to be, to be sent and to be kept."""
    try:
        orjson.dumps(fields)
    except orjson.JSONEncodeError:
        raise _BadRowError("too_deep", f"nested deeper than {_MAX_DEPTH} levels; flatten the row") from None


def _not_json(data: bytes, error: orjson.JSONDecodeError) -> _BadRowError:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as bad:
        hint = "save the file as UTF-8 (from a Korean Windows: iconv -f CP949 -t UTF-8 FILE)"
        return _BadRowError("not_utf8", f"not UTF-8 at byte {bad.start + 1} of the line; {hint}")
    hint = "; one object may not span several lines (jq -c . FILE joins them)" if data.strip() == b"{" else ""
    return _BadRowError("not_json", f"not valid JSON: {error.msg} (column {error.colno}){hint}")


def _row_id(fields: Mapping[str, Any]) -> str | None:
    if "custom_id" in fields:
        value = fields["custom_id"]
        if not isinstance(value, str) or not value:
            raise _BadRowError("wrong_type", f"custom_id must be text, found {_kind(value)}")
        return value
    value = fields.get("id")
    if isinstance(value, str) and value:
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _quiet_id(fields: Mapping[str, Any]) -> str | None:
    try:
        return _row_id(fields)
    except _BadRowError:
        return None


def _body(fields: Mapping[str, Any], defaults: JobDefaults) -> dict[str, Any]:
    if _is_batch_line(fields) and not defaults.template:
        own = _batch_body(fields)
    else:
        own = _plain_body(fields, defaults.template)
    messages = own.pop("messages")
    if defaults.system_prompt and not any(message["role"] in ("system", "developer") for message in messages):
        messages = [{"role": "system", "content": defaults.system_prompt}, *messages]
    body = {"model": defaults.model, **defaults.request_defaults, **own, "messages": messages}
    if "max_tokens" in own or "max_completion_tokens" in own:  # two names for one thing: the row's own wins
        body = {k: v for k, v in body.items() if k in own or k not in ("max_tokens", "max_completion_tokens")}
    body.pop("stream", None)  # how the answer travels is the engine's choice, not part of the request
    body.pop("stream_options", None)
    _check_request(body)
    return body


def _is_batch_line(fields: Mapping[str, Any]) -> bool:
    return "body" in fields and "prompt" not in fields and "messages" not in fields


def _batch_body(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The request inside a line of the OpenAI batch format: custom_id, method, url, body."""
    body = fields["body"]
    if not isinstance(body, dict):
        raise _BadRowError("wrong_type", f"body must be an object, found {_kind(body)}")
    if (method := fields.get("method", "POST")) != "POST":
        raise _BadRowError("unsupported", f"method must be POST, found {_shown(method)}")
    if (url := fields.get("url", _CHAT_URLS[0])) not in _CHAT_URLS:
        raise _BadRowError("unsupported", f"url must be {_CHAT_URLS[0]}, found {_shown(url)}")
    return {**body, "messages": _messages(body.get("messages"))}


def _plain_body(fields: Mapping[str, Any], how: str) -> dict[str, Any]:
    messages = _filled(fields, how) if how else _own_messages(fields)
    extra = fields.get("extra_body") or {}
    if not isinstance(extra, dict):
        raise _BadRowError("wrong_type", f"extra_body must be an object, found {_kind(extra)}")
    if (system := fields.get("system")) is not None:
        if not isinstance(system, str):
            raise _BadRowError("wrong_type", f"system must be text, found {_kind(system)}")
        messages = [{"role": "system", "content": system}, *messages]
    own = {key: value for key, value in fields.items() if key in REQUEST_FIELDS}
    return {**own, **extra, "messages": messages}


def _filled(fields: Mapping[str, Any], how: str) -> list[dict[str, Any]]:
    try:
        return [{"role": "user", "content": template(how).fill(fields)}]
    except NoColumnError as error:
        raise _BadRowError("no_column", str(error)) from None


def _own_messages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    if ("prompt" in fields) == ("messages" in fields):
        mend = "--prompt-column NAME takes another column, --template TEXT makes a prompt from several"
        found = "both" if "prompt" in fields else f"neither (fields: {_shown(sorted(fields)[:8])}); {mend}"
        raise _BadRowError("no_prompt", f"expected one of prompt and messages, found {found}")
    if "messages" in fields:
        return _messages(fields["messages"])
    prompt = fields["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise _BadRowError("wrong_type", f"prompt must be text that is not empty, found {_kind(prompt)}")
    return [{"role": "user", "content": prompt}]


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise _BadRowError("wrong_type", f"messages must be a list of at least one message, found {_kind(messages)}")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise _BadRowError("wrong_type", f"messages[{at}] must be an object with a role among {', '.join(_ROLES)}")
        content = message.get("content")
        if not isinstance(content, str | list) and not (content is None and message["role"] == "assistant"):
            raise _BadRowError("wrong_type", f"messages[{at}].content must be text or a list, found {_kind(content)}")
    return messages


def _is_number(value: Any) -> bool:
    return type(value) is int or type(value) is float  # a bool is an int to isinstance


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 1 and float(value).is_integer()


#: field: (what it must be, check). Only what every server refuses: the rest is the server's to judge.
_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "model": ("text", lambda value: isinstance(value, str)),
    "temperature": ("a number of at least 0", lambda value: _is_number(value) and value >= 0),
    "top_p": ("a number above 0 and at most 1", lambda value: _is_number(value) and 0 < value <= 1),
    "max_tokens": ("a whole number of at least 1", _is_count),
    "max_completion_tokens": ("a whole number of at least 1", _is_count),
    "seed": ("a whole number", lambda value: _is_number(value) and float(value).is_integer()),
    "n": ("a whole number of at least 1", _is_count),
    "response_format": ("an object", lambda value: isinstance(value, dict)),
    "tools": ("a list", lambda value: isinstance(value, list)),
}


def _check_request(body: dict[str, Any]) -> None:
    for name, value in [*body.items()]:
        if (check := _CHECKS.get(name)) is None:
            continue
        expected, fits = check
        if value is None:
            del body[name]  # null means not given
        elif not fits(value):
            raise _BadRowError("wrong_type", f"{name} must be {expected}, found {_shown(value)}")


def _carried(fields: Mapping[str, Any], row_id: str | None, defaults: JobDefaults) -> dict[str, Any]:
    if defaults.template:  # a column may be both, a part of the message and a field of the request
        data = template(defaults.template).names | {"prompt", "messages"}
        own = {key: value for key, value in fields.items() if key not in PLAIN_FIELDS or key in data}
    else:
        taken = BATCH_FIELDS if _is_batch_line(fields) else PLAIN_FIELDS
        if fields.keys() <= taken:
            return {}
        own = {key: value for key, value in fields.items() if key not in taken}
    if row_id is not None and "custom_id" not in fields:
        del own["id"]  # it stands in the results already
    return own


def _kind(value: Any) -> str:
    names = {str: "text", list: "a list", dict: "an object", bool: "true or false", type(None): "nothing"}
    return 'empty text ""' if value == "" else names.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
