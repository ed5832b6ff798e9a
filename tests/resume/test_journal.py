"""What a killed process had not committed yet stands in its journal, and is committed by the next one."""

import dataclasses
import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.batch.journal import Journal, journals, read_journal
from clients.batch.ledger import Ledger
from clients.batch.recovery import recover
from clients.records import ChatRequest, ChatResult, Outcome
from clients.storage import Folder

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def result(row: int, content: str = "x", **more: Any) -> ChatResult:
    fields: dict[str, Any] = {"outcome": Outcome.OK, "attempts": 1, **more}
    return ChatResult(row=row, id=f"row-{row}", request_hash=f"{row:032x}", content=content, **fields)


def opened(folder: Path, *, earlier: tuple[Folder, ...] = (), rows: int = 100) -> Ledger:
    return Ledger(Folder(str(folder)), earlier=earlier, first_row=0, rows=rows, lock_patience_s=0)


def claimed(ledger: Ledger, rows: int = 100) -> set[int]:
    asked = (ChatRequest(row, f"row-{row}", f"{row:032x}", b"{}") for row in range(rows))
    return {request.row for request in asked if ledger.claim(request) is not None}


@given(
    content=st.none() | text,
    message=st.none() | text,
    started=st.none() | st.datetimes(min_value=dt.datetime(1970, 1, 1), timezones=st.just(dt.UTC)),
    outcome=st.sampled_from(list(Outcome)),
)
def test_what_is_read_is_what_was_written(tmp_path_factory: Any, **fields: Any) -> None:
    folder = tmp_path_factory.mktemp("journal")
    written = [
        result(row, fields["content"], error_message=fields["message"], started_at=fields["started"],
               outcome=fields["outcome"], latency_s=0.1 * row, completion_tokens=row)
        for row in range(3)
    ]  # fmt: skip
    journal = Journal(folder)
    journal.write(written[:2])
    journal.write(written[2:])
    (path,) = journals(folder)
    assert list(read_journal(path)) == written


def test_a_write_that_was_cut_short_costs_only_what_was_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write([result(0), result(1)])
    (path,) = journals(tmp_path)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end] + b"\n" + whole)
        rows = [found.row for found in read_journal(path)]
        assert rows[-2:] == [0, 1]
        assert len(rows) <= 4


def test_the_next_process_commits_what_is_left(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.commit([result(0)])
        journal = ledger.journal()
        assert journal is not None
        journal.write([result(1), result(2, "old"), result(2, "new")])
    with opened(tmp_path) as ledger:
        assert claimed(ledger) == {0, 1, 2}
        answers = {row: text for table, rows in ledger.rows_by_segment()
                   for row, text in zip(rows.to_pylist(), table["content"].to_pylist(), strict=True)}  # fmt: skip
    assert answers == {0: "x", 1: "x", 2: "new"}
    assert journals(tmp_path) == []


def test_what_was_committed_before_the_kill_is_not_committed_again(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        journal = ledger.journal()
        assert journal is not None
        journal.write([result(row) for row in range(5)])
        journal.turn()
        ledger.commit([result(row) for row in range(5)])  # and the kill comes before the journal is removed
    recover(Folder(str(tmp_path)))
    assert journals(tmp_path) == []
    assert pq.read_table(str(tmp_path), columns=["row"]).num_rows == 5


def test_a_recovery_that_is_killed_is_done_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(tmp_path).write([result(row) for row in range(5)])

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            recover(Folder(str(tmp_path)))
    recover(Folder(str(tmp_path)))
    assert pq.read_table(str(tmp_path), columns=["row"]).num_rows == 5


def test_another_plan_s_journal_is_used_too_unless_it_is_at_work(tmp_path: Path) -> None:
    other = tmp_path / "ledger/other/00000"
    with opened(other) as ledger:
        journal = ledger.journal()
        assert journal is not None
        journal.write([result(3)])
        with opened(tmp_path / "ledger/mine/00000", earlier=(Folder(str(tmp_path / "ledger/other")),)) as mine:
            assert claimed(mine) == set()
    with opened(tmp_path / "ledger/mine/00000", earlier=(Folder(str(tmp_path / "ledger/other")),)) as mine:
        assert claimed(mine) == {3}


def test_a_disk_that_is_full_is_the_commit_s_to_tell(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "nowhere")
    journal.write([result(0)])
    journal.drop(journal.turn())


def test_files_go_when_their_answers_are_committed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write([result(0)])
    files = journal.turn()
    journal.write([result(1)])
    journal.drop(files)
    (path,) = journals(tmp_path)
    assert [found.row for found in read_journal(path)] == [1]


def test_every_field_of_a_result_is_kept(tmp_path: Path) -> None:
    full = ChatResult(**{field.name: f"a {field.name}" for field in dataclasses.fields(ChatResult)} | {
        "row": 1, "outcome": Outcome.TRUNCATED, "prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 3,
        "attempts": 4, "latency_s": 0.5, "started_at": dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC),
    })  # type: ignore[arg-type]  # fmt: skip
    Journal(tmp_path).write([full])
    (path,) = journals(tmp_path)
    assert list(read_journal(path)) == [full]
