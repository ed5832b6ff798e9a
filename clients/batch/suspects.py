"""Rows that were under way each time that a server died: one of them may be what ends it.

A schema that the server's grammar compiler cannot take, or a prompt that meets a bug, ends the whole process, and with
it the requests of all other rows; a model takes minutes to come back. So such rows are kept apart from the others.
"""

from clients.batch.backlog import Work
from clients.batch.replica import Replica
from clients.errors import ChatError, OverloadedError, UnreachableError

#: A dying server fails its requests so long before nothing answers any more, in seconds, or so shortly after.
_DYING_S, _DEAD_S = 10.0, 1.0

#: Deaths after which a row is set aside: once is an accident of the server's.
_ACCIDENTS = 1


def note_fall(work: Work, replica: Replica, error: ChatError, now: float) -> None:
    """Note that a row's request failed as those of a dying server do; whether it died shows later.

    Args:
        work: The row.
        replica: Where it was.
        error: What it failed with.
        now: `loop.time()`.
    """
    if isinstance(error, UnreachableError | OverloadedError):
        return
    if error.code == "connection" or error.code.startswith("http_5"):
        work.fell_on, work.fell_at, work.fell_attempts, work.fell_alone = replica, now, work.attempts, work.is_alone


def is_suspect(work: Work) -> bool:
    """Tell whether a row that is to be sent again was under way when a server died, and not for the first time.

    Its last attempt is given back to it: it was the server's failure, or is judged otherwise.
    """
    replica = work.fell_on
    if not isinstance(replica, Replica) or replica.died_at is None:
        return False
    if not work.fell_at - _DEAD_S <= replica.died_at <= work.fell_at + _DYING_S:
        return False
    work.fell_on, work.attempts = None, work.fell_attempts
    work.deaths += 1
    return work.deaths > _ACCIDENTS
