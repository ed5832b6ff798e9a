"""Whether a failed request is its row's failure, or that of a server which is going down, overloaded or not up yet."""

import asyncio

from clients.batch.connection import ClosedIdleError
from clients.batch.flights import Flight, Flights
from clients.batch.pool import Pool
from clients.batch.replica import Replica
from clients.errors import ChatError, OverloadedError, RejectedError, UnreachableError

#: Seconds within which the other connections of a replica that is going break, too.
_OTHERS_BREAK_S = 0.05


async def costs_an_attempt(flight: Flight, error: ChatError, pool: Pool, flights: Flights) -> bool:
    """Judge a failure, and tell the pool what it says about the replica.

    Args:
        flight: The request that failed.
        error: What it failed with.
        pool: The replicas.
        flights: Told of broken connections and answers.

    Returns:
        False where the replica is to blame and the row may go out again at no cost.
    """
    replica, now = flight.replica, asyncio.get_running_loop().time()
    if isinstance(error, UnreachableError):
        return False
    if isinstance(error, ClosedIdleError) and not flight.work.needs_fresh:
        flight.work.needs_fresh = True
        return False
    if isinstance(error, RejectedError):
        return flight.sounding is None  # perhaps the server knows no streams
    if isinstance(error, OverloadedError):
        works = replica.load is not None and replica.load.running > 0
        if replica.last_answer is None and not flights.any_answered and error.retry_after_s is None and not works:
            pool.put_down(replica, f"it is not ready ({error.code.removeprefix('http_')})", died=False)
            return False
        pool.report(replica, replica.controller.refused(replica.in_flight, now))
    else:
        flights.any_broken = True
    if error.code == "connection":
        return not await _is_going(replica, pool)
    if error.code.startswith("http_5") and replica.failed(flight.work.request.row, now):
        pool.put_down(replica, f"it answers nothing but {error.code.removeprefix('http_')}", on_trial=True, died=False)
        return False
    return True


async def _is_going(replica: Replica, pool: Pool) -> bool:
    """Whether a connection broke because its server goes, and not because of its request."""
    loop = asyncio.get_running_loop()
    replica.broke(loop.time())
    await asyncio.sleep(_OTHERS_BREAK_S)
    if not replica.is_up or replica.many_broke(loop.time()):
        replica.changed.set()  # its probe should have a look
        return True
    return not await pool.is_alive(replica)
