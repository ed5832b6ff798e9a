"""What a model server says about its load at `/metrics`, in the names of the servers people run."""

import dataclasses
import re

#: Gauge of requests that are worked on, and of those that wait, by server.
_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing")
_WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred")
_KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
_PREEMPTIONS = ("vllm:num_preemptions_total",)

_SAMPLE = re.compile(rb"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})?[ \t]+([^\s]+)", re.MULTILINE)
_WANTED = {name.encode(): name for name in (*_RUNNING, *_WAITING, *_KV_USAGE, *_PREEMPTIONS)}

#: The one sample by which two processes that share an address are told apart.
IDENTITY = "process_start_time_seconds"


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """One reading.

    Attributes:
        running: Requests the server works on.
        waiting: Requests in its queue.
        kv_usage: Share of the KV cache in use, 0 to 1; None when it is not told.
        preemptions: Requests thrown out of the batch for want of KV cache, since the server started.
        identity: Differs between two processes; "" when they cannot be told apart.
        most: Requests at one process, whoever sent them; where several were read, at the one that has most.
    """

    running: int
    waiting: int
    kv_usage: float | None = None
    preemptions: int = 0
    identity: str = ""
    most: int = dataclasses.field(default=0, compare=False)


def read_load(text: bytes) -> Load | None:
    """Read the text format of Prometheus; None when it says nothing about running and waiting requests.

    A server with several engines (data parallel) has a sample for each: counts are added, of usage the highest counts.
    """
    found: dict[str, list[float]] = {}
    identity = ""
    for name, value in _SAMPLE.findall(text):
        if (wanted := _WANTED.get(name)) is not None:
            found.setdefault(wanted, []).append(_number(value))
        elif name == IDENTITY.encode():
            identity = value.decode()
    running, waiting = _first(found, _RUNNING), _first(found, _WAITING)
    if running is None or waiting is None:
        return None
    usage = _first(found, _KV_USAGE)
    return Load(
        running=int(sum(running)),
        waiting=int(sum(waiting)),
        kv_usage=max(usage) if usage else None,
        preemptions=int(sum(_first(found, _PREEMPTIONS) or [0])),
        identity=identity,
        most=int(sum(running) + sum(waiting)),
    )


def scaled(loads: list[Load], in_flight: int) -> Load | None:
    """Several readings through one address, each of a process that chance chose, as the load of all behind it.

    What waits is taken from the process with the shortest queue: none shall be idle while others queue.

    Args:
        loads: At least one.
        in_flight: Our requests to the address.
    """
    total = sum(load.running + load.waiting for load in loads)
    if not total:
        return Load(running=0, waiting=0)
    running = in_flight * sum(load.running for load in loads) / total
    least = min(load.waiting / max(1, load.running + load.waiting) for load in loads)
    return Load(running=round(running), waiting=round(least * in_flight), most=max(load.most for load in loads))


def _first(found: dict[str, list[float]], names: tuple[str, ...]) -> list[float] | None:
    return next((found[name] for name in names if name in found), None)


def _number(text: bytes) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if 0 <= number < 1e15 else 0.0
