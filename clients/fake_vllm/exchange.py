"""One chat request from its arrival to its answer, its fault, or its abandonment."""

import time
from typing import Protocol

from clients.fake_vllm import replies
from clients.fake_vllm.answers import Length, completion, events
from clients.fake_vllm.batching import Job
from clients.fake_vllm.chat import Asked, Refusal, read_request
from clients.fake_vllm.cluster import Cluster
from clients.fake_vllm.faults import STATUSES
from clients.fake_vllm.replica import Replica
from clients.fake_vllm.tally import TextRecord

#: What http_429 asks for.
_FAULT_WAIT_S = 1.0

_BROKEN_JSON = b'{"id": "chatcmpl-1", "object": "chat.completion", "choices": [{"index": 0, "mess'


class Line(Protocol):
    """The connection that the request came over."""

    keep: bool

    def send(self, data: bytes) -> None:
        """Send a whole reply; the next request may come."""

    def send_part(self, data: bytes, end: str) -> None:
        """Send a part of a reply, then `end`: "reset", "fin" or "silence"."""

    def send_last(self, data: bytes) -> None:
        """Send a whole reply, and close the connection without having said so."""


class Exchange:
    """What becomes of one request.

    Args:
        cluster: Where it came.
        replica: Who has it.
        line: Where it came from.
        answer_id: The id of the answer.
    """

    __slots__ = (
        "_answer_id",
        "_asked",
        "_cluster",
        "_fault",
        "_has_begun",
        "_job",
        "_lengths",
        "_line",
        "_record",
        "_replica",
    )

    _asked: Asked
    _lengths: tuple[Length, ...]
    _record: TextRecord

    def __init__(self, cluster: Cluster, replica: Replica, line: Line, answer_id: str) -> None:
        self._cluster = cluster
        self._replica = replica
        self._line = line
        self._answer_id = answer_id
        self._job: Job | None = None
        self._fault: str | None = None
        self._has_begun = False

    def begin(self, raw: bytes) -> None:
        """Refuse, fail or generate.

        Args:
            raw: The body.
        """
        cluster, now, body = self._cluster, time.monotonic(), hash(raw)
        tally = cluster.tally
        cluster.chat_came()
        tally.request_came(body, now)
        asked = read_request(raw, cluster.options.model, cluster.options.max_model_len)
        if isinstance(asked, Refusal):
            self._fail(asked.status, asked.message, param=asked.param)
            return
        self._asked = asked
        self._record = record = tally.record_of(asked.mark)
        if self._is_turned_away(body, now):
            return
        self._fault = fault = cluster.faults.fault_of(asked.mark, record.considered)
        record.considered += 1
        if fault is not None:
            tally.faults[fault] += 1
            if self._fails_at_once(fault, body, now):
                return
        self._generate()

    def abandon(self, *, lost: bool = False) -> None:
        """Stop: the client went away, or with `lost` the replica did."""
        tally = self._cluster.tally
        if lost:
            tally.lost += 1
        else:
            tally.aborted += 1
        job, self._job = self._job, None
        if job is not None:
            tally.job_ended()
            self._replica.cancel(job)

    # ------------------------------------------------------------------------ inside

    def _is_turned_away(self, body: int, now: float) -> bool:
        cluster, options = self._cluster, self._cluster.options
        if options.not_ready_s and not cluster.is_ready(now):
            self._fail(503, "The model is still loading.")
            return True
        if options.gateway_queue is None and options.max_queued is None:
            return False
        running, waiting = self._replica.load()
        if running < options.slots:
            return False
        if options.gateway_queue is not None and cluster.waiting() >= options.gateway_queue:
            cluster.tally.told_to_wait(body, now + options.retry_after_s)
            self._fail(429, "Too many requests: try again later.", retry_after_s=options.retry_after_s)
            return True
        if options.max_queued is not None and waiting >= options.max_queued:
            self._fail(503, "The server is overloaded: the request queue is full.")
            return True
        return False

    def _fails_at_once(self, fault: str, body: int, now: float) -> bool:
        if fault == "hang":
            return True
        if fault == "reject":
            self._fail(400, "This request can never work.")
            return True
        if fault not in STATUSES:
            return False
        wait_s = _FAULT_WAIT_S if fault == "http_429" else None
        if wait_s is not None:
            self._cluster.tally.told_to_wait(body, now + wait_s)
        self._fail(STATUSES[fault], "A fault by chance.", retry_after_s=wait_s)
        return True

    def _fail(self, status: int, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        self._cluster.tally.statuses[status] += 1
        keep = self._line.keep
        self._line.send(replies.error(status, message, param=param, retry_after_s=retry_after_s, keep=keep))

    def _generate(self) -> None:
        """Choices are taken to share one slot, which the longest of them holds."""
        self._lengths = lengths = self._cluster.answers.lengths(self._asked)
        tokens = max(length.tokens for length in lengths)
        if self._fault == "slow_reset":
            tokens = max(1, tokens // 2)
        self._cluster.tally.job_started()
        self._job = job = Job(tokens, self._finish, self._begin_stream if self._asked.stream else None)
        if self._cluster.options.instant:
            self._finish()
        else:
            self._replica.submit(job)

    def _begin_stream(self) -> None:
        """The generation begins: whoever asked for a stream hears of it."""
        if self._job is not None and self._fault != "slow_reset":
            self._has_begun = True
            head = replies.stream_head(keep=self._line.keep)
            self._line.send_part(head + replies.chunks(self._events()[:1]), "silence")

    def _finish(self) -> None:
        """The generation is complete."""
        if self._job is None:  # abandoned since
            return
        self._job = None
        tally, fault, line = self._cluster.tally, self._fault, self._line
        tally.job_ended()
        if fault == "slow_reset":
            line.send_part(b"", "reset")
            return
        self._replica.prompt_tokens += self._asked.prompt_tokens
        for length in self._lengths:
            self._replica.finished[length.finish] += 1
        tally.statuses[200] += 1
        answer = self._answer()
        if fault in (None, "idle_close"):
            tally.answer_sent(self._record, sum(length.tokens for length in self._lengths), time.monotonic())
            if fault is None:
                line.send(answer)
            else:
                line.send_last(answer)
        elif fault in ("bad_json", "no_choices"):
            line.send(answer)
        else:
            ends = {"reset": "reset", "truncated": "fin", "stall": "silence"}
            head = 0 if self._has_begun else answer.index(b"\r\n\r\n") + 4
            line.send_part(answer[: (head + len(answer)) // 2], ends[fault or ""])

    def _answer(self) -> bytes:
        model, asked, lengths = self._cluster.answers, self._asked, self._lengths
        empty, keep = self._fault == "no_choices", self._line.keep
        if self._has_begun:
            rest = [b"data: {\n\n"] if self._fault == "bad_json" else self._events()[1:]
            return replies.chunks(rest) + replies.STREAM_END
        if self._fault == "bad_json":
            return replies.reply(200, _BROKEN_JSON, keep=keep)
        if asked.stream:
            return replies.stream_head(keep=keep) + replies.chunks(self._events()) + replies.STREAM_END
        return replies.reply(200, completion(model, asked, lengths, self._answer_id, empty=empty), keep=keep)

    def _events(self) -> list[bytes]:
        model, empty = self._cluster.answers, self._fault == "no_choices"
        return events(model, self._asked, self._lengths, self._answer_id, empty=empty)
