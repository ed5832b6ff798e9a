import io
import json
import logging
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len
from rich.console import Console

from clients.display import RunView, error_line, print_summary
from clients.events import log_to_stderr
from clients.records import Outcome
from clients.results.advice import ADVICE


def terminal(width: int = 100, **how: Any) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False, **how)


def plain(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=width, highlight=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue()).replace("\r", "\n")


def raw(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    logger = logging.getLogger("clients")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


def progress(shard: int = 0, **fields: Any) -> dict[str, Any]:
    base = {
        "rows": 500,
        "done": 100,
        "reused": 0,
        "output_tokens": 4000,
        "in_flight": 16,
        "outcomes": {"ok": 97, "failed": 3},
    }
    return {"event": "shard.progress", "shard": shard, **base, **fields}


PLANNED = {"event": "shards.planned", "rows_of_shard": [500, 500]}


def summary(**changes: Any) -> Any:
    outcomes = dict.fromkeys(Outcome, 0) | {Outcome.OK: 1200, Outcome.FAILED: 3, Outcome.TRUNCATED_IN_REASONING: 31}
    fields: dict[str, Any] = {
        "rows": 1234,
        "outcomes": outcomes,
        "duration_s": 93.4,
        "rows_per_s": 13.2,
        "completion_tokens": 1_234_567,
        "output_tokens_per_s": 13_218.0,
        "joined": 0,
        "stopped_early": None,
        "verdict": None,
    }
    return fields | changes


@pytest.mark.parametrize("width", [200, 80, 40, 12])
def test_the_live_line_is_one_line_however_narrow_the_terminal(width: int) -> None:
    console = terminal(width)
    with RunView(console) as view:
        view.see(PLANNED)
        view.see_and_show(progress(0))
        view.see_and_show(progress(1, done=500, outcomes={"ok": 500}))
        lines = [line for line in shown(console).splitlines() if line.strip()]
    assert lines
    assert all(cell_len(line) <= width for line in lines)
    if width >= 80:
        assert "600/1,000 rows · 597 ok, 3 other" in lines[-1]
        assert "32 in flight" in lines[-1]


def test_the_rate_and_the_time_left_come_from_what_was_sent_now() -> None:
    view = RunView(plain())
    view.see({"event": "shards.planned", "rows_of_shard": [1000]})
    view.see(progress(rows=1000, done=400, reused=400, outcomes={"ok": 400}, output_tokens=0))
    assert view._numbers(100.0)["rows_per_s"] is None
    view.see(progress(rows=1000, done=500, reused=400, outcomes={"ok": 500}, output_tokens=2000))
    found = view._numbers(110.0)
    assert (found["rows_per_s"], found["output_tokens_per_s"], found["eta_s"]) == (10.0, 200.0, 50)


def test_when_all_rows_are_done_the_line_says_what_goes_on() -> None:
    console = terminal()
    with RunView(console) as view:
        view.see({"event": "shards.planned", "rows_of_shard": [500]})
        view.see_and_show(progress(done=500, outcomes={"ok": 500}, in_flight=0))
    assert "500/500 rows · 500 ok, 0 other · writing the results" in shown(console)


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    for no_color in (False, True):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        console = terminal()
        with RunView(console) as view:
            view.see(PLANNED)
            view.see_and_show(progress())
        print_summary(summary(), Path("out"), console)
        assert bool(colour.search(raw(console))) is not no_color


def test_without_a_terminal_progress_is_a_line_of_json_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr()
    with RunView(plain()) as view:
        view.see(PLANNED)
        for _ in range(20):
            view.see_and_show(progress())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    assert found["event"] == "run.progress"
    assert (found["rows"], found["done"], found["ok"], found["other"]) == (1000, 100, 97, 3)


def test_without_a_terminal_nothing_moves_and_nothing_is_coloured() -> None:
    console = plain()
    with RunView(console) as view:
        view.stage("Starting the pipeline")
        view.note("Model x at y")
        view.see({"event": "prompts.checked", "rows": 1200, "invalid": 2, "repeated_ids": 3, "duplicates": 4})
    assert raw(console).splitlines() == [
        "Starting the pipeline",
        "Model x at y",
        "1,200 rows checked, 2 malformed",
        "  4 rows asking the same as an earlier row",
        "  3 rows with the id of an earlier row; `row` tells them apart",
    ]


def test_a_note_from_outside_is_shown_as_it_is() -> None:
    console = plain(40)
    view = RunView(console)
    view.see({"event": "row.invalid", "error": "line 3: found [bold]이름[/bold] and [link=x]"})
    view.see({"event": "endpoint.waiting", "base_url": "http://h/v1", "reason": "Connection refused"})
    view.see({"event": "endpoint.unreachable", "endpoint": "http://h/v1", "reason": "reset"})
    view.see({"event": "commit.failed", "reason": "cannot write: No space left on device."})
    assert raw(console).splitlines() == [
        "  malformed row: line 3: found [bold]이름[/bold] and [link=x]",
        "  waiting for http://h/v1: Connection refused",
        "  waiting for http://h/v1: reset",
        "  cannot write: No space left on device.",
    ]


def test_the_first_step_that_fails_gives_the_reason_and_the_exit_code() -> None:
    view = RunView(plain())
    view.see({"event": "step.failed", "error": "no key", "exit_code": 1})
    view.see({"event": "step.failed", "error": "interrupted", "exit_code": 143})
    assert (view.failure, view.exit_code) == ("no key", 1)


def test_a_shard_that_an_earlier_run_finished_counts_as_done_and_as_reused() -> None:
    console = terminal(120)
    with RunView(console) as view:
        view.see(PLANNED)
        view.see({"event": "shard.settled", "shard": 0, "rows": 500, "reused": 500})
        view.see_and_show(progress(1, reused=30))
        # A step that is tried again meets what it has done itself.
        view.see_and_show({"event": "shard.settled", "shard": 1, "rows": 500, "reused": 0})
        lines = [line for line in shown(console).splitlines() if line.strip()]
    assert "600/1,000 rows · 97 ok, 3 other" in lines[-2]
    assert "1,000/1,000 rows" in lines[-1]
    assert view.reused == 530


def test_events_nobody_knows_are_passed_over() -> None:
    view = RunView(plain())
    view.see({"event": "something.new", "x": 1})
    view.see({"no": "event"})


@pytest.mark.parametrize("width", [120, 80, 60, 50, 42])
def test_the_summary_gives_each_outcome_that_is_not_ok_its_advice(width: int) -> None:
    console = plain(width)
    print_summary(summary(), Path("out"), console)
    text = raw(console)
    table = [line for line in text.split("\n\n")[0].splitlines() if line.strip()]
    assert all(cell_len(line) <= width for line in table)
    words = " ".join(text.split())
    assert re.search(r"ok +1,200 +97.2 %", text)
    assert re.search(r"failed +3 +0.24 %", text)
    assert "truncated_in_reasoning" in text
    assert "empty" not in text, "what did not happen is not listed"
    assert ("run again" in words) == (width >= 60), "in a narrow terminal the numbers come first"
    if width >= 120:
        assert ADVICE[Outcome.FAILED] in words
        assert ADVICE[Outcome.TRUNCATED_IN_REASONING] in words
    assert ADVICE[Outcome.OK] not in words


@pytest.mark.parametrize(("ok", "is_listed"), [(1234, False), (1233, True)])
def test_the_file_of_rows_that_went_wrong_is_named_when_there_are_some(
    tmp_path: Path, ok: int, is_listed: bool
) -> None:
    (tmp_path / "rejects.parquet").touch()
    console = plain(80)
    outcomes = dict.fromkeys(Outcome, 0) | {Outcome.OK: ok, Outcome.FAILED: 1234 - ok}
    print_summary(summary(outcomes=outcomes), tmp_path, console)
    assert ("Not ok    " in raw(console)) == is_listed


def test_the_summary_names_files_with_korean_names_and_a_command_that_works(tmp_path: Path) -> None:
    folder = tmp_path / "결과 폴더 [1]'s"
    folder.mkdir()
    (folder / "report.html").write_text("")
    pq.write_table(pa.table({"outcome": ["ok"], "content": ["안녕하세요"]}), folder / "results.parquet")
    console = plain(40)
    print_summary(summary(), folder, console)
    lines = raw(console).splitlines()
    assert f"Results   {folder / 'results.parquet'}" in lines
    assert f"Report    {folder / 'report.html'}" in lines
    assert not any("rejects.parquet" in line for line in lines)
    shown = subprocess.run(lines[-1].strip(), shell=True, capture_output=True, text=True, check=True)  # noqa: S602
    assert "안녕하세요" in shown.stdout


def test_a_summary_without_any_request_has_no_rates() -> None:
    console = plain()
    nothing = dict.fromkeys(Outcome, 0)
    print_summary(
        summary(
            rows=0, outcomes=nothing, duration_s=None, rows_per_s=None, completion_tokens=0, output_tokens_per_s=None
        ),
        Path("out"),
        console,
    )
    assert "rows/s" not in raw(console)
    assert re.search(r"^ok +0", raw(console), re.MULTILINE)


def test_an_error_is_one_line_on_stderr_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    message = "cannot write [red]/path[/red] " + "x" * 300
    error_line(message)
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == f"error: {message}\n"
