"""A run beside the last one of its job that passed: what changed, what got worse, and what is a regression. Pure."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from clients.errors import SettingsError
from clients.records import ERROR_OUTCOMES, Outcome

if TYPE_CHECKING:
    from clients.results.summary import Summary

#: From here on a change is worth a word: a tenth of what was, or, of a share of the rows, one in a hundred.
_NOTABLE, _NOTABLE_SHARE = 0.1, 0.01

#: Floating point must not make a regression of what is exactly as far as allowed.
_ROUNDING = 1e-9


class Measure(NamedTuple):
    """A number that runs are compared by.

    Attributes:
        of: Takes it from a summary; None where there is none.
        worse: 1 when more of it is worse, -1 when less is, 0 when it should stay as it is.
        is_share: It is a share of the rows, so that a change is told as a difference and not as a ratio.
        is_total: It grows with the rows, so that more of it alone is nothing to look at.
    """

    of: "Callable[[Summary], float | None]"
    worse: int
    is_share: bool = False
    is_total: bool = False


def _error_rate(summary: "Summary") -> float | None:
    wrong = sum(number for word, number in summary["outcomes"].items() if word in ERROR_OUTCOMES)
    return wrong / summary["rows"] if summary["rows"] else None


def _ok_rate(summary: "Summary") -> float | None:
    return summary["outcomes"].get(Outcome.OK, 0) / summary["rows"] if summary["rows"] else None


def _part(name: str, percentile: str) -> "Callable[[Summary], float | None]":
    def find(summary: "Summary") -> float | None:
        spread: dict[str, float] | None = summary[name]  # type: ignore[literal-required]
        return spread[percentile] if spread else None

    return find


def _gpu_seconds_per_row(summary: "Summary") -> float | None:
    held, rows = summary["gpu_seconds_held"], summary["rows"]
    return held / rows if held is not None and rows else None


#: Every measure by its name, which is that of the metric in Kubeflow, too.
MEASURES = {
    "rows": Measure(lambda summary: summary["rows"], -1),
    "ok_rate": Measure(_ok_rate, -1, is_share=True),
    "error_rate": Measure(_error_rate, 1, is_share=True),
    "completion_tokens_p50": Measure(_part("completion_tokens_per_row", "p50"), 0),
    "completion_tokens_p95": Measure(_part("completion_tokens_per_row", "p95"), 0),
    "prompt_tokens": Measure(lambda summary: summary["prompt_tokens"], 1, is_total=True),
    "completion_tokens": Measure(lambda summary: summary["completion_tokens"], 1, is_total=True),
    "rows_per_s": Measure(lambda summary: summary["rows_per_s"], -1),
    "output_tokens_per_s": Measure(lambda summary: summary["output_tokens_per_s"], -1),
    "latency_p50_s": Measure(_part("latency_s", "p50"), 1),
    "latency_p95_s": Measure(_part("latency_s", "p95"), 1),
    "gpu_seconds_held": Measure(lambda summary: summary["gpu_seconds_held"], 1, is_total=True),
    "gpu_seconds_per_row": Measure(_gpu_seconds_per_row, 1),
}


class Numbers(TypedDict):
    """What is kept of a run for the next one to compare itself with: small, however many rows there were.

    Attributes:
        run: Id of the run in Kubeflow; "" of others.
        finished_at: See Summary.
        outcomes: Rows of each outcome that happened.
        measures: See MEASURES.
    """

    run: str
    finished_at: str | None
    outcomes: dict[str, int]
    measures: dict[str, float | None]


class Change(TypedDict):
    """One measure, then and now.

    Attributes:
        before: The number of the run before; None where there was none. So is what follows.
        now: This run's.
        change: Of a share of the rows `now - before`; of anything else `now / before - 1`.
        worse: It got notably worse, or is notably different where it should stay as it is; never of a total.
    """

    before: float | None
    now: float | None
    change: float | None
    worse: bool


class Comparison(TypedDict):
    """A run beside the one before it: the last of the same job that its gate let pass.

    Attributes:
        run: See Numbers; of the run before. So is `finished_at`.
        changes: Of the measures that either run has.
        outcomes: Outcomes that either run has, and their rows then and now.
        regressions: Why the gate stops this run, a sentence each; empty when it does not for a change.
    """

    run: str
    finished_at: str | None
    changes: dict[str, Change]
    outcomes: dict[str, tuple[int, int]]
    regressions: list[str]


def numbers_of(summary: "Summary", *, run: str) -> Numbers:
    """What the next run has to know of this one."""
    return Numbers(
        run=run,
        finished_at=summary["finished_at"],
        outcomes={word: number for word, number in summary["outcomes"].items() if number},
        measures={name: measure.of(summary) for name, measure in MEASURES.items()},
    )


def compare(now: Numbers, before: Numbers, limits: Mapping[str, float]) -> Comparison:
    """Put a run beside the one before it.

    Args:
        now: This run.
        before: The run before; measures that its version did not know are left out.
        limits: What `read_limits` returned.
    """
    changes = {}
    for name in MEASURES:
        found = _change(name, before["measures"].get(name), now["measures"].get(name))
        if found["before"] is not None or found["now"] is not None:
            changes[name] = found
    words = dict.fromkeys([*now["outcomes"], *before["outcomes"]])
    return Comparison(
        run=before["run"],
        finished_at=before["finished_at"],
        changes=changes,
        outcomes={word: (before["outcomes"].get(word, 0), now["outcomes"].get(word, 0)) for word in words},
        regressions=[
            _sentence(name, changes[name], limit)
            for name, limit in limits.items()
            if name in changes and _worse_by(name, changes[name]["change"]) > limit + _ROUNDING
        ],
    )


def _change(name: str, before: float | None, now: float | None) -> Change:
    change = None
    if before is not None and now is not None:
        if MEASURES[name].is_share:
            change = now - before
        elif before:
            change = now / before - 1
    worse = not MEASURES[name].is_total and is_notable(name, change) and _worse_by(name, change) > 0
    return Change(before=before, now=now, change=change, worse=worse)


def _worse_by(name: str, change: float | None) -> float:
    direction = MEASURES[name].worse
    return 0.0 if change is None else change * direction if direction else abs(change)


def is_notable(name: str, change: float | None) -> bool:
    """Whether a change of a measure is worth a word, for better or worse."""
    notable = _NOTABLE_SHARE if MEASURES[name].is_share else _NOTABLE
    return change is not None and abs(change) > notable + _ROUNDING


def _sentence(name: str, change: Change, limit: float) -> str:
    before, now = change["before"] or 0.0, change["now"] or 0.0
    told = f"{100 * before:.3g} % to {100 * now:.3g} %" if MEASURES[name].is_share else f"{before:.6g} to {now:.6g}"
    return (
        f"{name} went from {told} since the run before, more than max_regression {name}={limit:g} allows. "
        "If it is meant to be so, run it once with a higher one; later runs are then compared with this."
    )


def read_limits(value: Any, where: str) -> tuple[tuple[str, float], ...]:
    """How much worse each measure may be than in the run before, from a mapping or from text such as `rows=0.5`.

    Args:
        value: The mapping, pairs, or text that divides pairs by commas.
        where: The flag or option that it was given to, for the message.

    Raises:
        SettingsError: a name that is no measure, or a number that is none or below 0.
    """
    if isinstance(value, str):
        parts = [part for part in value.split(",") if part.strip()]
        pairs: dict[str, Any] = {name.strip(): number for name, _, number in (part.partition("=") for part in parts)}
    else:
        try:
            pairs = dict(value)
        except (TypeError, ValueError):
            raise SettingsError(f"{where}: expected NAME=SHARE, such as error_rate=0.02, found {value!r}") from None
    return tuple((_known(name, where), _share(name, number, where)) for name, number in pairs.items())


def _known(name: str, where: str) -> str:
    if name not in MEASURES:
        raise SettingsError(f"{where}: runs are not compared by {name!r}, but by {', '.join(MEASURES)}")
    return name


def _share(name: str, number: Any, where: str) -> float:
    try:
        found = float(number)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(number, bool) or not 0 <= found < math.inf:
        raise SettingsError(f"{where}: {name} must be a share of at least 0, such as {name}=0.1, found {number!r}")
    return found
