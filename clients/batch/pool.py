"""The replicas behind one or several endpoints: found, watched, and each given as much as it can work on."""

import asyncio
import collections
import contextlib
import dataclasses
import ipaddress
import logging
import random
import socket
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from clients.batch.chat import ChatEndpoint
from clients.batch.connection import ClosedIdleError, Connection, Reply
from clients.batch.controller import RESERVE, Change, ConcurrencyController
from clients.batch.replica import Address, Replica
from clients.batch.telemetry import Load, read_load, scaled
from clients.errors import ChatError, EndpointError, TransientError, UnreachableError
from clients.events import emit

logger = logging.getLogger(__name__)

#: Connections by which a single address is asked at first whether more than one process answers there.
_SCOUTS = 6

#: Seconds for that, however slow /metrics is.
_SCOUTING_S = 2.0

#: Fresh connections over which the load behind such an address is sampled where processes cannot be told apart.
_SAMPLES = 4

#: Reserve behind an address where several processes answer that cannot be told apart: chance spreads the requests.
_BLIND_RESERVE = 0.5

#: Seconds between two readings of /metrics: while the limit is being found, and afterwards.
_EAGER_S, _CALM_S = 0.05, 0.5

#: Seconds until /metrics is asked again where it did not answer, and for one answer of it.
_NO_TELEMETRY_S, _PROBE_TIMEOUT_S = 15.0, 5.0

#: Seconds between two tries to reach a replica that is down, and between two looks at the endpoint's addresses.
_RETURN_S, _RESOLVE_S = 0.5, 10.0

#: Looks in a row at which an address must be missing before it is given up; some names give out a few of many.
_MISSING = 3


@dataclasses.dataclass(slots=True)
class Site:
    """One address and the processes found behind it.

    Attributes:
        tells_apart: Several processes answer here, and each connection's is known.
        is_blind: Nothing tells whether one process answers here or several.
        missing: Looks in a row at which the endpoint's name did not stand for this address.
    """

    address: Address
    replicas: dict[str, Replica]
    tells_apart: bool = False
    is_blind: bool = False
    missing: int = 0


class Pool:
    """Hands out replicas to send to. An async context manager.

    Args:
        endpoints: At least one; all serve the same model.
        cap: Requests in flight over all replicas; None leaves it to the controllers.
        wait_s: Seconds without any replica that is up, after which EndpointError ends the run.

    Attributes:
        in_flight: Places that are taken.
        replicas: Every replica known.
    """

    def __init__(self, endpoints: Sequence[ChatEndpoint], *, cap: int | None = None, wait_s: float = 600.0) -> None:
        self._endpoints, self._cap, self._wait_s = endpoints, cap, wait_s
        self._sites: dict[tuple[str, str], Site] = {}
        self._turns: collections.deque[asyncio.Future[None]] = collections.deque()
        self._tasks = asyncio.TaskGroup()
        self._running: list[asyncio.Task[None]] = []
        self._down_since: float | None = None
        self._last_reason = "no address"
        self.in_flight = 0
        self.replicas: list[Replica] = []

    # --------------------------------------------------------------------- life

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._tasks.__aenter__()
        self._down_since = self._loop.time()
        for endpoint in self._endpoints:
            self._start(self._follow_addresses(endpoint))
        self._start(self._look_after())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        try:
            await self._tasks.__aexit__(kind, error, at)
        finally:
            for replica in self.replicas:
                replica.close_idle(self._loop.time(), older_than_s=-1)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._running.append(self._tasks.create_task(work))

    # ---------------------------------------------------------------- for the engine

    @property
    def limit(self) -> int:
        """Requests that may be in flight now, over all replicas that are up."""
        limit = sum(replica.controller.limit for replica in self.replicas if replica.is_up and not replica.is_retired)
        return limit if self._cap is None else min(limit, self._cap)

    @property
    def is_at_cap(self) -> bool:
        """Whether the limit set by hand is what holds requests back."""
        return self._cap is not None and self.in_flight >= self._cap

    async def acquire(self) -> Replica:
        """Wait for a replica with room, and take a place there."""
        while (replica := self.try_acquire()) is None:
            turn = self._loop.create_future()
            self._turns.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._wake()
                raise
        return replica

    def try_acquire(self, *, apart_from: Replica | None = None) -> Replica | None:
        """A place at the replica that is least full, if there is one; at another than `apart_from` where possible."""
        if self.is_at_cap:
            return None
        free = [replica for replica in self.replicas if replica.room > 0]
        others = [replica for replica in free if replica is not apart_from] or free
        if not others:
            return None
        chosen = min(others, key=lambda replica: replica.fullness)
        self._place(chosen, 1)
        return chosen

    def release(self, replica: Replica) -> None:
        """Give a place back."""
        self._place(replica, -1)
        self._wake()

    async def connect(self, replica: Replica) -> tuple[Replica, Connection]:
        """A new connection, and the replica it leads to: the wanted one if chance is willing, else one with room.

        The place taken at the wanted replica moves along.

        Raises:
            UnreachableError: none could be made; the replica is down then.
            EndpointError: TLS fails.
        """
        try:
            return await self._connect(replica)
        except UnreachableError as error:
            self.put_down(replica, str(error))
            raise

    def put_down(self, replica: Replica, reason: str, *, on_trial: bool = False) -> None:
        """Leave a replica alone until it shows that it is back."""
        if replica.is_up:
            emit(logger, "replica.down", replica=str(replica.address), reason=reason)
            replica.go_down(reason, on_trial=on_trial)
        self._last_reason = reason

    async def is_alive(self, replica: Replica) -> bool:
        """Try a new connection to a replica; it is put down when none can be made."""
        try:
            connection = await replica.endpoint.connect(replica.address.host)
        except UnreachableError as error:
            self.put_down(replica, str(error))
            return False
        replica.give_back(connection)
        return True

    def report(self, replica: Replica, change: Change | None) -> None:
        """Log a change of a limit, and let waiting rows use it."""
        if change is not None:
            emit(
                logger,
                "limiter.changed",
                replica=str(replica.address),
                old=change.old,
                new=change.new,
                reason=change.reason,
            )
            self._wake()

    # ------------------------------------------------------------------ connections

    def _place(self, replica: Replica, change: int) -> None:
        replica.in_flight += change
        self.in_flight += change

    def _wake(self) -> None:
        free = sum(max(0, replica.room) for replica in self.replicas)
        while self._turns and free > 0:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1

    async def _connect(self, replica: Replica) -> tuple[Replica, Connection]:
        site = self._sites[replica.endpoint.base_url, replica.address.host]
        for _ in range(2 * len(site.replicas) + 2):
            connection = await replica.endpoint.connect(replica.address.host)
            if not site.tells_apart:
                return replica, connection
            owner = await self._owner(site, connection)
            if owner is None or owner is replica:
                return replica, connection
            if owner.room > 0:
                self._place(replica, -1)
                self._place(owner, 1)
                return owner, connection
            owner.give_back(connection)
        return replica, await replica.endpoint.connect(replica.address.host)

    async def _owner(self, site: Site, connection: Connection) -> Replica | None:
        load = await self._read(site.address.endpoint, connection)
        if load is None or not load.identity:
            return None
        known = site.replicas.get(load.identity)
        return known or self._add_replica(site, load.identity)

    # -------------------------------------------------------------------- addresses

    async def _follow_addresses(self, endpoint: ChatEndpoint) -> None:
        """Keep the sites of one endpoint equal to the addresses that its name stands for."""
        while True:
            try:
                hosts = await self._resolve(endpoint)
            except OSError as error:
                self._last_reason = f"cannot connect: {error.strerror or error}"
                await asyncio.sleep(_RETURN_S)
                continue
            for host in hosts:
                site = self._sites.get((endpoint.base_url, host))
                if site is None:
                    await self._add_site(endpoint, host)
                else:
                    site.missing = 0
            self._retire_missing(endpoint, hosts)
            if _is_address(endpoint.host):
                return
            await asyncio.sleep(_RESOLVE_S)

    async def _resolve(self, endpoint: ChatEndpoint) -> list[str]:
        if _is_address(endpoint.host):
            return [endpoint.host]
        found = await self._loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        if endpoint.host == "localhost":  # two families, one server
            return [await self._first_that_answers(endpoint, [str(entry[4][0]) for entry in found])]
        families = {entry[0] for entry in found}
        family = socket.AF_INET if socket.AF_INET in families else found[0][0]
        return list(dict.fromkeys(str(entry[4][0]) for entry in found if entry[0] == family))

    async def _first_that_answers(self, endpoint: ChatEndpoint, hosts: list[str]) -> str:
        for host in hosts:
            with contextlib.suppress(ChatError):
                (await endpoint.connect(host)).close()
                return host
        return hosts[0]

    async def _add_site(self, endpoint: ChatEndpoint, host: str) -> None:
        site = Site(Address(endpoint, host), {})
        identities = await self._scout(site.address)
        site.tells_apart, site.is_blind = len(identities) > 1, not any(identities)
        self._sites[endpoint.base_url, host] = site
        for identity in sorted(identities) if site.tells_apart else [""]:
            self._add_replica(site, identity)
        self._wake()

    def _add_replica(self, site: Site, identity: str) -> Replica:
        controller = ConcurrencyController(cap=self._cap, reserve=_BLIND_RESERVE if site.is_blind else RESERVE)
        replica = site.replicas[identity] = Replica(site.address, identity, controller, self._loop.time())
        self.replicas.append(replica)
        emit(logger, "replica.found", replica=str(site.address), process=identity)
        self._start(self._watch(site, replica))
        return replica

    def _retire_missing(self, endpoint: ChatEndpoint, hosts: list[str]) -> None:
        for (base_url, host), site in list(self._sites.items()):
            if base_url != endpoint.base_url or host in hosts:
                continue
            site.missing += 1
            if site.missing >= _MISSING:
                del self._sites[base_url, host]
                for replica in site.replicas.values():
                    self._retire(replica)

    def _retire(self, replica: Replica) -> None:
        """Forget a replica; what it still works on comes to its end."""
        emit(logger, "replica.gone", replica=str(replica.address), process=replica.identity)
        replica.is_retired = True
        self.replicas.remove(replica)
        replica.changed.set()
        replica.close_idle(self._loop.time(), older_than_s=-1)

    async def _scout(self, address: Address) -> set[str]:
        """The processes that answer at one address, as far as a few connections show."""
        found: set[str] = set()
        connections: list[Connection] = []
        with contextlib.suppress(ChatError, EndpointError, TimeoutError):
            async with asyncio.timeout(_SCOUTING_S):
                for _ in range(_SCOUTS):
                    connections.append(await address.endpoint.connect(address.host))
                    load = await self._read(address.endpoint, connections[-1])
                    if load is None:
                        break
                    found.add(load.identity)
        for connection in connections:
            connection.close()
        return found

    # --------------------------------------------------------------------- watching

    async def _look_after(self) -> None:
        """Close idle connections, and give up when nothing has been up for too long."""
        while True:
            now = self._loop.time()
            for replica in self.replicas:
                replica.close_idle(now)
            if any(replica.is_up and not replica.is_retired for replica in self.replicas):
                self._down_since = None
            elif self._down_since is None:
                self._down_since = now
                emit(logger, "endpoint.unreachable", endpoint=self.names, reason=self._last_reason)
            elif now - self._down_since > self._wait_s:
                raise EndpointError(
                    f"{self.names} could not be reached for {self._wait_s:g} s ({self._last_reason}). "
                    "Committed rows are kept: bring the server back and run the same command again."
                )
            await asyncio.sleep(0.2)

    @property
    def names(self) -> str:
        """The endpoints' addresses, for messages."""
        return ", ".join(endpoint.base_url for endpoint in self._endpoints)

    async def _watch(self, site: Site, replica: Replica) -> None:
        """Read one replica's load while it is up; find out when it is back while it is down."""
        connection: Connection | None = None
        while not replica.is_retired:
            replica.changed.clear()
            if not replica.is_up:
                await self._come_back(site, replica)
                pause_s = _RETURN_S * (0.75 + 0.5 * random.random())  # noqa: S311  (jitter, not a secret)
            else:
                connection = await self._watched(site, replica, connection)
                pause_s = self._observe(replica, await self._load(site, replica, connection))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await replica.changed.wait()

    async def _watched(self, site: Site, replica: Replica, connection: Connection | None) -> Connection | None:
        """A connection to this replica that is used for its telemetry alone."""
        if connection is not None and connection.is_open:
            return connection
        for _ in range(2 * len(site.replicas) + 2):
            try:
                connection = await replica.endpoint.connect(replica.address.host)
            except UnreachableError as error:
                if not site.tells_apart:
                    self.put_down(replica, str(error))
                return None
            if not site.tells_apart or await self._owner(site, connection) is replica:
                return connection
            connection.close()
        if replica.in_flight == 0 or (replica.last_answer or 0) < self._loop.time() - 2.0:
            self.put_down(replica, "it no longer answers at its address")
        return None

    async def _load(self, site: Site, replica: Replica, connection: Connection | None) -> Load | None:
        if connection is None:
            return None
        load = await self._read(replica.endpoint, connection)
        if load is None or not site.is_blind:
            return None if load is not None and site.tells_apart and load.identity != replica.identity else load
        loads = [load]
        with contextlib.suppress(ChatError):
            for _ in range(_SAMPLES - 1):
                sample = await replica.endpoint.connect(replica.address.host)
                if (load := await self._read(replica.endpoint, sample)) is not None:
                    loads.append(load)
                sample.close()
        return scaled(loads, replica.in_flight)

    def _observe(self, replica: Replica, load: Load | None) -> float:
        """Pass a reading on; returns the seconds until the next."""
        if not replica.is_up:
            return _RETURN_S
        if load is None:
            return _CALM_S if replica.load is not None else _NO_TELEMETRY_S
        replica.load = load
        change = replica.controller.loaded(load, replica.in_flight, self._loop.time())
        self.report(replica, change)
        eager = not replica.controller.is_full and replica.room <= 0
        return _EAGER_S if eager or change is not None else _CALM_S

    async def _read(self, endpoint: ChatEndpoint, connection: Connection) -> Load | None:
        reply = await self._ask(connection, endpoint.get("/metrics"))
        return read_load(reply.body) if reply is not None and reply.status == 200 else None

    async def _come_back(self, site: Site, replica: Replica) -> None:
        try:
            connection = await replica.endpoint.connect(replica.address.host)
        except UnreachableError as error:
            self._last_reason = str(error)
            return
        if site.tells_apart and await self._owner(site, connection) is not replica:
            connection.close()
            return
        reply = await self._ask(connection, replica.endpoint.get("/health"))
        if reply is None or reply.status >= 500:
            connection.close()
            return
        replica.give_back(connection)
        replica.come_up(self._loop.time())
        emit(logger, "replica.up", replica=str(replica.address))
        self._wake()

    async def _ask(self, connection: Connection, request: bytes) -> Reply | None:
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                return await connection.send(request)
        except (TimeoutError, ClosedIdleError, TransientError):
            connection.close()
            return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
