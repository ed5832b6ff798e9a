"""When a request has been under way for suspiciously long, so that a second one for its row is worth sending. Pure."""

from clients.batch.latency import Latencies

#: Answers needed before their latencies say anything.
_FEW, _ENOUGH = 3, 50

#: No request is doubled sooner, and none to a server that knows of nothing at all, before anything was answered.
_LEAST_S, _NOTHING_KNOWN_S = 2.0, 5.0


def patience_s(
    latencies: Latencies, *, faulty: bool, tail: bool, lost_share: float | None, doubled: int = 0
) -> float | None:
    """Seconds after which a request counts as stuck; None while too little is known.

    An honest answer may take very long, and doing one twice wastes a GPU. So the limit is far beyond anything seen as
    long as nothing else went wrong in the run, and nearer with every sign that requests do get lost.

    Args:
        latencies: Of the answers so far.
        faulty: Whether connections broke, or answers came broken, in this run.
        tail: Whether no rows are left to send, so that the servers have room.
        lost_share: Share, 0 to 1, of the requests to a server of which it says that it does not have them; None when it
            says nothing.
        doubled: How many other requests for the row are under way: none was lost is then the likelier the more there
            are, and the row simply takes long.
    """
    if latencies.count < _FEW:
        return _NOTHING_KNOWN_S if lost_share == 1 else None
    longest = latencies.quantile(1.0)
    if latencies.count < _ENOUGH:
        limit = max(_NOTHING_KNOWN_S, 4 * longest)
    elif faulty:
        usual = latencies.quantile(0.9 if lost_share is None else 0.99)
        limit = 1.2 * usual if tail else 1.5 * latencies.quantile(0.99)
    else:
        limit = 2 * longest
    if lost_share:
        limit = min(limit, latencies.quantile(0.9) * (1 - lost_share))
    return max(_LEAST_S, limit) * (1 << doubled)
