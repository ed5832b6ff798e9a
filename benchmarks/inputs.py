"""The work of the benchmarks: prompts, and how long the server will take for them."""

import dataclasses
import functools
from pathlib import Path

import orjson

from clients.fake_vllm.answers import AnswerModel
from clients.fake_vllm.batching import StepModel, ideal_makespan
from clients.fake_vllm.chat import mark_of

#: By how much of itself a step grows with each running request, as with the fake server's own defaults.
_GROWTH = 1 / 2000


def text_of(row: int) -> str:
    """The prompt of a row; no two are the same."""
    return f"Report {row}: what happened in the harbour that day, who was there, and what came of it?"


def start_of_answer(row: int) -> str:
    """What the fake server's answer to a row begins with; no other row's does."""
    return f"answer-{mark_of(text_of(row))[:6].hex()} "


def write_prompts(path: Path, rows: int) -> None:
    """Write a file of prompts."""
    with path.open("wb") as out:
        for row in range(rows):
            out.write(orjson.dumps({"prompt": text_of(row)}, option=orjson.OPT_APPEND_NEWLINE))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Rows, and a simulated server which is done with them in a given time at best.

    Attributes:
        rows: How many.
        slots: Of one replica.
        seconds: The ideal makespan that the time of a step is chosen for.
        replicas: Behind one address.
        median: Median tokens of an answer.
        sigma: Spread of their logarithm.
        seed: Of lengths and faults.
    """

    rows: int
    slots: int
    seconds: float
    replicas: int = 1
    median: float = 200.0
    sigma: float = 0.6
    seed: int = 3

    @property
    def all_slots(self) -> int:
        """Requests that can run at once."""
        return self.slots * self.replicas

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of every row's answer, as the server will draw them."""
        model = AnswerModel(seed=self.seed, median=self.median, sigma=self.sigma)
        return [model.wanted_tokens(mark_of(text_of(row))) for row in range(self.rows)]

    @functools.cached_property
    def steps(self) -> StepModel:
        """The time of a step: whole nanoseconds, so that a flag says it exactly."""
        unit_s = ideal_makespan(
            self.lengths, self.slots, StepModel(base_s=1.0, per_running_s=_GROWTH), replicas=self.replicas
        )
        base_s = round(self.seconds / unit_s, 9)
        return StepModel(base_s=base_s, per_running_s=round(base_s * _GROWTH, 12))

    def ideal_s(self, *, longest_first: bool = False) -> float:
        """Seconds from the first request to the last answer when every row is on offer at once."""
        return ideal_makespan(self.lengths, self.slots, self.steps, replicas=self.replicas, longest_first=longest_first)

    @property
    def flags(self) -> tuple[str, ...]:
        """The fake server's flags."""
        steps = self.steps
        return (
            *("--seed", str(self.seed), "--slots", str(self.slots), "--replicas", str(self.replicas)),
            *("--tokens-median", str(self.median), "--tokens-sigma", str(self.sigma)),
            *("--step-base-ms", f"{steps.base_s * 1e3:.6f}"),
            *("--step-per-request-us", f"{steps.per_running_s * 1e6:.6f}"),
        )
