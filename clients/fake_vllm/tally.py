"""What the server counted, for benchmarks and tests to read at `/_tally`."""

import dataclasses
from array import array
from collections import Counter
from typing import Any

#: How much sooner than told a request may come again; clocks and loops are no more precise.
_TOLERANCE_S = 0.005


@dataclasses.dataclass(slots=True)
class TextRecord:
    """What came for one text.

    Attributes:
        requests: All of them.
        considered: Those that were not turned away at the door, and so could meet a fault.
        answers: How many complete good answers went out.
    """

    requests: int = 0
    considered: int = 0
    answers: int = 0


class Tally:
    """Counts since the start or the last reset. Times are seconds on the server's clock.

    Args:
        in_flight: Requests under way when the counting begins.
    """

    def __init__(self, in_flight: int = 0) -> None:
        self.texts: dict[bytes, TextRecord] = {}
        self.requests = 0
        self.answered = 0
        self.aborted = 0
        self.lost = 0
        self.reused_closed = 0
        self.statuses: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self.in_flight = self.peak_in_flight = in_flight
        self.retry_after_broken = 0
        self.tokens_repeated = 0
        self.first_request_at: float | None = None
        self.last_answer_at: float | None = None
        self._lengths = array("L")
        self._told_to_wait: dict[int, float] = {}

    def request_came(self, body: int, now: float) -> None:
        """Count a chat request, whatever becomes of it; `body` identifies its exact bytes."""
        self.requests += 1
        if self.first_request_at is None:
            self.first_request_at = now
        if self._told_to_wait and (until := self._told_to_wait.pop(body, None)) is not None:
            self.retry_after_broken += now < until - _TOLERANCE_S

    def record_of(self, mark: bytes) -> TextRecord:
        """The record of a text, from its first request on."""
        record = self.texts.get(mark)
        if record is None:
            record = self.texts[mark] = TextRecord()
        record.requests += 1
        return record

    def told_to_wait(self, body: int, until: float) -> None:
        """Remember that these bytes are not to be sent again before `until`."""
        self._told_to_wait[body] = until

    def job_started(self) -> None:
        """A request has a slot or a place in a queue."""
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def job_ended(self) -> None:
        """It has neither any more."""
        self.in_flight -= 1

    def answer_sent(self, record: TextRecord, tokens: int, now: float) -> None:
        """A complete good answer went out.

        Args:
            record: Of the text that was asked.
            tokens: Length of the answer.
            now: By `time.monotonic`.
        """
        self.answered += 1
        self.last_answer_at = now
        self._lengths.append(tokens)
        record.answers += 1
        if record.answers > 1:
            self.tokens_repeated += tokens

    def report(self, *, started_at: float, slots: int, slot_seconds: float, rows: bool) -> dict[str, Any]:
        """Everything as JSON.

        Args:
            started_at: When the server started; the times count from there.
            slots: Of all replicas together.
            slot_seconds: Sum over time of the slots in use.
            rows: With the counts of every text.
        """
        first, last = self.first_request_at, self.last_answer_at
        span = last - first if first is not None and last is not None else 0.0
        report: dict[str, Any] = {
            "requests": self.requests,
            "answered": self.answered,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "faults": dict(self.faults),
            "aborted": self.aborted,
            "lost": self.lost,
            "reused_closed": self.reused_closed,
            "distinct_texts": len(self.texts),
            "texts_answered": sum(record.answers > 0 for record in self.texts.values()),
            "repeated_work": sum(record.answers > 1 for record in self.texts.values()),
            "tokens_repeated": self.tokens_repeated,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "retry_after_broken": self.retry_after_broken,
            "slot_seconds": slot_seconds,
            "busy_share": slot_seconds / (slots * span) if span > 0 else None,
            "first_request_s": None if first is None else first - started_at,
            "last_answer_s": None if last is None else last - started_at,
            "makespan_s": span,
            "lengths": _summary(self._lengths),
        }
        if rows:
            report["rows"] = {
                mark[:6].hex(): {"requests": record.requests, "answers": record.answers}
                for mark, record in self.texts.items()
            }
        return report


def _summary(lengths: "array[int]") -> dict[str, float]:
    """Count, sum and quantiles of the tokens of the answers sent."""
    if not lengths:
        return {"count": 0, "sum": 0}
    ranked = sorted(lengths)
    quantiles = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        "count": len(ranked),
        "sum": sum(ranked),
        **{name: ranked[round(share * (len(ranked) - 1))] for name, share in quantiles.items()},
    }
