"""All replicas, the doors through which connections reach them, and what happens to both in time."""

import asyncio
import functools
import math
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import orjson

from clients.errors import EndpointError
from clients.fake_vllm.answers import AnswerModel
from clients.fake_vllm.batching import Batch
from clients.fake_vllm.faults import FaultPlan
from clients.fake_vllm.options import Options, Outage
from clients.fake_vllm.replica import Replica
from clients.fake_vllm.tally import Tally

#: Connections that may wait to be accepted; a client may open thousands at once.
_BACKLOG = 8192

_PORT_TRIES = 50


class Idle(Protocol):
    """A connection that can be closed when it is idle for too long."""

    def close(self) -> None:
        """End it with FIN."""


class Door:
    """One address, and the replicas behind it.

    Args:
        address: To listen on.
        replicas: Connections are spread over those that live, by chance.
    """

    def __init__(self, address: str, replicas: list[Replica]) -> None:
        self.address = address
        self.replicas = replicas
        self.server: asyncio.AbstractServer | None = None
        self._held: socket.socket | None = None

    @property
    def leads_somewhere(self) -> bool:
        """Whether a replica behind it lives."""
        return any(replica.alive for replica in self.replicas)

    def hold(self, port: int) -> int:
        """Take the port without listening: connections are refused, and nobody else gets it while the door is closed.

        Raises:
            OSError: it is not free.
        """
        self._held = self._bound(port)
        return int(self._held.getsockname()[1])

    async def open(self, port: int, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Listen."""
        if self._held is not None and sys.platform != "linux":  # elsewhere a held port cannot be listened on
            self._held.close()
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(protocol, sock=self._bound(port), backlog=_BACKLOG)

    def close(self) -> None:
        """Refuse connections."""
        if self.server is not None:
            self.server.close()
            self.server = None

    def release(self) -> None:
        """Close for good."""
        self.close()
        if self._held is not None:
            self._held.close()

    def _bound(self, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self.address, port))
        except OSError:
            sock.close()
            raise
        return sock


class Cluster:
    """A whole fake deployment.

    Args:
        options: What it is like.
        answers: What it says.
        faults: What goes wrong.

    Attributes:
        tally: What was counted.
        idle: Connections without a request, the longest idle first, and since when.
        port: Of every door.
    """

    def __init__(self, options: Options, answers: AnswerModel, faults: FaultPlan) -> None:
        self.options = options
        self.answers = answers
        self.faults = faults
        self.tally = Tally()
        self.idle: dict[Idle, float] = {}
        self.started_at = time.monotonic()
        self.replicas = [Replica(number, self._new_batch) for number in range(options.replicas)]
        shares = [[replica] for replica in self.replicas] if options.own_addresses else [self.replicas]
        self.doors = [Door(address, share) for address, share in zip(options.addresses, shares, strict=True)]
        self.port = self._bind()
        self._dice = random.Random(options.seed)  # noqa: S311 - which replica, not a secret
        self._changed = asyncio.Event()
        self._outages_armed = False
        self._timers: list[asyncio.TimerHandle] = []

    def urls(self) -> list[str]:
        """The base URL of every door."""
        return [f"http://{door.address}:{self.port}/v1" for door in self.doors]

    # ------------------------------------------------------------- for its connections

    def pick(self, door: Door) -> Replica | None:
        """The replica that a new connection reaches, if one lives."""
        alive = [replica for replica in door.replicas if replica.alive]
        return self._dice.choice(alive) if alive else None

    def is_ready(self, now: float) -> bool:
        """Whether the model is loaded."""
        return now - self.started_at >= self.options.not_ready_s

    def waiting(self) -> int:
        """Requests in all queues."""
        return sum(replica.load()[1] for replica in self.replicas)

    def chat_came(self) -> None:
        """The first chat request since the start or a reset sets the clock of the outages."""
        if self._outages_armed:
            return
        self._outages_armed = True
        loop = asyncio.get_running_loop()
        for outage in self.options.outages:
            self._timers.append(loop.call_later(outage.start_s, self._die, outage))
            self._timers.append(loop.call_later(outage.start_s + outage.seconds, self._revive, outage))

    def report(self, *, rows: bool) -> bytes:
        """The tally as JSON."""
        slot_seconds = sum(replica.slot_seconds() for replica in self.replicas)
        slots = self.options.slots * len(self.replicas)
        report = self.tally.report(started_at=self.started_at, slots=slots, slot_seconds=slot_seconds, rows=rows)
        return orjson.dumps(report | {"replicas": [self._replica_report(replica) for replica in self.replicas]})

    def reset(self) -> None:
        """Count anew; whoever is dead lives again, and the outages wait for the next chat request."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._outages_armed = False
        for replica in self.replicas:
            replica.reset()
            if not replica.alive:
                replica.start()
        self._changed.set()
        self.tally = Tally(in_flight=self.tally.in_flight)

    # -------------------------------------------------------------------------- life

    async def serve(self, protocol: Callable[[Door], asyncio.Protocol], announce: Callable[[list[str]], None]) -> None:
        """Open the doors whenever someone lives behind them; until cancelled.

        Args:
            protocol: Makes the server's side of a connection that came through a door.
            announce: Called once with the base URLs: when they can be reached, or with `closed_s` at once.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._close_idle())
            if self.options.closed_s:
                announce(self.urls())
                await asyncio.sleep(self.options.closed_s)
            await self._open_doors(protocol)
            if not self.options.closed_s:
                announce(self.urls())
            while True:
                await self._changed.wait()
                self._changed.clear()
                await self._open_doors(protocol)

    def close(self) -> None:
        """Close the doors for good."""
        for door in self.doors:
            door.release()

    # ------------------------------------------------------------------------ inside

    def _new_batch(self, now: float) -> Batch:
        options = self.options
        return Batch(slots=options.slots, steps=options.steps, prefill_s=options.prefill_s, now=now)

    def _bind(self) -> int:
        """Take one port on all addresses."""
        for tries_left in reversed(range(_PORT_TRIES)):
            port = self.options.port
            try:
                for door in self.doors:
                    port = door.hold(port)
            except OSError as error:
                self.close()
                if self.options.port or not tries_left:
                    raise EndpointError(
                        f"{door.address}:{port} cannot be listened on: {error.strerror}. Give another --port."
                    ) from error
            else:
                return port
        raise AssertionError("unreachable: the last try returns or raises")

    async def _open_doors(self, protocol: Callable[[Door], asyncio.Protocol]) -> None:
        for door in self.doors:
            if door.server is None and door.leads_somewhere:
                await door.open(self.port, functools.partial(protocol, door))

    async def _close_idle(self) -> None:
        keep_s = self.options.keep_alive_s
        if math.isinf(keep_s):
            return
        while True:
            await asyncio.sleep(max(0.01, keep_s / 50))
            oldest = time.monotonic() - keep_s
            for connection in list(self._idle_since_before(oldest)):
                del self.idle[connection]
                connection.close()

    def _idle_since_before(self, oldest: float) -> Iterator[Idle]:
        for connection, since in self.idle.items():
            if since > oldest:
                return
            yield connection

    def _die(self, outage: Outage) -> None:
        self.replicas[outage.replica].die()
        for door in self.doors:
            if not door.leads_somewhere:
                door.close()

    def _revive(self, outage: Outage) -> None:
        replica = self.replicas[outage.replica]
        if not replica.alive:  # another outage may have ended before
            replica.start()
            self._changed.set()

    def _replica_report(self, replica: Replica) -> dict[str, Any]:
        urls = self.urls()
        return {
            "url": urls[replica.index % len(urls)],
            "alive": replica.alive,
            "peak": replica.peak,
            "connections": len(replica.connections),
            "process_start_time_seconds": replica.started_at,
        }
