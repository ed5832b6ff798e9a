"""One process behind an endpoint: its connections, its limit, and whether it is up."""

import asyncio
import collections

from clients.batch.chat import ChatEndpoint
from clients.batch.connection import Connection
from clients.batch.controller import ConcurrencyController
from clients.batch.endpoint_address import Site
from clients.batch.telemetry import Load

#: vLLM closes an idle connection after 5 s; one that is closed just as it is used again would cost time.
KEEPALIVE_S = 4.0

#: So many connections, and this share of those in use, that break within so many seconds are the server's doing; fewer
#: are accidents of their requests.
_TOGETHER, _TOGETHER_SHARE, _TOGETHER_S = 8, 0.1, 0.15

#: So many different rows that fail one after another without any answer in between, for this many seconds.
_FAILING_ROWS, _FAILING_S = 10, 3.0


class Replica:
    """What the pool knows about one replica.

    Args:
        site: Where it answers.
        identity: What tells it from others at the same address; "" where there are no others.
        controller: Its limit.
        now: `loop.time()`.

    Attributes:
        in_flight: Requests sent to it and not answered yet.
        is_up: Whether it takes requests.
        on_trial: It is back from failing at everything; one request at a time until one is answered.
        down_since: When it went down.
        died_at: When it last stopped to answer after it had begun to; None before the first time.
        is_retired: Its address is no longer among those of the endpoint.
        last_answer: When it last answered a request; None before the first time.
        load: The latest reading of its telemetry, taken at `load_at` with `load_in_flight` requests in flight.
    """

    def __init__(self, site: Site, identity: str, controller: ConcurrencyController, now: float) -> None:
        self.site, self.identity, self.controller = site, identity, controller
        self.in_flight = 0
        self.is_up, self.on_trial, self.is_retired = True, False, False
        self.down_since = now
        self.died_at: float | None = None
        self.last_answer: float | None = None
        self.load: Load | None = None
        self.load_at, self.load_in_flight = now, 0
        self._idle: list[Connection] = []
        self._breaks: collections.deque[float] = collections.deque()
        self._failed_rows: set[int] = set()
        self._failing_since = now
        self.changed = asyncio.Event()

    @property
    def endpoint(self) -> ChatEndpoint:
        """The endpoint it belongs to."""
        return self.site.endpoint

    @property
    def room(self) -> int:
        """Requests that may be sent to it now."""
        if not self.is_up or self.is_retired:
            return 0
        return (1 if self.on_trial else self.controller.limit) - self.in_flight

    @property
    def fullness(self) -> float:
        """Share of its limit that is in use."""
        return self.in_flight / self.controller.limit

    def take_idle(self, now: float) -> Connection | None:
        """The connection used last, if it has not been idle for so long that the server may close it."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and now - connection.idle_since < KEEPALIVE_S:
                return connection
            connection.close()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        if connection.is_open:
            self._idle.append(connection)

    def close_idle(self, now: float, *, older_than_s: float = KEEPALIVE_S) -> None:
        """Close connections that nobody has needed for a while."""
        stale = [connection for connection in self._idle if now - connection.idle_since >= older_than_s]
        self._idle = [connection for connection in self._idle if now - connection.idle_since < older_than_s]
        for connection in stale:
            connection.close()

    def read(self, load: Load, now: float) -> None:
        """Note a reading of its telemetry."""
        self.load, self.load_at, self.load_in_flight = load, now, self.in_flight

    def answered(self, now: float) -> None:
        """Note an answer."""
        self.last_answer = now
        self._failing_since = now
        self._failed_rows.clear()
        self.on_trial = False

    def broke(self, now: float) -> None:
        """Note a broken connection."""
        self._breaks.append(now)

    def many_broke(self, now: float) -> bool:
        """Tell whether so many connections broke just now that it cannot be their requests' doing."""
        while self._breaks and now - self._breaks[0] > _TOGETHER_S:
            self._breaks.popleft()
        return len(self._breaks) >= max(_TOGETHER, _TOGETHER_SHARE * self.in_flight)

    def failed(self, row: int, now: float) -> bool:
        """Note a failure with an HTTP status; tells whether nothing but failures has come for too long."""
        self._failed_rows.add(row)
        return self.on_trial or (len(self._failed_rows) >= _FAILING_ROWS and now - self._failing_since > _FAILING_S)

    def go_down(self, now: float, *, on_trial: bool = False, died: bool = True) -> None:
        """Send nothing more until it shows that it is back."""
        self.is_up, self.down_since, self.on_trial = False, now, on_trial
        if died:
            self.died_at = now
        self._failed_rows.clear()
        self.changed.set()

    def come_up(self, now: float) -> None:
        """Take requests again."""
        self.is_up = True
        self._failing_since = now
        self._breaks.clear()
