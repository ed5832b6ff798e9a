"""Sends spans from threads of its own, in bounded memory, and knows what became of every row.

Rows go to the packer's thread, and packed to a few that send. What does not fit, what Langfuse does not take, and what
is left at the end goes to the spool. No row waits for any of it.
"""

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from clients.errors import StorageError
from clients.events import emit
from clients.tracing import wire
from clients.tracing.link import SCORES, TRACES, Link, Reply, Wants
from clients.tracing.packer import Batch, Packer, TracedRow
from clients.tracing.settings import TraceSettings
from clients.tracing.spans import SpanWriter
from clients.tracing.spool import Spool, rows_in
from clients.tracing.tracer import Contained, TraceCounts

logger = logging.getLogger(__name__)

#: Bytes of packed batches that wait to be sent.
_MAX_READY = 32 << 20

#: Requests under way at once: with batches of 512 rows they keep up with 2,000 rows/s where each takes a second.
SENDERS = 4

#: Times a batch is sent before it goes to the spool; seconds between them, doubled each time up to the last.
_TRIES, _FIRST_PAUSE_S, _LONGEST_PAUSE_S = 6, 0.5, 30.0

#: Rows that Langfuse calls malformed, each by itself, while it has accepted none: then it means all.
_MAX_SUSPECTS = 8


class Exporter:
    """See the module. Threads begin with it and end with `close`; none of them keeps the process alive.

    Args:
        settings: Where to.
        writer: Writes the spans.
        spool: For what cannot be sent; what is in it is sent when there is nothing better to do.

    Attributes:
        project_id: Of Langfuse, once it is known.
    """

    def __init__(self, settings: TraceSettings, writer: SpanWriter, spool: Spool) -> None:
        self._settings, self._writer, self._spool = settings, writer, spool
        self.project_id: str | None = None
        self._lock = threading.Condition()
        self._ready: deque[Batch] = deque()
        self._ready_bytes = 0
        self._flying: set[Batch] = set()
        self._files: deque[str] = deque()  # in the spool, to be sent
        self._own: dict[str, int] = {}  # of them those of this run, with their rows
        self._suspects: list[Batch] = []
        self._exported = self._dropped = self._replayed = 0
        self._not_before, self._failures = 0.0, 0
        self._is_unreachable = self._is_refused = self._is_over = False
        self._any_accepted = self._has_looked = False
        self._told: set[str] = set()
        self._links = [Link(settings) for _ in range(SENDERS)]
        self._senders = [
            threading.Thread(target=self._send, args=(link, number == 0), name=f"traces-{number}", daemon=True)
            for number, link in enumerate(self._links)
        ]
        self._packer = Packer(settings, writer, ready=self._add, drop=self._drop)
        for thread in self._senders:
            thread.start()

    def put(self, rows: Sequence[TracedRow], *, wait: bool = True) -> None:
        """Take rows; see `Packer.put`."""
        self._packer.put(rows, wait=wait)

    def lost(self, rows: int) -> None:
        """Count rows whose traces could not even be put."""
        with self._lock:
            self._dropped += rows

    def counts(self) -> TraceCounts:
        """What became of the rows so far."""
        with self._lock:
            return TraceCounts(
                exported=self._exported,
                spooled=sum(self._own.values()),
                dropped=self._dropped,
                replayed=self._replayed,
            )

    def close(self, deadline_s: float, summary: Callable[[TraceCounts], bytes | None]) -> TraceCounts:
        """Send what is left, keep what cannot be sent.

        Args:
            deadline_s: Seconds; the last fifth of them is for keeping.
            summary: Makes the span that is sent last, of the counts of all others.
        """
        end = time.monotonic() + deadline_s
        give_up = end - min(2.0, deadline_s / 5)
        if late := self._packer.finish(give_up - time.monotonic()):  # the spool hangs; a later run finds them owed
            self.lost(late)
        for batch in self._leftovers(give_up):
            self._keep(batch)
        for link in self._links:
            link.cut()
        counts = self.counts()
        if (span := summary(counts)) is not None:
            self._send_summary(wire.packed(self._writer.request([span])), end)
        self._spool.notes.flush()
        for thread in self._senders:
            thread.join(0.2)
        return counts

    # ------------------------------------------------------------------ ending

    def _leftovers(self, give_up: float) -> list[Batch]:
        """Wait until all is sent, or there is no use in waiting; what is left then is nobody else's any more."""
        with self._lock:
            while self._is_worth_waiting(give_up):
                self._lock.wait(min(0.2, max(0.0, give_up - time.monotonic())))
            self._is_over = True
            left = [*self._ready, *(batch for batch in self._flying if not batch.is_done), *self._suspects]
            self._flying.difference_update(left)
            self._ready.clear()
            self._suspects.clear()
            self._lock.notify_all()
            self._lock.wait_for(lambda: not self._flying, timeout=1.0)  # those are settled, but for a file
        return left

    def _is_worth_waiting(self, give_up: float) -> bool:
        """Whether there is something to send or to keep, and a hope that it succeeds in time. Called with the lock."""
        if not (self._ready or self._flying or not self._has_looked or (self._files and self._may_send_files)):
            return False
        is_hopeless = self._failures >= (2 if self._is_unreachable else 5) or self._not_before > give_up
        return time.monotonic() < give_up and (self._is_refused or not is_hopeless)

    def has_more(self, until: float) -> bool:
        """Whether `close` would have to wait, for someone who has time until then, by the monotonic clock."""
        with self._lock:
            return self._is_worth_waiting(until)

    @property
    def replayed(self) -> int:
        """See TraceCounts."""
        return self._replayed

    def _send_summary(self, body: bytes, end: float) -> None:
        link = Link(self._settings)
        left_s = min(self._settings.timeout_s, end - time.monotonic())
        if not self._is_refused and not self._failures and left_s > 0:
            if link.post(TRACES, body, timeout_s=left_s).wants is Wants.NOTHING:
                if self.project_id is None and end > time.monotonic():
                    self.project_id = link.project_id(min(1.0, end - time.monotonic()))
                link.close()
                return
            link.close()
        self._keep(Batch(body, 0))

    def _add(self, batch: Batch) -> None:
        with self._lock:
            fits = self._ready_bytes + len(batch.body) <= _MAX_READY and not self._is_over
            if fits:
                self._ready.append(batch)
                self._ready_bytes += len(batch.body)
                self._lock.notify_all()
        if not fits:
            self._keep(batch)

    # ------------------------------------------------------------------ sending

    def _send(self, link: Link, is_first: bool) -> None:
        if is_first:
            self._look_around(link)
        while (batch := self._next()) is not None:
            with Contained(functools.partial(self._give_up, batch)):
                self._settle(batch, self._posted(link, batch))
            with self._lock:
                if batch.is_done:
                    self._flying.discard(batch)
                self._lock.notify_all()
        link.close()

    def _give_up(self, batch: Batch, reason: str) -> None:
        batch.is_done = True
        self._drop(batch, reason)

    def _look_around(self, link: Link) -> None:
        try:
            names = self._spool.names()
        except StorageError as error:
            names = []
            self._tell("spool", reason=str(error))
        with self._lock:
            self._files.extendleft(reversed([name for name in names if name not in self._own]))
            self._has_looked = True
            self._lock.notify_all()
        self.project_id = link.project_id()

    @property
    def _may_send_files(self) -> bool:
        return not (self._failures or self._is_refused or self._ready)

    def _next(self) -> Batch | None:
        with self._lock:
            while not self._is_over:
                pause_s = 0.0 if self._is_refused else self._not_before - time.monotonic()
                if pause_s <= 0 and self._ready:
                    batch = self._ready.popleft()
                    self._ready_bytes -= len(batch.body)
                    self._flying.add(batch)
                    return batch
                if pause_s <= 0 and self._files and self._may_send_files:
                    name = self._files.popleft()
                    self._flying.add(batch := Batch(b"", rows_in(name), name=name))
                    return batch
                self._lock.wait(pause_s if pause_s > 0 and self._ready else None)
        return None

    def _posted(self, link: Link, batch: Batch) -> Reply | None:
        """None where it was not sent: there is no use in it, or its file cannot be read."""
        if self._is_refused or (batch.path == SCORES and not self._packer.takes_scores):
            return None
        if not batch.body:
            try:
                batch.body = self._spool.read(batch.name)
            except (StorageError, OSError) as error:
                self._tell("spool", reason=str(error))
                return None
        return link.post(batch.path, batch.body)

    def _settle(self, batch: Batch, reply: Reply | None) -> None:
        with self._lock:
            if batch not in self._flying:  # given up at the end of the run, and kept
                return
            batch.is_done = True
            if reply is not None and reply.wants is Wants.AGAIN and self._again(batch, reply):
                return
        if reply is None or reply.wants is Wants.AGAIN:
            self._keep(batch)
        elif batch.path == SCORES:
            self._settle_scores(reply)
        elif reply.wants is Wants.NOTHING:
            self._accepted(batch)
        elif reply.wants is Wants.PEACE:
            self._refused(reply)
            self._keep(batch)
        else:
            self._divide(batch, reply)

    def _again(self, batch: Batch, reply: Reply) -> bool:
        """Agree on a pause; whether the batch is sent once more after it. Called with the lock."""
        now = time.monotonic()
        self._is_unreachable = reply.status == 0
        if now >= self._not_before:  # not while others found the same
            self._failures += 1
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(10, self._failures - 1))
            self._not_before = now + (pause_s if reply.retry_after_s is None else reply.retry_after_s)
        batch.tries += 1
        self._tell("waiting", reason=reply.reason, base_url=self._settings.base_url)
        if batch.tries >= _TRIES:
            return False
        batch.is_done = False
        self._flying.discard(batch)
        self._ready.appendleft(batch)
        self._ready_bytes += len(batch.body)
        return True

    def _accepted(self, batch: Batch) -> None:
        with self._lock:
            self._failures, self._not_before, self._any_accepted = 0, 0.0, True
            self._is_unreachable = False
            suspects, self._suspects = self._suspects, []
            if batch.name and batch.name not in self._own:
                self._replayed += batch.rows
            else:
                self._own.pop(batch.name, None)
                self._exported += batch.rows
        self._forget(batch)
        for suspect in suspects:
            self._drop(suspect, "Langfuse calls it malformed")

    def _settle_scores(self, reply: Reply) -> None:
        if reply.wants in (Wants.OTHERS, Wants.PEACE):
            self._packer.takes_scores = False
            self._tell("scores", reason=reply.reason, then="scores are not sent")

    def _refused(self, reply: Reply) -> None:
        self._is_refused = True
        mend = {
            401: "Set LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY to the keys of a project on this server",
            403: "Set the keys of a project that may still take traces",
            404: "Check LANGFUSE_BASE_URL; Langfuse before version 3 takes no traces of this kind",
        }.get(reply.status, "Check LANGFUSE_BASE_URL")
        self._tell(
            "refused",
            reason=f"{self._settings.base_url} refuses traces ({reply.reason}). {mend}; "
            "then send those that are kept with python -m clients.langfuse_utils replay",
            spool=self._spool.folder.location,
        )

    # ------------------------------------------------------------------ trouble

    def _divide(self, batch: Batch, reply: Reply) -> None:
        """Find out which of a batch's spans Langfuse means, by halves."""
        try:
            resource, scope, spans = wire.parts(wire.unpacked(batch.body))
        except ValueError as error:
            self._drop(batch, f"its file is damaged: {error}")
            return
        if len(spans) > 1:
            middle = len(spans) // 2
            halves = [(spans[:middle], batch.keys[: 8 * middle]), (spans[middle:], batch.keys[8 * middle :])]
            self._replace(
                batch,
                [Batch(wire.packed(wire.joined(resource, scope, half)), len(half), keys) for half, keys in halves],
            )
        elif reply.wants is Wants.LESS and spans and (shorter := wire.cut(spans[0])) is not None:
            self._tell("cut", reason=f"Langfuse finds a row too large ({reply.reason}); it is cut and says so")
            self._replace(batch, [Batch(wire.packed(wire.joined(resource, scope, [shorter])), batch.rows, batch.keys)])
        elif self._any_accepted:
            self._drop(batch, reply.reason)
        else:
            self._suspect(batch, reply)

    def _replace(self, batch: Batch, others: list[Batch]) -> None:
        """Send these instead; what was in a file stays in files."""
        if batch.name:
            try:
                for other in others:
                    other.name = self._spool.keep(other.body, other.rows)
            except StorageError as error:  # the whole stays
                self._tell("spool", reason=str(error))
                for other in filter(lambda other: other.name, others):
                    self._forget(other)
                return
            with self._lock:
                if self._own.pop(batch.name, None) is not None:
                    self._own.update((other.name, other.rows) for other in others)
            self._forget(batch)
        with self._lock:
            self._ready.extendleft(reversed(others))
            self._ready_bytes += sum(len(other.body) for other in others)
            self._lock.notify_all()

    def _suspect(self, batch: Batch, reply: Reply) -> None:
        with self._lock:
            self._suspects.append(batch)
            if len(self._suspects) < _MAX_SUSPECTS:
                return
            suspects, self._suspects = self._suspects, []
        self._refused(reply)
        for suspect in suspects:
            self._keep(suspect)

    def _keep(self, batch: Batch) -> None:
        if batch.name or batch.path == SCORES:
            return
        try:
            name = self._spool.keep(batch.body, batch.rows)
        except StorageError as error:
            self._drop(batch, str(error), settles=False)
            return
        self._spool.settle(batch.keys)
        with self._lock:
            self._own[name] = batch.rows
            self._files.append(name)
            self._lock.notify_all()

    def _drop(self, batch: Batch, reason: str, *, settles: bool = True) -> None:
        """Give a batch up for good; a later run does not try again, unless there was no place to keep it."""
        with self._lock:
            if not batch.name or self._own.pop(batch.name, None) is not None:
                self._dropped += batch.rows
        self._tell("dropped", rows=batch.rows, reason=reason)
        if settles:
            self._spool.drop(batch.name, batch.keys)

    def _forget(self, batch: Batch) -> None:
        if batch.name:
            self._spool.remove(batch.name)
        else:
            self._spool.settle(batch.keys)

    def _tell(self, what: str, **fields: object) -> None:
        """Say something once."""
        if what not in self._told:
            self._told.add(what)
            emit(logger, f"tracing.{what}", **fields)
