"""What a run decides once, at its start, and every later step has to know: its date, its files, where its state is."""

import dataclasses
import datetime as dt
import re
from typing import Any

import orjson

from clients.errors import SettingsError
from clients.prompts.rows import JobDefaults

_DATE = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})(?:[T ]?\d{2}:?\d{2}.*)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """The decisions; they travel with what was found in the prompts.

    Attributes:
        run: Id of the run; "" outside a pipeline.
        date: The run's date in UTC, as in 2026-11-25.
        pipeline: Name of the pipeline, as far as it is known.
        prompts: Path, URI or text of the input, macros expanded.
        output: Folder or URI for the results, macros expanded; "" for none.
        state: Folder or URI of what has to outlive a pod; "" when there is no such place.
        kept: Whether `state` is one of several generations, see `clients.storage.generations`.
        job: Names the prompts as they were written, macros and all: the same for every run of a schedule.
        reuse: Generation of an earlier run whose answers are taken over; "" for none.
        max_regression: See RunOptions.
        defaults: What every row shares; without the model, which is not known yet.
    """

    run: str = ""
    date: str = ""
    pipeline: str = ""
    prompts: str = ""
    output: str = ""
    state: str = ""
    kept: bool = False
    job: str = ""
    reuse: str = ""
    max_regression: dict[str, float] = dataclasses.field(default_factory=dict)
    defaults: JobDefaults = dataclasses.field(default_factory=JobDefaults)

    def to_json(self) -> bytes:
        """One line of JSON."""
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, text: bytes) -> "Start":
        """Read back what `to_json` wrote."""
        fields: dict[str, Any] = orjson.loads(text)
        return cls(**{**fields, "defaults": JobDefaults(**fields["defaults"])})


def date_of(run_date: str, now: dt.datetime) -> dt.date:
    """The date a run is for.

    Args:
        run_date: A date, or a time with a date in front, as ISO 8601 or without its dashes; "" for today. A macro that
            an older Kubeflow did not replace, such as `[[CurrentTime]]`, counts as "".
        now: The time, with its zone.

    Raises:
        SettingsError: it is no date.
    """
    text = run_date.strip()
    if not text or text.startswith("[["):
        return now.astimezone(dt.UTC).date()
    match = _DATE.fullmatch(text)
    try:
        return dt.date(*map(int, match.groups() if match else ()))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"run_date must be a date such as 2026-11-25, found {run_date!r}") from error


def expanded(text: str, *, date: dt.date, run: str) -> str:
    """A location with `{date}`, `{yesterday}` and `{run}` replaced; any other brace stays as it is.

    Args:
        text: The location; `inline:` and rows stays as it is.
        date: Of the run.
        run: Its id.
    """
    if text.startswith("inline:"):
        return text
    macros = {"{date}": date, "{yesterday}": date - dt.timedelta(days=1), "{run}": run}
    for macro, value in macros.items():
        text = text.replace(macro, str(value))
    return text
