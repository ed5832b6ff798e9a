"""A tracer that is on: remembers a row's request until its answer is committed, then hands both to the exporter."""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from clients.errors import LLMInferenceError
from clients.events import emit
from clients.records import ChatRequest, ChatResult
from clients.storage import Folder
from clients.tracing.exporter import Exporter
from clients.tracing.notes import SAMPLED_OUT
from clients.tracing.packer import TracedRow
from clients.tracing.settings import TraceSettings
from clients.tracing.spans import Origin, SpanWriter, keeps, microseconds
from clients.tracing.spool import Spool, row_key, unsettled
from clients.tracing.tracer import DEADLINE_S, Contained, TraceCounts

logger = logging.getLogger(__name__)


class LiveTracer:
    """See `Tracer` and `open_tracer`."""

    def __init__(
        self,
        settings: TraceSettings,
        origin: Origin,
        *,
        spool: Folder,
        notes: Folder | None = None,
        home: Folder | None = None,
        lasts: bool = True,
    ) -> None:
        self._settings, self._origin, self._lasts = settings, origin, lasts
        self._writer = SpanWriter(origin, settings)
        self._spool = Spool(spool, notes=notes)
        self._owed = _owed(self._spool, home)
        self._exporter = Exporter(settings, self._writer, self._spool)
        self._open: dict[int, tuple[bytes, float | None]] = {}
        self._rows = _Totals()
        self._sampled_out = 0
        self._counts: TraceCounts | None = None

    def trace_id(self, request: ChatRequest) -> str | None:
        """See Tracer, as what follows."""
        return self._origin.trace_id(request.row, request.request_hash)

    def finished(self, request: ChatRequest, result: ChatResult, *, first_token_s: float | None = None) -> None:
        """See Tracer."""
        if keeps(result, self._settings.sample_rate):
            self._open[result.row] = request.payload, first_token_s

    def committed(self, results: list[ChatResult]) -> None:
        """See Tracer."""
        rows, others = [], []
        for result in results:
            self._rows.add(result)
            if (found := self._open.pop(result.row, None)) is None:
                others.append(row_key(result))
            else:
                rows.append(TracedRow(found[0], result, found[1]))
        with Contained(functools.partial(self._lost, len(rows))):
            self._sampled_out += len(others)
            self._spool.notes.add(SAMPLED_OUT, b"".join(others))
            self._exporter.put(rows)

    def _lost(self, rows: int, reason: str) -> None:
        self._exporter.lost(rows)
        emit(logger, "tracing.failed", reason=reason)

    def reused(self, request: ChatRequest) -> None:
        """See Tracer."""
        if not self._owed or (result := self._owed.pop(request.row, None)) is None:
            return
        if result.request_hash == request.request_hash and keeps(result, self._settings.sample_rate):
            self._exporter.put([TracedRow(request.payload, result)], wait=False)

    def url_template(self) -> str | None:
        """See Tracer."""
        project = self._exporter.project_id
        # Without the project, which Langfuse was not there to tell: it leads from this address to the other one.
        return f"{self._settings.base_url}/{f'project/{project}/traces' if project else 'trace'}/{{trace_id}}"

    def counts(self) -> TraceCounts:
        """See Tracer."""
        return self._counts or dataclasses.replace(self._exporter.counts(), sampled_out=self._sampled_out)

    def totals(self) -> TraceCounts:
        """See Tracer."""
        own = self.counts()
        if not self._lasts:
            return own
        try:
            earlier = self._spool.earlier()
        except LLMInferenceError as error:
            emit(logger, "tracing.unsettled", reason=str(error), then="traces of earlier processes are not counted")
            return own
        return TraceCounts(**{name: number + vars(earlier)[name] for name, number in vars(own).items()})

    def close(self, *, deadline_s: float = DEADLINE_S, facts: Mapping[str, Any] | None = None) -> TraceCounts:
        """See Tracer."""
        if self._counts is None:
            counts = self._exporter.close(deadline_s, lambda counts: self._summary(self._told(counts), facts or {}))
            self._counts = self._told(counts)
            emit(logger, "tracing.closed", shard=self._origin.shard, **vars(self._counts))
        return self._counts

    def _told(self, counts: TraceCounts) -> TraceCounts:
        kept = counts.spooled if self._lasts else 0
        lost = counts.spooled - kept
        return dataclasses.replace(counts, spooled=kept, dropped=counts.dropped + lost, sampled_out=self._sampled_out)

    def _summary(self, counts: TraceCounts, facts: Mapping[str, Any]) -> bytes | None:
        """None where no row was committed: a run that finds all answered has nothing to add."""
        if self._rows.start_us is None:
            return None
        return self._writer.summary(
            self._rows.start_us, self._rows.end_us, {**self._rows.facts(), "traces": vars(counts), **facts}
        )


class _Totals:
    """What a shard's summary says of its rows."""

    def __init__(self) -> None:
        self.start_us: int | None = None
        self.end_us = 0
        self._outcomes: Counter[str] = Counter()
        self._prompt = self._output = self._cached = self._attempts = self._timed = 0
        self._latency_s = self._slowest_s = 0.0

    def add(self, result: ChatResult) -> None:
        """Count a row."""
        self._outcomes[result.outcome] += 1
        self._prompt += result.prompt_tokens or 0
        self._output += result.completion_tokens or 0
        self._cached += result.cached_tokens or 0
        self._attempts += result.attempts
        if result.started_at is None:
            return
        start_us, latency_s = microseconds(result.started_at), result.latency_s or 0.0
        self.start_us = start_us if self.start_us is None else min(self.start_us, start_us)
        self.end_us = max(self.end_us, start_us + round(latency_s * 1e6))
        self._timed += 1
        self._latency_s += latency_s
        self._slowest_s = max(self._slowest_s, latency_s)

    def facts(self) -> dict[str, Any]:
        """All of it."""
        return {
            "rows": self._outcomes.total(),
            "outcomes": dict(self._outcomes),
            "attempts": self._attempts,
            "tokens": {"input": self._prompt, "output": self._output, "input_cached": self._cached},
            "seconds": round((self.end_us - (self.start_us or 0)) / 1e6, 3),
            "latency_s": {"mean": round(self._latency_s / max(1, self._timed), 3), "max": round(self._slowest_s, 3)},
        }


def _owed(spool: Spool, home: Folder | None) -> dict[int, ChatResult]:
    if home is None:
        return {}
    with Contained(_cannot_settle):
        return unsettled(spool, home)
    return {}


def _cannot_settle(reason: str) -> None:
    emit(logger, "tracing.unsettled", reason=reason, then="traces that a killed run owes are not sent")
