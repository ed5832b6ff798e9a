import contextlib
import errno
import fcntl
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.batch import compaction
from clients.batch.ledger import Ledger, State
from clients.errors import LedgerInUseError, PromptsError, StorageError
from clients.prompts.rows import request_hash
from clients.records import ChatRequest, ChatResult, Outcome
from clients.results.schema import COLUMNS
from clients.storage import Folder

#: What a row asks; a few words, so that many rows ask the same.
PROMPTS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=8)
ENDS = st.sampled_from([Outcome.OK, Outcome.OK, Outcome.TRUNCATED, Outcome.REJECTED, Outcome.FAILED])


def request(row: int, prompt: str) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    return ChatRequest(row=row, id=f"row-{row}", request_hash=request_hash(body), payload=orjson.dumps(body))


def answer(asked: ChatRequest, content: str, outcome: Outcome = Outcome.OK) -> ChatResult:
    return ChatResult(
        row=asked.row, id=asked.id, request_hash=asked.request_hash, outcome=outcome, content=content, attempts=1
    )


def opened(home: Folder, *, rows: int, first_row: int = 0, earlier: tuple[Folder, ...] = ()) -> Ledger:
    return Ledger(home, earlier=earlier, first_row=first_row, rows=rows, lock_patience_s=0)


def answers_in(ledger: Ledger) -> dict[int, str]:
    """The committed answer of each row; a row that stands there twice is an error."""
    found: list[tuple[int, str]] = []
    for table, numbers in ledger.rows_by_segment():
        assert table.schema.equals(COLUMNS)
        found += zip(numbers.to_pylist(), table["content"].to_pylist(), strict=True)
    assert len(dict(found)) == len(found)
    return dict(found)


class Model:
    """What a ledger must do, in a few lines that are slow and plain: a bag of finished answers to each prompt."""

    def __init__(self) -> None:
        self.kept: Counter[str] = Counter()  # finished answers by prompt, over all plans
        self.serial = 0

    def run(self, ledger: Ledger, prompts: list[str], first_row: int, ends: list[Outcome], kill_after: int) -> None:
        """One run: claim every row, send what is left, commit in two segments, stop after some of them."""
        left = Counter(self.kept)
        claimed, to_send = [], []
        for at, prompt in enumerate(prompts):
            asked = request(first_row + at, prompt)
            outcome = ledger.claim(asked)
            assert (outcome is not None) == (left[prompt] > 0)
            assert outcome is not Outcome.FAILED
            if outcome is None:
                to_send.append((asked, prompt))
            else:
                left[prompt] -= 1
                claimed.append((asked.row, prompt))
        sent = []
        for at, (asked, prompt) in enumerate(to_send[:kill_after]):
            self.serial += 1
            end = ends[at % len(ends)]
            self.kept[prompt] += end is not Outcome.FAILED
            sent.append(answer(asked, f"{prompt}{self.serial}", end))
        middle = len(sent) // 2
        for part in (sent[middle:][::-1], sent[:middle]):
            if part:
                ledger.commit(part)
        found = answers_in(ledger)
        assert found.keys() == {row for row, _ in claimed} | {result.row for result in sent}
        assert all(found[row].startswith(prompt) for row, prompt in claimed)
        assert all(found[result.row] == result.content for result in sent)
        assert len(set(found.values())) == len(found), "one answer was given to two rows"
        assert ledger.unanswered() == len(prompts) - len(found)


@settings(deadline=None)
@given(
    st.lists(st.tuples(PROMPTS, st.integers(0, 2), ENDS | ENDS, st.integers(0, 8)), min_size=1, max_size=5),
    st.integers(0, 1000),
)
def test_any_history_of_runs_and_edits_sends_exactly_what_has_no_answer(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[list[str], int, Outcome, int]], first_row: int
) -> None:
    """Every run may have an edited input, may belong to another plan, and may be killed after any number of rows."""
    state, model = State(Folder(str(tmp_path_factory.mktemp("state")))), Model()
    for prompts, plan, end, kill_after in history:
        home, earlier = state.home(f"plan{plan}", 0), state.earlier(f"plan{plan}")
        with opened(home, rows=len(prompts), first_row=first_row, earlier=earlier) as ledger:
            model.run(ledger, prompts, first_row, [Outcome.OK, end], kill_after)


def test_a_finished_run_that_is_repeated_gives_every_row_its_own_answer(tmp_path: Path) -> None:
    home = Folder(str(tmp_path))
    asked = [request(row, "same" if row % 2 else f"p{row}") for row in range(20)]
    with opened(home, rows=20) as ledger:
        ledger.commit([answer(one, f"answer {one.row}") for one in asked[10:]])
        ledger.commit([answer(one, f"answer {one.row}") for one in asked[:10]])
    with opened(home, rows=20) as ledger:
        assert all(ledger.claim(one) is Outcome.OK for one in asked)
        assert answers_in(ledger) == {row: f"answer {row}" for row in range(20)}


@pytest.mark.parametrize(
    ("edited", "again"),
    [("abXde", "X"), ("abXcde", "X"), ("abde", ""), ("edcba", ""), ("aabcde", "a"), ("", ""), ("xyz", "xyz")],
)
def test_only_edited_and_inserted_rows_are_sent_again(tmp_path: Path, edited: str, again: str) -> None:
    state = State(Folder(str(tmp_path)))
    with opened(state.home("old", 0), rows=5) as ledger:
        ledger.commit([answer(request(row, prompt), prompt) for row, prompt in enumerate("abcde")])
    with opened(state.home("new", 0), rows=len(edited), earlier=state.earlier("new")) as ledger:
        asked = [request(row, prompt) for row, prompt in enumerate(edited)]
        assert "".join(edited[one.row] for one in asked if ledger.claim(one) is None) == again
        assert ledger.unanswered() == len(again)


def test_rows_that_ended_failed_are_sent_again_and_the_new_answer_counts(tmp_path: Path) -> None:
    home, asked = Folder(str(tmp_path)), request(0, "a")
    with opened(home, rows=1) as ledger:
        ledger.commit([answer(asked, "", Outcome.FAILED)])
        assert ledger.unanswered() == 0
    with opened(home, rows=1) as ledger:
        assert ledger.claim(asked) is None
        ledger.commit([answer(asked, "better")])
        assert answers_in(ledger) == {0: "better"}
    with opened(home, rows=1) as ledger:
        assert ledger.claim(asked) is Outcome.OK
        assert answers_in(ledger) == {0: "better"}


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.FAILED, Outcome.INVALID}))  # those are never sent
def test_every_other_outcome_is_final(tmp_path: Path, outcome: Outcome) -> None:
    home, asked = Folder(str(tmp_path)), request(3, "a")
    with opened(home, rows=1, first_row=3) as ledger:
        ledger.commit([answer(asked, "x", outcome)])
    with opened(home, rows=1, first_row=3) as ledger:
        assert ledger.claim(asked) is outcome


def test_a_hundred_thousand_equal_requests_are_claimed_in_linear_time(tmp_path: Path) -> None:
    rows, home = 100_000, Folder(str(tmp_path))
    hashed = request(0, "a").request_hash
    with opened(home, rows=rows) as ledger:
        for start in range(0, rows, 50_000):
            numbers = range(start, start + 50_000)
            ledger.commit([ChatResult(row=row, id="x", request_hash=hashed, outcome=Outcome.OK) for row in numbers])
    start_s = time.monotonic()
    with opened(home, rows=rows, first_row=50_000) as ledger:
        claims = [ledger.claim(ChatRequest(row, "x", hashed, b"{}")) for row in range(50_000, 150_000)]
        assert claims.count(Outcome.OK) == rows
        assert ledger.unanswered() == 0
    assert time.monotonic() - start_s < 10


def test_equal_requests_that_are_used_up_do_not_stand_in_the_way_of_others(tmp_path: Path) -> None:
    home = Folder(str(tmp_path))
    with opened(home, rows=40) as ledger:
        ledger.commit([answer(request(row, "a"), "x") for row in range(3)])
        ledger.commit([answer(request(row, f"p{row}"), "x") for row in range(3, 20)])
    with opened(home, rows=60) as ledger:
        assert [ledger.claim(request(row, "a")) for row in range(30, 34)] == [Outcome.OK] * 3 + [None]
        assert [ledger.claim(request(row, f"new{row}")) for row in range(34, 60)] == [None] * 26
        assert [ledger.claim(request(row, f"p{row}")) for row in range(3, 20)] == [Outcome.OK] * 17


def test_a_row_that_the_shard_does_not_have_means_the_input_has_changed(tmp_path: Path) -> None:
    with opened(Folder(str(tmp_path)), rows=2, first_row=5) as ledger:
        for row in (4, 7):
            with pytest.raises(PromptsError, match=f"row {row} is not among the 2 rows .* input has changed"):
                ledger.claim(request(row, "a"))


def filled(home: Folder) -> None:
    with opened(home, rows=4) as ledger:
        ledger.commit([answer(request(row, f"p{row}"), f"a{row}") for row in (0, 1)])
        ledger.commit([answer(request(row, f"p{row}"), f"a{row}") for row in (2, 3)])


def claimed(home: Folder) -> list[int]:
    with opened(home, rows=4) as ledger:
        return [row for row in range(4) if ledger.claim(request(row, f"p{row}"))]


def test_a_half_written_file_beside_the_segments_hides_none_of_them(tmp_path: Path) -> None:
    home = Folder(str(tmp_path))
    filled(home)
    whole = (tmp_path / home.names()[0]).read_bytes()
    for cut in (0, 1, len(whole) // 2, len(whole)):
        (tmp_path / f".000002-0a1b2c3d.parquet.{cut:08x}").write_bytes(whole[:cut])
    (tmp_path / "notes.txt").write_text("not a segment")
    assert claimed(home) == [0, 1, 2, 3]


def test_a_segment_cut_at_any_byte_is_named_with_the_mend_and_the_others_stay(tmp_path: Path) -> None:
    home = Folder(str(tmp_path))
    filled(home)
    name = home.names()[1]
    whole = (tmp_path / name).read_bytes()
    for cut in [*range(0, len(whole), 97), len(whole) - 1]:
        (tmp_path / name).write_bytes(whole[:cut])
        with pytest.raises(StorageError) as caught:
            opened(home, rows=4)
        assert str(caught.value).startswith(f"cannot read {tmp_path}/{name}: ")
        assert str(caught.value).endswith("Move the file away; its rows are then sent again.")
        assert "\n" not in str(caught.value)
    (tmp_path / name).unlink()
    assert claimed(home) == [0, 1]


def test_a_segment_with_a_damaged_byte_is_named_or_read_as_it_was(tmp_path: Path) -> None:
    home = Folder(str(tmp_path))
    filled(home)
    path = tmp_path / home.names()[1]
    whole = path.read_bytes()
    for at in range(0, len(whole), 41):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(StorageError):
            assert {0, 1} <= set(claimed(home))


@pytest.mark.parametrize(
    "columns",
    [
        {"a": [1]},
        {"row": ["x"], "request_hash": ["0" * 32], "outcome": ["ok"]},
        {"row": [1], "request_hash": ["no hash"], "outcome": ["ok"]},
        {"row": [1], "request_hash": [""], "outcome": ["ok"]},
        {"row": [1], "request_hash": ["0" * 32], "outcome": ["fine"]},
        {"row": [None], "request_hash": [None], "outcome": [None]},
    ],
)
def test_a_parquet_file_of_something_else_is_named(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "prompts.parquet")
    with pytest.raises(StorageError, match=r"prompts\.parquet: .*Move the file away"):
        opened(Folder(str(tmp_path)), rows=1)


def test_a_refused_ledger_lets_go_of_its_lock(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"rubbish")
    for _ in range(2):
        with pytest.raises(StorageError, match="Move the file away"):
            opened(Folder(str(tmp_path)), rows=1)


def test_a_commit_that_fails_keeps_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    home = Folder(str(tmp_path / "in"))
    with opened(home, rows=2) as ledger:
        ledger.commit([answer(request(0, "a"), "kept")])
        (tmp_path / "in").rename(tmp_path / "away")
        (tmp_path / "in").touch()
        with pytest.raises(StorageError, match="cannot write"):
            ledger.commit([answer(request(1, "b"), "later")])
        assert ledger.unanswered() == 1
        (tmp_path / "in").unlink()
        (tmp_path / "away").rename(tmp_path / "in")
        ledger.commit([answer(request(1, "b"), "later")])
        assert answers_in(ledger) == {0: "kept", 1: "later"}


def test_a_folder_that_cannot_be_made_is_named_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(StorageError, match=r"cannot write .*/x/y: .*Choose another folder with --output"):
        opened(Folder(str(tmp_path / "x" / "y")), rows=1)


def test_a_second_process_on_the_same_shard_is_refused_and_takes_over_after_the_first(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from clients.batch.ledger import Ledger\n"
        "from clients.storage import Folder\n"
        "with Ledger(Folder(sys.argv[1]), first_row=0, rows=1):\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        for patience_s in (0, 0.3):
            start_s = time.monotonic()
            with pytest.raises(LedgerInUseError, match=f"another process is working on {tmp_path}"):
                Ledger(Folder(str(tmp_path)), first_row=0, rows=1, lock_patience_s=patience_s)
            assert patience_s <= time.monotonic() - start_s < patience_s + 1
        other.kill()
        with Ledger(Folder(str(tmp_path)), first_row=0, rows=1, lock_patience_s=5) as ledger:
            assert ledger.unanswered() == 1


def test_a_volume_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    filled(Folder(str(tmp_path)))
    assert claimed(Folder(str(tmp_path))) == [0, 1, 2, 3]


def test_an_object_store_keeps_a_ledger_too() -> None:
    """`mock://` is Arrow's own store in memory."""
    state = State(Folder("mock:///bucket/run"))
    state.root._fs.create_dir("bucket/run/ledger/a/00000")  # which a real store does not need
    filled(state.home("a", 0))
    assert claimed(state.home("a", 0)) == [0, 1, 2, 3]
    assert [folder.location for folder in state.earlier("b")] == ["mock:///bucket/run/ledger/a"]


def test_plans_are_told_apart_and_their_answers_shared(tmp_path: Path) -> None:
    state = State(Folder(str(tmp_path)))
    assert state.earlier("a") == ()
    filled(state.home("a", 0))
    filled(state.home("b", 7))
    assert [folder.location for folder in state.earlier("a")] == [f"{tmp_path}/ledger/b"]
    assert [folder.location for folder in state.earlier("c")] == [f"{tmp_path}/ledger/a", f"{tmp_path}/ledger/b"]
    with opened(state.home("c", 1), rows=9, earlier=state.earlier("c")) as ledger:
        found = [ledger.claim(request(row, f"p{row % 4}")) for row in range(9)]
    assert found.count(Outcome.OK) == 8


class KilledError(BaseException):
    """Nothing may catch it, as nothing catches SIGKILL."""


@contextlib.contextmanager
def killed_after(steps: int) -> Iterator[None]:
    """Let only so many files be written or removed."""
    write, remove = Folder.write, Folder.remove
    left = iter(range(steps))

    def counted(step: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            if next(left, None) is None:
                raise KilledError
            step(*arguments)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "write", counted(write))
        patch.setattr(Folder, "remove", counted(remove))
        yield


def many_small(home: Folder, *, rows: int = 100) -> None:
    with opened(home, rows=rows) as ledger:
        for row in range(rows):
            ledger.commit([answer(request(row, f"p{row % 90}"), f"a{row}")])


def claimed_answers(home: Folder, *, rows: int = 100, earlier: tuple[Folder, ...] = ()) -> dict[int, str]:
    with opened(home, rows=rows, earlier=earlier) as ledger:
        assert all(ledger.claim(request(row, f"p{row % 90}")) is Outcome.OK for row in range(rows))
        assert ledger.claim(request(0, "p0")) is None, "an answer that stands there twice was given away twice"
        return answers_in(ledger)


def test_many_small_segments_become_few_and_say_the_same(tmp_path: Path) -> None:
    home = Folder(str(tmp_path))
    many_small(home)
    before = {row: f"a{row}" for row in range(100)}
    assert len(home.names()) == 100
    assert claimed_answers(home) == before
    assert len(home.names()) == 1
    with opened(home, rows=101) as ledger:
        ledger.commit([answer(request(100, "new"), "a100")])
    assert home.names()[1] > home.names()[0], "the newest comes last"
    assert claimed_answers(home) == before


def test_few_segments_and_large_ones_stay_as_they_are(tmp_path: Path) -> None:
    home = Folder(str(tmp_path))
    with opened(home, rows=40 * 256) as ledger:
        for at in range(40):
            ledger.commit([answer(request(row, f"p{row}"), "x") for row in range(256 * at, 256 * at + 256)])
    names = home.names()
    with opened(home, rows=1):
        assert home.names() == names
    small = Folder(f"{tmp_path}/small")
    many_small(small, rows=31)
    with opened(small, rows=1):
        assert len(small.names()) == 31


@pytest.mark.slow
def test_a_kill_at_any_step_of_making_few_of_many_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_MADE_ROWS", 40)
    many_small(Folder(f"{tmp_path}/origin"))
    expected = {row: f"a{row}" for row in range(100)}
    for steps in (*range(0, 103, 4), 102, 103):
        home = Folder(f"{tmp_path}/state{steps}/ledger/plan/00000")
        shutil.copytree(tmp_path / "origin", home.location)
        with killed_after(steps), contextlib.suppress(KilledError):
            compaction.compact(home)
        left = home.names()
        plan = Folder(f"{tmp_path}/state{steps}/ledger/plan")
        assert claimed_answers(Folder(f"{tmp_path}/other{steps}"), earlier=(plan,)) == expected
        assert home.names() == left, "what belongs to another plan was touched"
        assert claimed_answers(home) == expected
        assert len(home.names()) < 3 + 32
        assert (len(left) == 3) is (steps == 103)


def test_rows_that_are_to_be_sent_again_keep_their_answer_until_there_is_a_better_one(tmp_path: Path) -> None:
    home, retry = Folder(str(tmp_path)), frozenset({Outcome.TRUNCATED})
    asked = [request(row, f"p{row}") for row in range(4)]
    with opened(home, rows=4) as ledger:
        ledger.commit([answer(one, "old", Outcome.TRUNCATED) for one in asked[:3]])
        ledger.commit([answer(asked[3], "fine")])
    with Ledger(home, first_row=0, rows=4, retry=retry) as ledger:
        assert [ledger.claim(one) for one in asked] == [None, None, None, Outcome.OK]
        assert ledger.unanswered() == 0
        ledger.commit([answer(asked[0], "new"), answer(asked[1], "", Outcome.FAILED)])
        ledger.commit([answer(asked[2], "", Outcome.REJECTED)])
        assert answers_in(ledger) == {0: "new", 1: "old", 2: "old", 3: "fine"}
    with opened(home, rows=4) as ledger:
        assert [ledger.claim(one) for one in asked] == [Outcome.OK, Outcome.TRUNCATED, Outcome.TRUNCATED, Outcome.OK]
        assert answers_in(ledger) == {0: "new", 1: "old", 2: "old", 3: "fine"}


def test_an_earlier_answer_that_is_shared_counts_its_attempts_once(tmp_path: Path) -> None:
    home = Folder(str(tmp_path))
    with opened(home, rows=1) as ledger:
        ledger.commit([answer(request(0, "a"), "x")])
    with Ledger(home, first_row=0, rows=3, share=True) as ledger:
        assert [ledger.claim(request(row, "a")) for row in range(3)] == [Outcome.OK] * 3
        ((table, numbers),) = ledger.rows_by_segment()
    assert numbers.to_pylist() == [0, 1, 2]
    assert table["attempts"].to_pylist() == [1, 0, 0]
    assert table["content"].to_pylist() == ["x"] * 3


def test_segments_come_in_the_order_of_their_first_rows(tmp_path: Path) -> None:
    home = Folder(str(tmp_path))
    with opened(home, rows=30) as ledger:
        for rows in ([20, 29], [3, 25], [0, 28]):
            ledger.commit([answer(request(row, f"p{row}"), "x") for row in rows])
        assert [numbers.to_pylist() for _, numbers in ledger.rows_by_segment()] == [[0, 28], [3, 25], [20, 29]]
    with opened(home, rows=30) as ledger:
        for row in (3, 20, 25, 28):
            ledger.claim(request(row, f"p{row}"))
        assert [numbers.to_pylist() for _, numbers in ledger.rows_by_segment()] == [[3, 25], [20], [28]]


def test_an_answer_comes_back_with_all_its_columns(tmp_path: Path) -> None:
    result = answer(request(0, "a"), "안녕 \x00 \U0001f600")
    with opened(Folder(str(tmp_path)), rows=1) as ledger:
        ledger.commit([result])
        ((table, numbers),) = ledger.rows_by_segment()
    assert numbers.to_pylist() == [0]
    assert table.to_pylist() == [{name: getattr(result, name) for name in COLUMNS.names}]
