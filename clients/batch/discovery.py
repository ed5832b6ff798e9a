"""Which addresses an endpoint's name stands for, and which processes answer at each, as they come and go."""

import asyncio
from collections.abc import Callable

from clients.batch.chat import ChatEndpoint
from clients.batch.endpoint_address import Site, addresses
from clients.errors import UnreachableError

#: Seconds between two looks while the name stands for nothing that answers, and otherwise.
_SOON_S, _RESOLVE_S = 0.5, 10.0

#: Looks from one to the next of which an address is asked anew how many processes answer there.
_SCOUT_EVERY = 3

#: Looks in a row at which an address must be missing before it is given up; some names give out a few of many.
_MISSING = 3


class Discovery:
    """Follows one endpoint.

    Args:
        endpoint: The endpoint.
        found: Called with each process that is found; "" for one that cannot be told from others.
        gone: Called with an address whose processes are to be forgotten.
        failed: Called with the reason when there is nothing that answers.
    """

    def __init__(
        self,
        endpoint: ChatEndpoint,
        *,
        found: Callable[[Site, str], object],
        gone: Callable[[Site], object],
        failed: Callable[[str], object],
    ) -> None:
        self._endpoint, self._found, self._gone, self._failed = endpoint, found, gone, failed
        self._sites: list[Site] = []

    async def run(self) -> None:
        """Follow it until cancelled."""
        looks = 0
        while True:
            try:
                hosts = await addresses(self._endpoint)
            except OSError as error:
                self._failed(f"cannot connect: {error.strerror or error}")
                hosts = []
            known = list(self._sites)
            for host in hosts:
                if all(site.host != host for site in known):
                    await self._add(Site(self._endpoint, host))
            for site in known:
                site.missing = 0 if site.host in hosts or not hosts else site.missing + 1
                if site.missing >= _MISSING:
                    self._sites.remove(site)
                    self._gone(site)
                elif looks % _SCOUT_EVERY == 0:
                    await self._scout_again(site)
            looks += 1
            await asyncio.sleep(_RESOLVE_S if self._sites else _SOON_S)

    async def _add(self, site: Site) -> None:
        """Take an address in; one where nobody answers yet is looked at again soon."""
        try:
            identities = await site.scout()
        except UnreachableError as error:
            self._failed(str(error))
            return
        self._sites.append(site)
        self._learn(site, identities)

    async def _scout_again(self, site: Site) -> None:
        """Notice that a Service has got a second replica since, or that a server tells more than it did at first."""
        if site.tells_apart or (site.is_blind and site.has_telemetry):
            return
        try:
            identities = await site.scout()
        except UnreachableError:
            return
        if len(identities) > 1 or (identities and not site.has_telemetry):
            self._gone(site)
            self._learn(site, identities)

    def _learn(self, site: Site, identities: set[str]) -> None:
        site.tells_apart, site.is_blind = len(identities) > 1, not any(identities)
        site.has_telemetry = bool(identities)
        for identity in sorted(identities) if site.tells_apart else [""]:
            self._found(site, identity)
