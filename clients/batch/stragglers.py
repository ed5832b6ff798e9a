"""When a request has been under way for suspiciously long, so that a second one for its row is worth sending. Pure."""

from clients.batch.latency import Latencies

#: Answers needed before their latencies say anything.
_FEW, _ENOUGH = 3, 50

#: No request is doubled sooner, and none to a server that knows of nothing at all, before anything was answered.
_LEAST_S, _NOTHING_KNOWN_S = 2.0, 5.0


def patience_s(latencies: Latencies, *, faulty: bool, tail: bool, lost_share: float) -> float | None:
    """Seconds after which a request counts as stuck; None while too little is known.

    An honest answer may take very long, and doing one twice wastes a GPU. So the limit is far beyond anything seen as
    long as nothing else went wrong in the run, and nearer with every sign that requests do get lost.

    Args:
        latencies: Of the answers so far.
        faulty: Whether connections broke, or answers came broken, in this run.
        tail: Whether no rows are left to send, so that the servers have room.
        lost_share: Share, 0 to 1, of the requests to a server of which it says that it does not have them.
    """
    if latencies.count < _FEW:
        return _NOTHING_KNOWN_S if lost_share == 1 else None
    longest = latencies.quantile(1.0)
    if latencies.count < _ENOUGH:
        limit = max(_NOTHING_KNOWN_S, 4 * longest)
    elif faulty:
        limit = 1.2 * latencies.quantile(0.9) if tail else 1.5 * latencies.quantile(0.99)
    else:
        limit = 2 * longest
    if lost_share:
        limit = min(limit, latencies.quantile(0.9) * (1 - lost_share))
    return max(_LEAST_S, limit)
