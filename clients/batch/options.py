"""How a shard is run, as the one JSON object that travels from the command line or the pipeline to the shard's pod."""

import dataclasses
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from clients.batch.budgets import Budgets
from clients.batch.policies import Policies
from clients.errors import SettingsError
from clients.records import Outcome
from clients.storage.addresses import shown
from clients.tracing.settings import CONTENTS, Content


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Choices of a run that are not about single requests. Each has the same name as its flag.

    Attributes:
        retry: Outcomes of an earlier run that are sent again; `failed` always is.
        resample: See Policies; so are the two that follow.
        raw_response: Keep every answer as the server sent it, too.
        join_duplicates: Send identical requests once and give each row the answer.
        max_error_rate: See Budgets; so is what follows but for one.
        time_limit_s: Seconds, from the start of the run, after which it ends with what it has; becomes `deadline`.
        lengths_from: Folder of an earlier run's ledger, or its results.parquet: what took long there goes first.
        fresh: Answer every row anew; only where the state is Kubeflow's own, see `clients.storage.generations`.
        reuse: Take the answers of rows that have not changed from the newest finished run; likewise.
        resumes: Id of the run that this one goes on with, finished or not; "" for none; likewise.
        max_regression: How much worse a run may be than the one before it, by names of
            `clients.results.comparison.MEASURES`: of a share of the rows the difference, else part of what was.
        trace_content: What of prompts and answers Langfuse gets: `full`, their SHA-256 (`hash`), or `none`.
        trace_sample_rate: Share of the rows that are traced, 0 to 1, or None for LANGFUSE_SAMPLE_RATE; rows that went
            wrong always are.
        trace_scores: Send outcomes to Langfuse as scores, too.
        run_url: Address of a run's page in Kubeflow with `{run}` in it, to which traces link; "" for none.
        metrics_port: Port at which Prometheus may read how far a shard is; None for none.
        metrics_host: Address at which it listens; a pod's is 0.0.0.0.
        pushgateway: URL of a Pushgateway that is told the same; "" for none.
    """

    retry: frozenset[Outcome] = frozenset()
    resample: frozenset[Outcome] = frozenset()
    reasoning_max_tokens: int | None = None
    thinking_token_budget: int | None = None
    raw_response: bool = False
    join_duplicates: bool = True
    max_error_rate: float = 1.0
    time_limit_s: float | None = None
    deadline: float | None = None
    max_output_tokens: int | None = None
    lengths_from: str = ""
    fresh: bool = False
    reuse: bool = False
    resumes: str = ""
    max_regression: tuple[tuple[str, float], ...] = ()
    trace_content: Content = "full"
    trace_sample_rate: float | None = None
    trace_scores: bool = False
    run_url: str = ""
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    pushgateway: str = ""

    def __post_init__(self) -> None:
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise SettingsError(f"time_limit_s must be above 0, found {self.time_limit_s:g}")
        if self.trace_content not in CONTENTS:
            raise SettingsError(f"trace_content must be one of {', '.join(CONTENTS)}, found {self.trace_content!r}")
        if self.trace_sample_rate is not None and not 0 <= self.trace_sample_rate <= 1:
            raise SettingsError(f"trace_sample_rate must be from 0 to 1, found {self.trace_sample_rate:g}")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65_535:
            raise SettingsError(f"metrics_port must be from 0 to 65535, found {self.metrics_port}")
        for name in ("run_url", "pushgateway"):
            _check_url(name, getattr(self, name))
        self.policies()
        self.budgets()

    def started(self, now: float) -> "RunOptions":
        """The options of a run that starts at the Unix time `now`: its time limit is a deadline from here on."""
        deadline = self.deadline if self.time_limit_s is None else now + self.time_limit_s
        return dataclasses.replace(self, time_limit_s=None, deadline=deadline)

    def with_lengths(self, location: str) -> "RunOptions":
        """The options with earlier results to look up lengths in, unless others were chosen."""
        return dataclasses.replace(self, lengths_from=self.lengths_from or location)

    def of_part(self, rows: int, all_rows: int) -> "RunOptions":
        """The options of a shard: of what all shards together may spend, its share by its rows."""
        if self.max_output_tokens is None:
            return self
        return dataclasses.replace(self, max_output_tokens=max(1, self.max_output_tokens * rows // all_rows))

    def policies(self) -> Policies:
        """The part that judges answers."""
        return Policies(
            resample=self.resample,
            reasoning_max_tokens=self.reasoning_max_tokens,
            thinking_token_budget=self.thinking_token_budget,
        )

    def budgets(self) -> Budgets:
        """The part that ends a run."""
        return Budgets(
            max_error_rate=self.max_error_rate, deadline=self.deadline, max_output_tokens=self.max_output_tokens
        )

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                found[field.name] = sorted(value) if isinstance(value, frozenset) else value
        if self.max_regression:
            found["max_regression"] = dict(self.max_regression)
        return found

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "RunOptions":
        """Read back what `to_json` wrote, or what a person wrote in its form.

        Raises:
            SettingsError: an unknown name or outcome, or a value out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise SettingsError(f"unknown option {unknown[0]!r}; known are {', '.join(sorted(known))}")
        read: dict[str, Any] = {
            name: outcomes(value, name) if name in ("retry", "resample") else value for name, value in fields.items()
        }
        if "max_regression" in read:
            from clients.results.comparison import read_limits  # late: few runs have any, and most of it is for the end

            read["max_regression"] = read_limits(read["max_regression"], "max_regression")
        return cls(**read)


def _check_url(name: str, url: str) -> None:
    if not url:
        return
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        sound = False
    if not sound or not url.isascii() or any(mark.isspace() for mark in url):
        raise SettingsError(f"{name} must be an address such as http://HOST:PORT, found {shown(url)!r}")


def outcomes(value: Any, where: str) -> frozenset[Outcome]:
    """Outcomes from a list, or from text that divides them by commas.

    Args:
        value: The list or the text.
        where: The flag or option that it was given to, for the message.

    Raises:
        SettingsError: a word that is no outcome.
    """
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else list(value)
    known = [outcome.value for outcome in Outcome]
    if unknown := [word for word in words if word and word not in known]:
        raise SettingsError(f"{where}: {unknown[0]!r} is no outcome; outcomes are {', '.join(known)}")
    return frozenset(Outcome(word) for word in words if word)
