"""Whether an answer keeps to its row's response_format. Schemas come from the input: they are not trusted."""

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import orjson

#: CPU seconds for one check. A regular expression or a web of references can take longer than the universe.
_MAX_CHECK_S = 1.0


class _TooLongError(BaseException):
    """Internal: the time for a check is up; no `except Exception` on the way may swallow it."""


def wanted_format(body: Mapping[str, Any]) -> Any:
    """The response_format of a request, or what says the same in vLLM's `structured_outputs`."""
    guided = body.get("structured_outputs")
    if body.get("response_format") is None and isinstance(guided, Mapping):
        schema = guided.get("json")
        if isinstance(schema, str):
            with contextlib.suppress(orjson.JSONDecodeError):
                schema = orjson.loads(schema)
        if isinstance(schema, Mapping):
            return {"type": "json_schema", "json_schema": {"schema": schema}}
        if guided.get("json_object"):
            return {"type": "json_object"}
    return body.get("response_format")


def schema_problem(response_format: Any, content: str) -> str | None:
    """Why an answer breaks the row's response_format, or None."""
    if not isinstance(response_format, Mapping) or response_format.get("type") not in ("json_schema", "json_object"):
        return None
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        return f"the answer is not JSON: {error.msg}"
    if response_format["type"] == "json_object":
        return None if isinstance(value, dict) else "the answer is JSON but not an object"
    wrapper = response_format.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, Mapping) else None
    return _check(schema, value) if isinstance(schema, Mapping) else None


def _check(schema: Mapping[str, Any], value: Any) -> str | None:
    try:
        with _time_limit(_MAX_CHECK_S):
            error = next(_validator(orjson.dumps(schema)).iter_errors(value), None)
            if error is not None:
                return f"the answer breaks its json_schema at {error.json_path}: {error.message}"[:500]
    except _TooLongError:
        return f"the json_schema cannot be checked within {_MAX_CHECK_S:g} s"
    except Exception as error:  # noqa: BLE001  (a schema the checker cannot read is the row's data, not our failure)
        return f"the json_schema cannot be checked: {type(error).__name__}"
    return None


@functools.lru_cache(maxsize=64)
def _validator(schema: bytes) -> Any:
    """A validator that resolves references within the schema only: no network, no files."""
    import jsonschema
    from jsonschema.validators import validator_for
    from referencing.jsonschema import EMPTY_REGISTRY

    found = orjson.loads(schema)
    kind = validator_for(found, default=jsonschema.Draft202012Validator)
    kind.check_schema(found)
    return kind(found, registry=EMPTY_REGISTRY)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """End the block after so much CPU time; only in the main thread, where the batch runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_signum: int, _frame: FrameType | None) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
