"""One address that an endpoint's name stands for, and how its processes are looked at."""

import asyncio
import contextlib
import dataclasses
import ipaddress
import socket

from clients.batch.chat import ChatEndpoint
from clients.batch.connection import ClosedIdleError, Connection, Reply
from clients.batch.telemetry import Load, read_load
from clients.errors import ChatError, EndpointError, TransientError

#: Connections by which an address is asked whether more than one process answers there, and seconds for all of them.
_SCOUTS, _SCOUTING_S = 10, 2.0

#: Seconds for one answer beside the API.
_ASKING_S = 5.0


@dataclasses.dataclass(slots=True, eq=False)
class Site:
    """One address of an endpoint.

    Attributes:
        host: The address.
        tells_apart: Several processes answer here, as behind a Service, and each connection's is known.
        is_blind: Nothing tells whether one process answers here or several.
        has_telemetry: It says how much it has to do.
        missing: Looks in a row at which the endpoint's name did not stand for this address.
    """

    endpoint: ChatEndpoint
    host: str
    tells_apart: bool = False
    is_blind: bool = False
    has_telemetry: bool = True
    missing: int = 0

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.endpoint.port}"

    async def connect(self) -> Connection:
        """Open a connection; see `ChatEndpoint.connect`."""
        return await self.endpoint.connect(self.host)

    async def load(self, connection: Connection) -> Load | None:
        """What the process behind a connection says about its load; None when it says nothing."""
        reply = await self.ask(connection, "/metrics")
        return read_load(reply.body) if reply is not None and reply.status == 200 else None

    async def ask(self, connection: Connection, path: str) -> Reply | None:
        """GET a path beside the API; None, and the connection closed, when no answer comes in time."""
        try:
            async with asyncio.timeout(_ASKING_S):
                return await connection.send(self.endpoint.get(path))
        except (TimeoutError, ClosedIdleError, TransientError):
            connection.close()
            return None

    async def scout(self) -> set[str]:
        """The identities of the processes that answer here, as far as a few connections show; "" for one without.

        Raises:
            UnreachableError: nobody answers here.
        """
        found: set[str] = set()
        connections = [await self.connect()]
        with contextlib.suppress(ChatError, EndpointError, TimeoutError):
            async with asyncio.timeout(_SCOUTING_S):
                for _ in range(_SCOUTS):
                    load = await self.load(connections[-1])
                    if load is None:
                        break
                    found.add(load.identity)
                    connections.append(await self.connect())
        for connection in connections:
            connection.close()
        return found


async def addresses(endpoint: ChatEndpoint) -> list[str]:
    """The addresses that an endpoint's name stands for now.

    Raises:
        OSError: it stands for none.
    """
    if is_address(endpoint.host):
        return [endpoint.host]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    if endpoint.host == "localhost":  # two families, one server
        return [await _first_that_answers(endpoint, [str(entry[4][0]) for entry in found])]
    family = socket.AF_INET if any(entry[0] == socket.AF_INET for entry in found) else found[0][0]
    return list(dict.fromkeys(str(entry[4][0]) for entry in found if entry[0] == family))


def is_address(host: str) -> bool:
    """Tell an IP address from a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _first_that_answers(endpoint: ChatEndpoint, hosts: list[str]) -> str:
    for host in hosts:
        with contextlib.suppress(ChatError):
            (await endpoint.connect(host)).close()
            return host
    return hosts[0]
