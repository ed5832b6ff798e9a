"""What others see of a shard: its rows as traces in Langfuse, its numbers in Prometheus. Both are off by default."""

import contextlib
import dataclasses
import datetime as dt
import logging
import re
import secrets
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from clients.batch.options import RunOptions
from clients.batch.shard import ShardRun
from clients.errors import LLMInferenceError
from clients.events import emit
from clients.prompts.plan import Shard
from clients.steps.boundary import langfuse_environment
from clients.steps.interrupts import stopping
from clients.storage import Folder, shown
from clients.tracing.settings import TraceSettings
from clients.tracing.tracer import Contained, NoTracer, Tracer, open_tracer

if TYPE_CHECKING:
    from clients.batch.metrics import Metrics
    from clients.tracing.spans import Origin

logger = logging.getLogger(__name__)

#: A state that a later run replaces, and then removes: `state/0001` beside the results of a run on this machine, and
#: `state/<content>/0001` in Kubeflow's store. Traces that wait for Langfuse must not go with it.
_REPLACED = re.compile(r"(.*/state)(?:/[0-9a-f]{16})?/\d{4}")

_FOLDER = "traces"


class Observation:
    """One shard, seen.

    Attributes:
        tracer: To be told of its rows.
        metrics: To be shown its counts; None when nobody asks for them.
    """

    def __init__(self, shard: Shard, home: Folder, *, lasts: bool) -> None:
        self._shard = shard
        options = RunOptions.from_json(shard.options)
        settings = TraceSettings.from_environment(
            langfuse_environment(),
            sample_rate=options.trace_sample_rate,
            content=options.trace_content,
            scores=options.trace_scores,
        )
        self.tracer: Tracer = NoTracer()
        self.metrics: Metrics | None = None
        if settings is None and options.metrics_port is None and not options.pushgateway:
            return
        run = shard.run or _name_of_local_run(Folder(shard.state) / _FOLDER, shard.prompts)
        if settings is not None:
            self.tracer = _open(settings, shard, _origin(shard, run, options.run_url), home=home, lasts=lasts)
        if options.metrics_port is not None or options.pushgateway:
            self.metrics = _metrics(options, run, shard.shard, self.tracer)

    def ended(self, run: ShardRun) -> ShardRun:
        """The same with what became of its traces; sends what is left of them.

        Raises:
            InterruptedRunError: a signal came meanwhile.
        """
        if isinstance(self.tracer, NoTracer):
            return run
        facts = {"reused": run.progress.reused, "state": shown(self._shard.state), "stop_reason": run.stop_reason}
        with stopping(_go_on):
            self.tracer.close(facts=facts)
        tracing = {"traces": dataclasses.asdict(self.tracer.totals()), "trace_url": self.tracer.url_template()}
        return dataclasses.replace(run, tracing=tracing)

    def close(self) -> None:
        """End it, within the deadline of `Tracer.close` and two seconds more.

        Raises:
            InterruptedRunError: a signal came meanwhile, and none before.
        """
        with stopping(_go_on):
            self.tracer.close()
            if self.metrics is not None:
                self.metrics.close()


@contextlib.contextmanager
def observed(shard: Shard, home: Folder, *, lasts: bool) -> Iterator[Observation]:
    """Let a shard be seen for as long as the block lasts.

    Args:
        shard: The shard.
        home: Folder of its committed answers, whose ledger is open.
        lasts: Whether its state outlives this process.
    """
    observation = Observation(shard, home, lasts=lasts)
    try:
        yield observation
    finally:
        observation.close()


def _go_on() -> None:
    """On a signal: what is under way is short, and must not be cut off."""


def _origin(shard: Shard, run: str, run_url: str) -> "Origin":
    from clients.tracing.spans import Origin  # late: without keys nothing of it is loaded

    return Origin(
        run=run,
        shard=shard.shard,
        pipeline=shard.pipeline or ("batch" if shard.run else "clients.batch"),
        model=shard.defaults.model,
        kfp_run_id=shard.run,
        kfp_run_url=run_url.replace("{run}", shard.run) if shard.run else "",
    )


def _open(settings: TraceSettings, shard: Shard, origin: "Origin", *, home: Folder, lasts: bool) -> Tracer:
    with Contained(_off):
        notes = Folder(shard.state) / f"{_FOLDER}/{shard.plan}/{shard.shard:05d}"
        return open_tracer(settings, origin, spool=Folder(spool_of(shard)), notes=notes, home=home, lasts=lasts)
    return NoTracer()


def _off(reason: str) -> None:
    emit(logger, "tracing.failed", reason=reason, then="tracing is off")


def _metrics(options: RunOptions, run: str, shard: int, tracer: Tracer) -> "Metrics":
    from clients.batch.metrics import Metrics  # late: most runs have none

    metrics = Metrics(run=run, shard=shard, tracer=tracer)
    if options.metrics_port is not None:
        metrics.serve(options.metrics_host, options.metrics_port)
    if options.pushgateway:
        metrics.push(options.pushgateway)
    return metrics


def spool_of(shard: Shard) -> str:
    """Where a shard's traces wait for Langfuse."""
    replaced = _REPLACED.fullmatch(shard.state.rstrip("/"))
    return f"{replaced[1] if replaced else shard.state.rstrip('/')}/{_FOLDER}/{shard.shard:05d}"


def _name_of_local_run(folder: Folder, prompts: str) -> str:
    """A name outside a pipeline: the same as long as the state is, so that a run which goes on keeps its traces."""
    name = "inline" if prompts.startswith("inline:") else PurePosixPath(prompts).name.partition(".")[0]
    chosen = f"{name}-{dt.datetime.now(dt.UTC):%Y%m%d}-{secrets.token_hex(3)}"
    try:
        if (found := folder.read("run")) is not None:
            return found.decode("utf-8", "replace")
        folder.write("run", chosen.encode("utf-8", "replace"))
    except LLMInferenceError as error:
        emit(logger, "tracing.unsettled", reason=str(error), then="a later run gets another name")
    return chosen
