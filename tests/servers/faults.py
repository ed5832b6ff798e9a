"""What can go wrong at a chat server, and the little language that tests ask for it in.

A directive stands in the text of the last user message: `[[fault:503x2]]` makes the first two requests with exactly
this text fail with 503; the third works. `x*`, or no count at all, means every time. Options follow a comma:
`[[fault:429x1,retry-after=0.2]]`. Several directives in one text come one after the other.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

WIRE_KINDS = frozenset(
    {
        "reset",  # RST before any byte of the answer
        "reset_body",  # RST in the middle of the body
        "truncated",  # Content-Length promises more than comes, then the connection ends in good order
        "hang",  # never answers; ends when the client or the server goes away
        "idle_close",  # a whole answer, then the connection is closed without having said so
        "reuse_reset",  # a whole answer, then RST for the next request on the same connection
        "html",  # 200 with a web page, as a proxy or a login screen would send
        "badjson",  # 200 with JSON that breaks off
        "nonobject",  # 200 with a JSON list
        "badutf8",  # 200 with bytes that are no UTF-8
        "stream_error",  # an error event in the middle of a stream; 500 if nothing is streamed
    }
)
ANSWER_KINDS = frozenset(
    {
        "slow",  # a good answer, late: `[[fault:slow,after=0.5]]`
        "nochoices",  # choices: []
        "nousage",  # usage: null
        "empty",  # content ""
        "null",  # content null, finish_reason stop
        "length",  # content, but cut off: finish_reason length
        "length_in_reasoning",  # cut off while thinking: content null, finish_reason length
        "refusal",  # content null, refusal text
        "filtered",  # finish_reason content_filter
        "toolcall",  # content null, one tool call
        "huge",  # an answer of 5 MB
        "schema_broken",  # content that is no JSON although a schema was asked for
        "schema_wrong",  # content that is JSON but breaks the schema
    }
)
_STATUS = re.compile(r"[45]\d\d")
_DIRECTIVE = re.compile(r"\[\[fault:([^\]]*)\]\]")
_SPEC = re.compile(r"(?P<kind>[a-z0-9_]+?)(?:x(?P<count>\d+|\*))?(?P<options>(?:,[a-z-]+=[^,]*)*)")


class ScriptError(Exception):
    """The test itself is wrong: a fault nobody knows, or a hook that raised."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: A status such as `503`, or one of `WIRE_KINDS` and `ANSWER_KINDS`.
        count: For how many requests of one text; infinite unless given.
        after_s: Seconds to wait before it happens.
        retry_after: The Retry-After header: seconds, or `date:SECONDS` for an HTTP date that far ahead.
    """

    kind: str
    count: float = math.inf
    after_s: float = 0.0
    retry_after: str | None = None

    def __post_init__(self) -> None:
        if self.status is None and self.kind not in WIRE_KINDS | ANSWER_KINDS:
            known = ", ".join(sorted(WIRE_KINDS | ANSWER_KINDS))
            raise ScriptError(f"unknown fault {self.kind!r}; known: any status 400 to 599, {known}")

    @property
    def status(self) -> int | None:
        """The HTTP status, when the fault is one."""
        return int(self.kind) if _STATUS.fullmatch(self.kind) else None


def parse_fault(spec: str) -> Fault:
    """The fault in `503x2,retry-after=1,after=0.1`."""
    match = _SPEC.fullmatch(spec.strip())
    if match is None:
        raise ScriptError(f"not a fault: {spec!r}; write kind[xCOUNT|x*][,retry-after=SECONDS][,after=SECONDS]")
    options = dict(part.split("=", 1) for part in match["options"].split(",") if part)
    retry_after, after = options.pop("retry-after", None), options.pop("after", "0")
    if options:
        raise ScriptError(f"unknown option {', '.join(options)} in fault {spec!r}; known: after, retry-after")
    count = math.inf if match["count"] in (None, "*") else int(match["count"])
    return Fault(kind=match["kind"], count=count, after_s=float(after), retry_after=retry_after)


def faults_in(text: str) -> list[Fault]:
    """Every fault that the directives in `text` ask for, in their order."""
    return [parse_fault(spec) for spec in _DIRECTIVE.findall(text)]


def without_directives(text: str) -> str:
    """`text` as a model would see it."""
    return _DIRECTIVE.sub("", text).strip()


def fault_of_turn(faults: list[Fault], turn: int) -> Fault | None:
    """The fault for the `turn`-th request (from 1) with a text that asks for `faults`."""
    for fault in faults:
        if turn <= fault.count:
            return fault
        turn -= int(fault.count)
    return None


Hook = Callable[["object"], "Fault | str | None"]


def first(count: int, spec: str) -> Hook:
    """A hook for `OpenAIServer.faults`: the first `count` requests, whatever their text."""
    left = iter(range(count))
    return lambda _request: None if next(left, None) is None else spec


def share(probability: float, spec: str, seed: int = 0) -> Hook:
    """A hook for `OpenAIServer.faults`: that share of all requests, in a sequence fixed by `seed`."""
    dice = random.Random(seed)
    return lambda _request: spec if dice.random() < probability else None
