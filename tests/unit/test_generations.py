"""Which run works in which generation, and which generations go; in a store, with a clock of the test's own."""

import os
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clients.errors import StorageError
from clients.storage import Folder
from clients.storage.generations import FINISHED, Generations, job_of, states_of

DAY_S = 86_400.0
X, Y = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def states(tmp_path: Path) -> Generations:
    return Generations(str(tmp_path / "state"))


def begin(states: Generations, run: str, content: str = X, *, fresh: bool = False) -> str:
    return states.begin(content, run=run, fresh=fresh, now=time.time())


def finish(states: Generations, place: str, run: str, job: str = "job", **facts: Any) -> None:
    states.finish(place, run=run, job=job, facts=facts, now=time.time())


def number(place: str) -> str:
    return place.rpartition("/")[2]


def there(states: Generations) -> set[str]:
    return {"/".join(name.split("/")[:2]) for name in states._states.names() if name[0] in "0f"}


def age(states: Generations, name: str, days: float) -> None:
    path = Path(states._states.location) / name
    moment = time.time() - days * DAY_S
    os.utime(path, (moment, moment))


def test_a_run_that_resumes_another_goes_on_in_its_generation_finished_or_not(states: Generations) -> None:
    first = begin(states, "a")
    finish(states, first, "b")
    for earlier in ("a", "b"):
        assert states.begin(X, run="c", fresh=False, now=time.time(), resumes=earlier) == first
    assert number(states.begin(X, run="c", fresh=False, now=time.time(), resumes="z")) == "0002"


def test_an_unfinished_generation_is_gone_on_with_and_after_a_finished_one_comes_the_next(states: Generations) -> None:
    first = begin(states, "a")
    assert begin(states, "b") == first
    assert number(first) == "0001"
    finish(states, first, "b")
    assert begin(states, "b") == first, "its last step may be tried again"
    second = begin(states, "c")
    assert number(second) == "0002"
    finish(states, second, "c")
    assert there(states) == {f"{X}/0002"}


def test_other_prompts_have_generations_of_their_own(states: Generations) -> None:
    assert begin(states, "a", X).rpartition("/")[0].endswith(X)
    assert begin(states, "b", Y).endswith(f"{Y}/0001")


def test_fresh_begins_anew_once_for_each_run(states: Generations) -> None:
    begin(states, "a")
    second = begin(states, "b", fresh=True)
    assert number(second) == "0002"
    assert begin(states, "b", fresh=True) == second
    assert number(begin(states, "c", fresh=True)) == "0003"


def test_a_generation_in_which_a_run_may_be_at_work_stays(states: Generations) -> None:
    first = begin(states, "a")
    second = begin(states, "b", fresh=True)
    finish(states, second, "b")
    assert there(states) == {f"{X}/0001", f"{X}/0002"}
    assert states._states.read(f"{X}/0001/begun.json")
    finish(states, first, "a", "other job")
    assert f"{X}/0001" in there(states)


def test_what_a_job_did_before_goes_even_if_the_prompts_were_others(states: Generations) -> None:
    finish(states, begin(states, "a", X), "a")
    finish(states, begin(states, "b", Y), "b")
    assert there(states) == {f"{Y}/0001"}


def test_the_newest_of_another_job_stays(states: Generations) -> None:
    finish(states, begin(states, "a"), "a", "one")
    finish(states, begin(states, "b"), "b", "two")
    assert there(states) == {f"{X}/0001", f"{X}/0002"}
    finish(states, begin(states, "c"), "c", "one")
    assert there(states) == {f"{X}/0002", f"{X}/0003"}


def test_answers_are_taken_from_the_own_job_then_the_same_prompts_then_any(states: Generations) -> None:
    assert states.finished(X, "one") == ""
    ours, theirs = begin(states, "a", X), begin(states, "b", Y)
    finish(states, ours, "a", "one")
    finish(states, theirs, "b", "two")
    assert states.finished(X, "one") == ours
    assert states.finished(Y, "one") == ours
    assert states.finished(X, "three") == ours
    assert states.finished(Y, "three") == theirs
    assert states.finished("0" * 16, "three") == theirs


def test_facts_are_those_of_the_newest(states: Generations) -> None:
    assert states.facts("job") is None
    finish(states, begin(states, "a"), "a", parts=["p"], rows=1)
    found = states.facts("job")
    assert found is not None
    assert {name: found[name] for name in ("run", "parts", "rows")} == {"run": "a", "parts": ["p"], "rows": 1}


def test_what_nobody_worked_in_for_a_month_goes(states: Generations) -> None:
    begin(states, "a", X)
    age(states, f"begun/{X}-0001.json", 31)
    kept = begin(states, "b", Y)
    finish(states, kept, "b")
    assert there(states) == {f"{Y}/0001"}
    assert states._states.names() == [f"{Y}/0001/begun.json", f"{Y}/0001/{FINISHED}", "newest/job.json"]


def test_what_a_run_went_on_with_is_not_old(states: Generations) -> None:
    begin(states, "a", X)
    age(states, f"begun/{X}-0001.json", 31)
    begin(states, "b", X)
    finish(states, begin(states, "c", Y), "c")
    assert there(states) == {f"{X}/0001", f"{Y}/0001"}


@pytest.mark.parametrize(("days", "stays"), [(93, True), (101, False)])
def test_a_job_of_every_quarter_finds_what_it_did_before(states: Generations, days: float, *, stays: bool) -> None:
    finish(states, begin(states, "a", X), "a", "quarterly")
    age(states, "newest/quarterly.json", days)
    finish(states, begin(states, "b", Y), "b", "daily")
    assert (f"{X}/0001" in there(states)) == stays
    assert (states.facts("quarterly") is not None) == stays


def test_what_is_left_of_a_removed_generation_is_not_gone_on_with(states: Generations) -> None:
    place = begin(states, "a")
    Folder(place).write("ledger/plan/00000/000000-x.parquet", b"x")
    Folder(place).remove("begun.json")  # a process that was killed while it removed all of it
    assert number(begin(states, "b")) == "0002"
    finish(states, f"{states._states.location}/{X}/0002", "b")
    assert there(states) == {f"{X}/0002"}


def test_names_that_are_none_of_ours_are_never_removed(states: Generations) -> None:
    states._states.write("begun/x-..-y.json", b"{}")
    states._states.write("begun/x.json", b"{}")
    states._states.write("newest/odd.json", orjson.dumps({"place": "../../etc", "at": 0, "run": "r"}))
    for name in ("begun/x-..-y.json", "begun/x.json", "newest/odd.json"):
        age(states, name, 1000)
    outside = Path(states._states.location).parent / "etc"
    outside.mkdir()
    finish(states, begin(states, "a"), "a")
    assert outside.is_dir()
    assert {name.split("/")[0] for name in states._states.names()} == {X, "newest"}


def test_a_place_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StorageError, match="cannot list"):
        begin(Generations(str(tmp_path / "state")), "a")


class _DiedError(Exception):
    pass


class _Dying(Folder):
    """A folder whose process dies at its n-th change, before or after it takes place."""

    left = 0
    after = False

    def _change(self, change: Any, *arguments: Any) -> None:
        cls = _Dying
        if cls.left == 0 and not cls.after:
            raise _DiedError
        change(*arguments)
        if cls.left == 0:
            raise _DiedError
        cls.left -= 1

    def write(self, name: str, data: Any) -> None:
        self._change(super().write, name, data)

    def remove(self, name: str) -> None:
        self._change(super().remove, name)

    def remove_all(self) -> None:
        self._change(super().remove_all)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("changes", range(10))
def test_finishing_may_be_cut_anywhere_and_tried_again(tmp_path: Path, changes: int, *, after: bool) -> None:
    calm = Generations(str(tmp_path / "state"))
    finish(calm, begin(calm, "a", Y), "a")
    finish(calm, begin(calm, "b", X), "b", "other job")
    place = begin(calm, "c", X)
    dying = Generations(str(tmp_path / "state"))
    dying._states = _Dying(str(tmp_path / "state"))
    _Dying.left, _Dying.after = changes, after
    try:
        finish(dying, place, "c")
    except _DiedError:
        finish(calm, place, "c")
    assert there(calm) == {f"{X}/0001", f"{X}/0002"}
    assert calm.finished(X, "job") == place
    assert not [name for name in calm._states.names() if name.startswith("begun/")]


@pytest.mark.parametrize(
    ("artifact", "expected"),
    [
        ("minio://mlpipeline/v2/artifacts/p/run-1/check/x/checked", "minio://mlpipeline/v2/artifacts/p/state"),
        ("s3://b/root/p/run-1/check/x/checked?endpoint=e", "s3://b/root/p/state"),
        ("gs://b/root/run-1/c", "gs://b/root/state"),
        ("oci://b/root/run-1/c", ""),
        ("https://b/root/run-1/c", ""),
        ("minio://mlpipeline/v2/artifacts/p/other/check/checked", ""),
        ("/tmp/x/run/check-prompts/checked", "/tmp/x/run/state"),
        ("checked", ""),
        ("", ""),
    ],
)
def test_states_lie_beside_the_runs_of_their_pipeline(artifact: str, expected: str) -> None:
    assert states_of(artifact, "run-1") == expected


def test_without_a_run_there_is_no_place() -> None:
    assert states_of("minio://mlpipeline/v2/p//check/x/checked", "") == ""


@given(st.text(), st.text())
def test_jobs_are_told_apart_by_their_prompts(one: str, other: str) -> None:
    assert (job_of(one) == job_of(other)) == (one == other)
    assert len(job_of(one)) == 16


class Schedules(RuleBasedStateMachine):
    """Runs of two jobs over two contents, in any order: nothing that counts is ever removed."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.states = Generations(self.folder.name)
        self.open: dict[str, tuple[str, str]] = {}
        self.newest: dict[str, str] = {}
        self.runs = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(content=st.sampled_from([X, Y]), job=st.sampled_from(["one", "two"]), fresh=st.booleans())
    def start(self, content: str, job: str, *, fresh: bool) -> None:
        self.runs += 1
        run = f"run-{self.runs}"
        place = begin(self.states, run, content, fresh=fresh)
        assert place not in self.newest.values()
        self.open[run] = (place, job)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(sorted(self.open)))
        place, job = self.open.pop(run)
        finish(self.states, place, run, job)
        before = self.newest.get(job, "")
        overtaken = before.rpartition("/")[0] == place.rpartition("/")[0] and before > place
        self.newest[job] = before if overtaken else place

    @invariant()
    def what_counts_is_there(self) -> None:
        for job, place in self.newest.items():
            assert Folder(place).read(FINISHED), job
            assert self.states.finished(X, job) == place


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_a_run_that_was_overtaken_moves_nothing_back(states: Generations) -> None:
    slow = begin(states, "a")
    finish(states, begin(states, "b"), "b")
    newest = begin(states, "c")
    finish(states, newest, "c")
    finish(states, slow, "a")
    assert number(newest) == "0002"
    assert states.finished(X, "job") == newest
    assert f"{X}/0002" in there(states)
