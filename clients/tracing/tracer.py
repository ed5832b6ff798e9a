"""What the engine knows of tracing: an object that it tells of rows, which by default does nothing."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from clients.records import ChatRequest, ChatResult

if TYPE_CHECKING:
    from clients.storage import Folder
    from clients.tracing.settings import TraceSettings
    from clients.tracing.spans import Origin

#: Seconds by which tracing may delay the end of a run.
DEADLINE_S = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceCounts:
    """What became of the traces of the rows that a process, or several, committed; the four add up to these rows.

    Attributes:
        exported: Langfuse accepted them.
        spooled: They are in files; the next run or `python -m clients.langfuse_utils replay` sends them.
        dropped: They are gone: refused one by one, or there was no place to keep them.
        sampled_out: They were not to be traced.
        replayed: Rows of earlier processes whose files were sent now; not among the four.
    """

    exported: int = 0
    spooled: int = 0
    dropped: int = 0
    sampled_out: int = 0
    replayed: int = 0


class Contained:
    """Tracing never ends a run, and a row that cannot be shown hides no other: tell what went wrong inside, and go on.

    Args:
        tell: Gets it in one line.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        if isinstance(error, Exception):
            self._tell(f"{type(error).__name__}: {error}")
        return isinstance(error, Exception)


class Tracer(Protocol):
    """Makes traces of rows. No method raises, waits for a network, or takes more than microseconds but for `close`."""

    def trace_id(self, request: ChatRequest) -> str | None:
        """The id of the row's trace, 32 hex digits; None when tracing is off."""

    def finished(self, request: ChatRequest, result: ChatResult, *, first_token_s: float | None = None) -> None:
        """Take note of a row that has its outcome, until it is committed.

        Args:
            request: What was asked.
            result: Its record.
            first_token_s: Seconds from its start to its first token, where known.
        """

    def committed(self, results: list[ChatResult]) -> None:
        """Trace rows that were finished and are kept now. Called from the thread that keeps them."""

    def reused(self, request: ChatRequest) -> None:
        """Trace a row that an earlier run has answered, if that run was killed before it could."""

    def url_template(self) -> str | None:
        """Address of a trace's page, with `{trace_id}` in it; None when tracing is off."""

    def counts(self) -> TraceCounts:
        """What became of this process's rows so far."""

    def totals(self) -> TraceCounts:
        """After `close`: the same with the rows that processes before this one committed, as their notes tell."""

    def close(self, *, deadline_s: float = DEADLINE_S, facts: Mapping[str, Any] | None = None) -> TraceCounts:
        """Send what is left within the deadline, and the shard's summary; keep in files what could not be sent.

        Args:
            deadline_s: Seconds.
            facts: What else stands in the summary.
        """


class NoTracer:
    """Tracing that is off."""

    def trace_id(self, request: ChatRequest) -> None:  # noqa: D102
        return None

    def finished(self, request: ChatRequest, result: ChatResult, *, first_token_s: float | None = None) -> None:  # noqa: D102
        pass

    def committed(self, results: list[ChatResult]) -> None:  # noqa: D102
        pass

    def reused(self, request: ChatRequest) -> None:  # noqa: D102
        pass

    def url_template(self) -> None:  # noqa: D102
        return None

    def counts(self) -> TraceCounts:  # noqa: D102
        return TraceCounts()

    def totals(self) -> TraceCounts:  # noqa: D102
        return TraceCounts()

    def close(self, *, deadline_s: float = DEADLINE_S, facts: Mapping[str, Any] | None = None) -> TraceCounts:  # noqa: D102
        return TraceCounts()


def open_tracer(
    settings: "TraceSettings | None",
    origin: "Origin",
    *,
    spool: "Folder",
    notes: "Folder | None" = None,
    home: "Folder | None" = None,
    lasts: bool = True,
) -> Tracer:
    """A tracer for one shard; begins, in the background, to send what earlier runs left.

    Args:
        settings: None for off.
        origin: What all its traces have in common.
        spool: Folder of the shard for traces that cannot be sent. One process at a time: hold the shard's lock.
        notes: Folder of the shard for the notes of what was sent, which are counted together; None for the same.
        home: Folder of the shard's committed answers, whose traces a killed run may owe; its ledger is open already, so
            that it has taken up what was in the journal.
        lasts: Whether the folders outlive the process; where they do not, what is in files at the end is dropped.
    """
    if settings is None:
        return NoTracer()
    from clients.tracing.live import LiveTracer  # late: without keys nothing of it is loaded

    return LiveTracer(settings, origin, spool=spool, notes=notes, home=home, lasts=lasts)
