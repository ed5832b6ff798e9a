"""What a shard has done so far, as numbers: the source of the progress events."""

import logging
import time
from collections import Counter
from collections.abc import Sequence

from clients.events import emit
from clients.records import ChatResult, Outcome

logger = logging.getLogger(__name__)

_OUTCOMES: Sequence[Outcome] = tuple(Outcome)
_END_OF = {outcome: 1 + place for place, outcome in enumerate(_OUTCOMES)}

#: Seconds between two progress events: often at first, when a person looks, then sparingly, for the pod's log.
_EARLY_INTERVAL_S, _INTERVAL_S, _EARLY_S = 1.0, 5.0, 120.0


class Progress:
    """Counts finished rows.

    Args:
        shard: Number of the shard.
        rows: Rows in it.
        first_row: Number of the first of them.
        joins: Whether rows may be joined.

    Attributes:
        outcomes: Of all rows that have one.
        output_tokens: Of rows that were sent now; so are `prompt_tokens`.
        retries: Requests that were sent again.
        in_flight: Requests under way, as of the last half second.
    """

    def __init__(self, *, shard: int, rows: int, first_row: int = 0, joins: bool = True) -> None:
        self.shard, self.rows, self._first_row = shard, rows, first_row
        self.outcomes: Counter[str] = Counter()
        self.last_error = ""
        self.joined = 0
        # 1 + the outcome's place in _OUTCOMES; 0 while it has none. Nobody asks for it where no rows are joined.
        self._end_of_row = bytearray(rows if joins else 0)
        self._followers: Counter[int] = Counter()  # of rows that have no outcome yet
        self.session_outcomes: Counter[str] = Counter()  # of rows that were sent now
        self.reused = self.retries = self.output_tokens = self.prompt_tokens = self.in_flight = 0
        self._started = time.monotonic()
        self._last_emit = -_INTERVAL_S

    def reuse(self, outcome: Outcome) -> None:
        """Count a row whose answer was committed earlier."""
        self.reused += 1
        self.outcomes[outcome] += 1

    def finish(self, result: ChatResult) -> None:
        """Count a row that was answered, refused or given up now."""
        self.outcomes[result.outcome] += 1 + (self._followers.pop(result.row, 0) if self._followers else 0)
        self.session_outcomes[result.outcome] += 1
        if self._end_of_row:
            self._end_of_row[result.row - self._first_row] = _END_OF[result.outcome]
        self.output_tokens += result.completion_tokens or 0
        self.prompt_tokens += result.prompt_tokens or 0

    def join(self, leader: int) -> None:
        """Count a row that shares the answer of an earlier row, which may have it already or not."""
        self.joined += 1
        if (end := self._end_of_row[leader - self._first_row]) > 0:
            self.outcomes[_OUTCOMES[end - 1]] += 1
        else:
            self._followers[leader] += 1

    def malformed(self) -> None:
        """Count a row that cannot be sent."""
        self.outcomes[Outcome.INVALID] += 1

    def report(self, *, in_flight: int, waiting: int, limit: int = 0, force: bool = False) -> None:
        """Emit a `shard.progress` event if one is due.

        Args:
            in_flight: Requests under way.
            waiting: Rows that wait for another attempt.
            limit: Requests that may be under way, over all replicas.
            force: Whether to emit it now, due or not.
        """
        self.in_flight = in_flight
        now = time.monotonic()
        interval = _EARLY_INTERVAL_S if now - self._started < _EARLY_S else _INTERVAL_S
        if not force and now - self._last_emit < interval - 0.05:
            return
        self._last_emit = now
        emit(
            logger,
            "shard.progress",
            shard=self.shard,
            rows=self.rows,
            done=self.outcomes.total(),
            reused=self.reused,
            joined=self.joined,
            ok=self.outcomes[Outcome.OK],
            outcomes=dict(self.outcomes),
            output_tokens=self.output_tokens,
            retries=self.retries,
            in_flight=in_flight,
            limit=limit,
            waiting=waiting,
            elapsed_s=round(now - self._started, 1),
        )
