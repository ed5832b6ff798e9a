"""Makes requests of rows, in a thread of its own: spans are written, put together up to a size, and packed."""

import dataclasses
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from clients.records import ChatResult
from clients.tracing import wire
from clients.tracing.link import SCORES, TRACES
from clients.tracing.scores import MAX_SCORES, scores_of
from clients.tracing.settings import TraceSettings
from clients.tracing.spans import SpanWriter
from clients.tracing.spool import row_key
from clients.tracing.tracer import Contained

#: Bytes of spans in a request before it is packed: Langfuse Cloud refuses more than 5 MB.
MAX_BATCH_BYTES = 3_500_000

#: Bytes of rows that wait.
_MAX_INBOX = 64 << 20

#: Rows that are taken from the inbox at once.
_AT_A_TIME = 64

#: Seconds that the thread that commits rows waits for room in the inbox, before it gives a row's trace up.
_ROOM_S = 2.0


@dataclasses.dataclass(slots=True)
class TracedRow:
    """What a row's span is made of; see `SpanWriter.row`."""

    payload: bytes
    result: ChatResult
    first_token_s: float | None = None

    @property
    def size(self) -> int:
        """Bytes it holds, about."""
        return len(self.payload) + len(self.result.content or "") + len(self.result.reasoning or "") + 1000


@dataclasses.dataclass(slots=True, eq=False)
class Batch:
    """A request.

    Attributes:
        body: As it is posted; empty for a file that has not been read.
        rows: How many it has.
        keys: See `row_key`.
        name: The file that holds it already, or "".
        path: What it is posted to.
        tries: How often it was sent in vain.
        is_done: An answer has settled it.
    """

    body: bytes
    rows: int
    keys: bytes = b""
    name: str = ""
    path: str = TRACES
    tries: int = 0
    is_done: bool = False


class Packer:
    """See the module.

    Args:
        settings: How many rows a request has, and how long it waits for them.
        writer: Writes the spans.
        ready: Takes a request.
        drop: Takes what cannot be made one, and why.

    Attributes:
        takes_scores: Whether scores are made, too.
    """

    def __init__(
        self,
        settings: TraceSettings,
        writer: SpanWriter,
        *,
        ready: Callable[[Batch], None],
        drop: Callable[[Batch, str], None],
    ) -> None:
        self._settings, self._writer, self._ready, self._drop = settings, writer, ready, drop
        self.takes_scores = settings.scores
        self._changed = threading.Condition()
        self._inbox: deque[TracedRow] = deque()
        self._bytes = 0
        self._is_closing = False
        self._pile = _Pile()
        self._scores: list[str] = []
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def put(self, rows: Sequence[TracedRow], *, wait: bool = True) -> None:
        """Take rows. Waits for room, which is made at 20,000 rows a second, but not long."""
        until = time.monotonic() + (_ROOM_S if wait else 0.0)
        with self._changed:
            for at, row in enumerate(rows):
                while self._bytes > _MAX_INBOX:
                    if not self._changed.wait(max(0.0, until - time.monotonic())):
                        self._drop(Batch(b"", len(rows) - at), "rows come faster than their traces can be kept")
                        return
                self._inbox.append(row)
                self._bytes += row.size
            self._changed.notify_all()

    def finish(self, timeout_s: float) -> int:
        """Make the last requests; returns the rows that this was too short for, of which nothing is made any more."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            left = len(self._inbox)
            self._inbox.clear()
        return left

    def _drop_row(self, row: TracedRow, reason: str) -> None:
        self._drop(Batch(b"", 1, row_key(row.result)), reason)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            rows, is_last = self._next()
            for row in rows:
                with Contained(functools.partial(self._drop_row, row)):
                    self._write(row)
            if self._pile.spans and (is_last or self._pile.age_s >= self._settings.flush_interval_s):
                self._pack()
            while self._scores and (is_last or len(self._scores) >= MAX_SCORES):
                body = f"[{','.join(self._scores[:MAX_SCORES])}]".encode()
                del self._scores[:MAX_SCORES]
                self._ready(Batch(body, 0, path=SCORES))

    def _next(self) -> tuple[list[TracedRow], bool]:
        """Some rows, or none when those that wait have waited long enough; and whether they are the last."""
        with self._changed:
            while not self._inbox and not self._is_closing:
                left_s = self._settings.flush_interval_s - self._pile.age_s if self._pile.spans else None
                if left_s is not None and left_s <= 0:
                    break
                self._changed.wait(left_s)
            rows = [self._inbox.popleft() for _ in range(min(_AT_A_TIME, len(self._inbox)))]
            self._bytes -= sum(row.size for row in rows)
            self._changed.notify_all()
            return rows, self._is_closing and not self._inbox

    def _write(self, row: TracedRow) -> None:
        span = self._writer.row(row.payload, row.result, row.first_token_s)
        if self._pile.spans and self._pile.size + len(span) > MAX_BATCH_BYTES:
            self._pack()
        self._pile.add(span, row_key(row.result))
        if len(self._pile.spans) >= self._settings.flush_at:
            self._pack()
        if self.takes_scores:
            self._scores += scores_of(row.payload, row.result, self._settings.environment)

    def _pack(self) -> None:
        pile, self._pile = self._pile, _Pile()
        self._ready(Batch(wire.packed(self._writer.request(pile.spans)), len(pile.spans), b"".join(pile.keys)))


class _Pile:
    """Spans that become a request."""

    def __init__(self) -> None:
        self.spans: list[bytes] = []
        self.keys: list[bytes] = []
        self.size = 0
        self._since = 0.0

    def add(self, span: bytes, key: bytes) -> None:
        if not self.spans:
            self._since = time.monotonic()
        self.spans.append(span)
        self.keys.append(key)
        self.size += len(span)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._since
