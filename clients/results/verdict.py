"""What held a run back, and what to do about it: the client, the servers, a limit set by hand, the tail, or waiting."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypedDict

#: Share of the time from which on the tail counts, although the servers were full for longer.
_LONG_TAIL = 0.25

_ADVICE = {
    "server-bound": "The servers' batches were full: more replicas or GPUs would make it faster.",
    "client-bound": "The client used a whole processor core: more shards would make it faster.",
    "cap-bound": "The limit set by --concurrency held it back: leave it out, or raise it.",
    "tail-bound": "It waited for a few long answers: a lower --max-tokens or earlier results (--lengths-from) help.",
    "ramp-bound": "It was over before it had found out what the servers can do: nothing to change in so short a run.",
    "waiting": "It waited for a server that was down or failing: look at the server's log.",
}


class Verdict(TypedDict):
    """What held a run back.

    Attributes:
        kind: One of `server-bound`, `client-bound`, `cap-bound`, `tail-bound`, `ramp-bound`, `waiting`.
        advice: What to do about it.
        seconds: Seconds spent in each state, summed over the shards.
    """

    kind: str
    advice: str
    seconds: dict[str, float]


def judge(shards: Iterable[Mapping[str, float]]) -> Verdict | None:
    """The verdict from the seconds that each shard spent in each state; None when no shard sent anything."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for shard in shards:
        for state, spent in shard.items():
            if state in _ADVICE:
                seconds[state] += spent
    total = sum(seconds.values())
    if not total:
        return None
    kind = max(seconds, key=lambda state: seconds[state])
    if kind == "server-bound" and seconds.get("tail-bound", 0.0) > _LONG_TAIL * total:
        kind = "tail-bound"
    rounded = {state: round(spent, 2) for state, spent in seconds.items()}
    return Verdict(kind=kind, advice=_ADVICE[kind], seconds=rounded)
