"""When a request has been under way for suspiciously long, so that a second one for its row is worth sending."""

from clients.batch.latency import Latencies

#: Answers needed before their latencies say anything.
_FEW, _ENOUGH = 3, 50

_LEAST_S = 2.0


def patience_s(latencies: Latencies, *, faulty: bool, tail: bool, missing: bool) -> float | None:
    """Seconds after which a request counts as stuck; None while too little is known.

    An honest answer may take very long, and doing one twice wastes a GPU. So the limit is far beyond anything seen as
    long as nothing else went wrong in the run, and nearer with every sign that requests do get lost.

    Args:
        latencies: Of the answers so far.
        faulty: Whether connections broke, or answers came broken, in this run.
        tail: Whether no rows are left to send, so that the servers have room.
        missing: Whether the servers say that they have fewer requests than were sent to them.
    """
    if latencies.count < _FEW:
        return None
    if latencies.count < _ENOUGH:
        return max(5.0, 4 * latencies.quantile(1.0))
    if missing:
        return max(_LEAST_S, latencies.quantile(0.9))
    if faulty:
        return max(_LEAST_S, (1.1 if tail else 1.5) * latencies.quantile(0.99))
    return max(_LEAST_S, 2 * latencies.quantile(1.0))
