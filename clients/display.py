"""What a person at a terminal sees: one live line while rows run, a short table at the end. Not part of any pod.

Without a terminal there is no live line but a `run.progress` event every few seconds. Colours follow NO_COLOR.
"""

import collections
import dataclasses
import json
import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clients.events import emit
from clients.records import Outcome
from clients.results import format as fmt
from clients.results.advice import ADVICE
from clients.results.changes import comparison_fact
from clients.results.gpus import gpu_fact
from clients.results.traces import trace_fact

if TYPE_CHECKING:
    from clients.results.summary import Summary

logger = logging.getLogger(__name__)

_EVENT_INTERVAL_S = 5.0
_RATE_WINDOW_S = 20.0
_BAR_CELLS = 24
_ADVICE_FROM_WIDTH = 60


@dataclasses.dataclass
class _Shard:
    rows: int
    done: int = 0
    reused: int = 0
    output_tokens: int = 0
    in_flight: int = 0
    outcomes: Mapping[str, int] = dataclasses.field(default_factory=dict)


class RunView:
    """Follows the events of a run and shows them. A context manager.

    Args:
        console: Where notes and the live line go; stderr by default, so that stdout stays for results.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._shards: dict[int, _Shard] = {}
        self._stage = ""
        self._history: collections.deque[tuple[float, int, int]] = collections.deque()
        self._live: Live | None = None
        self._next_event = 0.0
        #: Why a step failed and with which exit code, as its event told; "" and 0 while none has.
        self.failure, self.exit_code = "", 0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """Say one thing that stays on the screen."""
        self.console.print(Text(text), soft_wrap=True)

    def stage(self, text: str) -> None:
        """Say what is being waited for; on a terminal it is replaced by what follows, elsewhere a line of its own."""
        if self._live is None:
            self.note(text)
        self._stage = text
        self.tick()

    def see(self, event: Mapping[str, Any]) -> None:
        """Take one event of a step into account."""
        match event.get("event"):
            case "prompts.checked":
                self._see_checked(event)
            case "shards.planned":
                self._shards = {shard: _Shard(rows) for shard, rows in enumerate(event["rows_of_shard"])}
                self._stage = ""
            case "shard.progress":
                shard = self._shards.setdefault(event["shard"], _Shard(event["rows"]))
                for field in ("done", "reused", "output_tokens", "in_flight", "outcomes"):
                    setattr(shard, field, event[field])
            case "shard.settled":
                shard = self._shards.setdefault(event["shard"], _Shard(event["rows"]))
                shard.done, shard.reused = event["rows"], shard.reused or event["reused"]
            case "row.invalid":
                self.note(f"  malformed row: {event['error']}")
            case "endpoint.waiting" | "endpoint.unreachable":
                self.note(f"  waiting for {event.get('base_url') or event.get('endpoint')}: {event['reason']}")
            case "commit.failed":
                self.note(f"  {event['reason']}")
            case "step.failed":
                self.failure = self.failure or event["error"]
                self.exit_code = self.exit_code or event["exit_code"]

    @property
    def reused(self) -> int:
        """Rows whose answer an earlier run had, over all shards."""
        return sum(shard.reused for shard in self._shards.values())

    def see_and_show(self, event: Mapping[str, Any]) -> None:
        """Take one event into account and bring the screen up to date."""
        self.see(event)
        self.tick()

    def tick(self) -> None:
        """Bring the screen, or the log, up to date; call it a few times a second."""
        now = time.monotonic()
        if self._live is not None:
            self._live.update(self._line(now), refresh=True)
        elif self._shards and now >= self._next_event:
            self._next_event = now + _EVENT_INTERVAL_S
            emit(logger, "run.progress", **self._numbers(now))

    def _see_checked(self, event: Mapping[str, Any]) -> None:
        malformed = f", {fmt.count(event['invalid'])} malformed" if event["invalid"] else ""
        self.note(f"{fmt.counted(event['rows'], 'row')} checked{malformed}")
        if event.get("duplicates"):
            self.note(f"  {fmt.counted(event['duplicates'], 'row')} asking the same as an earlier row")
        if event["repeated_ids"]:
            repeated = fmt.counted(event["repeated_ids"], "row")
            self.note(f"  {repeated} with the id of an earlier row; `row` tells them apart")

    def _numbers(self, now: float) -> dict[str, Any]:
        shards = list(self._shards.values())
        outcomes: Counter[str] = Counter()
        for shard in shards:
            outcomes.update(shard.outcomes)
        rows, done = sum(shard.rows for shard in shards), sum(shard.done for shard in shards)
        sent = done - sum(shard.reused for shard in shards)
        tokens = sum(shard.output_tokens for shard in shards)
        rows_per_s, tokens_per_s = self._rates(now, sent, tokens)
        return {
            "rows": rows,
            "done": done,
            "ok": outcomes[Outcome.OK],
            "other": outcomes.total() - outcomes[Outcome.OK],
            "rows_per_s": rows_per_s and round(rows_per_s, 3),
            "output_tokens_per_s": tokens_per_s and round(tokens_per_s, 1),
            "in_flight": sum(shard.in_flight for shard in shards),
            "eta_s": round((rows - done) / rows_per_s) if rows_per_s else None,
        }

    def _rates(self, now: float, sent: int, tokens: int) -> tuple[float | None, float | None]:
        """Rows and output tokens per second over the last seconds, None before there is anything to say."""
        self._history.append((now, sent, tokens))
        while len(self._history) > 2 and self._history[1][0] < now - _RATE_WINDOW_S:
            self._history.popleft()
        then, sent_then, tokens_then = self._history[0]
        if now - then < 1 or sent == sent_then:
            return None, None
        return (sent - sent_then) / (now - then), (tokens - tokens_then) / (now - then)

    def _line(self, now: float) -> Text:
        if not self._shards:
            return Text(self._stage, style="dim")
        found = self._numbers(now)
        filled = _BAR_CELLS * found["done"] // max(1, found["rows"])
        line = Text.assemble(("━" * filled, "green"), ("━" * (_BAR_CELLS - filled), "bright_black"), "  ")
        line.append(f"{fmt.count(found['done'])}/{fmt.count(found['rows'])} rows", style="bold")
        parts = [f"{fmt.count(found['ok'])} ok, {fmt.count(found['other'])} other"]
        if found["rows_per_s"]:
            parts += [fmt.rate(found["rows_per_s"], "rows"), fmt.rate(found["output_tokens_per_s"], "tokens")]
        parts.append(f"{fmt.count(found['in_flight'])} in flight")
        if found["eta_s"] and found["done"] < found["rows"]:
            parts.append(f"{fmt.duration(found['eta_s'])} left")
        if found["done"] == found["rows"]:
            parts = [*parts[:1], "writing the results"]
        line.append(" · " + " · ".join(parts))
        line.truncate(self.console.width, overflow="ellipsis")
        return line


def print_summary(
    summary: "Summary",
    folder: Path,
    console: Console | None = None,
    *,
    batch_output: Path | None = None,
    reused: int = 0,
) -> None:
    """Print how the run went, where its files are, and what to type next.

    Args:
        summary: What stands in summary.json.
        folder: Where the results are.
        console: None prints to stdout.
        batch_output: File in the form of OpenAI's Batch API; None when there is none.
        reused: Rows whose answer an earlier run had.
    """
    console = console or Console(highlight=False)
    print_numbers(summary, console, reused=reused)
    console.print()
    all_ok = summary["outcomes"][Outcome.OK] == summary["rows"]
    for name, what in _FILES:
        if (folder / name).exists() and not (all_ok and name == _REJECTS):
            console.print(Text(f"{what:<10}{folder / name}"), soft_wrap=True)
    if batch_output is not None:
        console.print(Text(f"{'Batch':<10}{batch_output}"), soft_wrap=True)
    console.print()
    path = json.dumps(str(folder / "results.parquet"), ensure_ascii=False)
    columns = '["outcome", "content"]'
    read = f"import pandas; print(pandas.read_parquet({path}, columns={columns}))"
    console.print(
        Text(f"Next: open the report in a browser, or look at the answers:\n  {_python()} -c {shlex.quote(read)}"),
        soft_wrap=True,
    )


def print_numbers(summary: "Summary", console: Console, *, reused: int = 0) -> None:
    """Print how the run went: its outcomes, its pace, and how it compares with the run before.

    Args:
        summary: What stands in summary.json; the examples and the histograms may be missing.
        console: Where to.
        reused: Rows whose answer an earlier run had.
    """
    facts = [fmt.counted(summary["rows"], "row"), fmt.duration(summary["duration_s"])]
    if summary["rows_per_s"]:
        facts.append(fmt.rate(summary["rows_per_s"], "rows"))
    facts.append(fmt.counted(summary["completion_tokens"], "output token"))
    if summary["output_tokens_per_s"]:
        facts.append(fmt.rate(summary["output_tokens_per_s"], "tokens"))
    console.print()
    console.print(_outcomes_table(summary, with_advice=console.width >= _ADVICE_FROM_WIDTH))
    console.print()
    if summary["joined"]:
        facts.append(f"{fmt.counted(summary['joined'], 'row')} answered together with an identical one")
    facts += [fact for fact in (gpu_fact(summary), trace_fact(summary)) if fact]
    console.print(" · ".join(facts), soft_wrap=True)
    if summary["stopped_early"]:
        console.print(Text(f"Stopped early: {summary['stopped_early']}.", style="yellow"), soft_wrap=True)
    sent = summary["rows"] - summary["outcomes"].get("invalid", 0) - reused
    if reused:
        console.print(
            f"{fmt.counted(reused, 'row')} had an answer before and {'was' if reused == 1 else 'were'} not sent again.",
            soft_wrap=True,
        )
    if sent > 0 and (beside := comparison_fact(summary)):
        console.print(Text(beside), soft_wrap=True)
    if summary["verdict"]:
        console.print(Text(summary["verdict"]["advice"], style="dim"), soft_wrap=True)


def _python() -> str:
    """This interpreter, as short as it can be typed here: the one that has pandas."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _outcomes_table(summary: "Summary", *, with_advice: bool) -> Table:
    """Each outcome that happened, and what to do about those that are not ok."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("Outcome", no_wrap=True)
    table.add_column("Rows", justify="right", no_wrap=True)
    table.add_column("Share", justify="right", no_wrap=True)
    if with_advice:
        table.add_column("")
    for outcome in Outcome:
        number = summary["outcomes"][outcome]
        if number or outcome is Outcome.OK:
            fine = outcome is Outcome.OK
            word = Text(outcome, style="green" if fine else "yellow")
            advice = [Text("" if fine else ADVICE[outcome], style="dim")] if with_advice else []
            table.add_row(word, fmt.count(number), fmt.share(number, summary["rows"]), *advice)
    return table


#: Empty when every row is ok, and not listed then.
_REJECTS = "rejects.parquet"

_FILES = (
    ("results.parquet", "Results"),
    (_REJECTS, "Not ok"),
    ("report.html", "Report"),
    ("summary.json", "Summary"),
)


def error_line(message: str) -> None:
    """Print an error as one line on stderr."""
    Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
