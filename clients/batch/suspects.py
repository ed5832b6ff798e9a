"""Rows that were under way each time that a server died: one of them may be what ends it.

A schema that the server's grammar compiler cannot take, or a prompt that meets a bug, ends the whole process, and with
it the requests of all other rows; a model takes minutes to come back. So such rows are kept apart from the others.
"""

from clients.batch.backlog import Work
from clients.batch.flights import Flight
from clients.batch.replica import Replica
from clients.errors import ChatError, OverloadedError, UnreachableError

#: A dying server fails its requests so long before nothing answers any more, in seconds, or so shortly after.
_DYING_S, _DEAD_S = 10.0, 1.0

#: Seconds for which a reading of the server's load is good.
_FRESH_S = 1.0

#: Deaths after which a row is set aside: once is an accident of the server's.
_ACCIDENTS = 1

#: Blame at which a row is given up: that of one death of a server that worked for nobody else, or of three deaths at
#: which others may have sent to it, too.
_ENOUGH, _WITH_OTHERS = 3, 1

#: Deaths that cost no attempt.
_FORGIVEN = 6


def note_fall(flight: Flight, error: ChatError, now: float) -> None:
    """Note that a row's request failed as those of a dying server do; whether it died shows later.

    Args:
        flight: The request.
        error: What it failed with.
        now: `loop.time()`.
    """
    if isinstance(error, UnreachableError | OverloadedError):
        return
    if error.code == "connection" or error.code.startswith("http_5"):
        work = flight.work
        if work.fell_on is not flight.replica or now - work.fell_at > _DYING_S:
            work.fell_attempts = work.attempts  # else it failed before at what may be the same death
        work.fell_on, work.fell_at = flight.replica, now
        work.fell_blame = 0 if not work.is_alone else _WITH_OTHERS if _has_others(flight) else _ENOUGH


def _has_others(flight: Flight) -> bool:
    """Whether the server may have worked for others, too, such as another shard: it says so, or says nothing."""
    replica = flight.replica
    if replica.load is None or replica.load_at < flight.started - _FRESH_S:
        return True
    return replica.load.most > max(1, replica.load_in_flight)


def is_suspect(work: Work) -> bool:
    """Tell whether a row that is to be sent again was under way when a server died, and not for the first time.

    Its attempts at that are given back to it, but not for ever: it was the server's failure, or is judged otherwise.
    """
    replica = work.fell_on
    if not isinstance(replica, Replica) or replica.died_at is None:
        return False
    if not work.fell_at - _DEAD_S <= replica.died_at <= work.fell_at + _DYING_S:
        return False
    death, work.fell_on = (replica, replica.died_at), None
    if death == work.last_death:
        return False
    work.last_death = death
    work.deaths += 1
    if work.deaths <= _FORGIVEN:
        work.attempts = work.fell_attempts
    work.blame += work.fell_blame
    return work.deaths > _ACCIDENTS


def is_to_blame(work: Work) -> bool:
    """Tell whether a suspect is so surely what its server died of that it is sent no more."""
    return work.blame >= _ENOUGH
