"""What the GPUs of a run were held for."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from clients.results.format import share, significant

if TYPE_CHECKING:
    from clients.results.summary import Summary


def account(summary: "Summary", gpus_held_since: Iterable[tuple[int, float]], *, now: float) -> None:
    """Write GPU-seconds into the summary of a run that deployed its model; without GPUs, nothing.

    Args:
        summary: To write into: `gpu_seconds_held` is every GPU's time from when its pod had it until now,
            `gpu_seconds_used` as much of it as requests were in flight.
        gpus_held_since: GPUs of each pod, and the second (since 1970) since which it has them.
        now: This second.
    """
    held = [(gpus, max(0.0, now - since)) for gpus, since in gpus_held_since]
    if held:
        summary["gpu_seconds_held"] = sum(gpus * seconds for gpus, seconds in held)
        summary["gpu_seconds_used"] = sum(gpus * min(seconds, summary["duration_s"]) for gpus, seconds in held)


def gpu_fact(summary: "Summary") -> str:
    """GPU hours for people; "" where the run deployed nothing. Summaries of earlier versions have no such numbers."""
    held, used = summary.get("gpu_seconds_held"), summary.get("gpu_seconds_used")
    if not held:
        return ""
    return f"{significant(held / 3600)} GPU hours held, {share(round(used or 0), round(held))} of it with requests"
