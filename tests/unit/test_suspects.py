"""Which rows are taken for what a server died of, and how sure that is."""

import datetime as dt
from typing import Any, cast

import pytest

from clients.batch.backlog import Work
from clients.batch.flights import Flight
from clients.batch.replica import Replica
from clients.batch.suspects import is_suspect, is_to_blame, note_fall
from clients.batch.telemetry import Load
from clients.errors import ChatError, OverloadedError, TransientError, UnreachableError
from clients.records import ChatRequest

BROKEN = TransientError("connection", "the connection broke")


def replica() -> Replica:
    return Replica(cast(Any, None), "", cast(Any, None), 0.0)


def row() -> Work:
    return Work(ChatRequest(7, "row-7", "0" * 32, b"{}"))


def dies(work: Work, server: Replica, at: float, *, error: ChatError = BROKEN, down_after_s: float = 0.1) -> bool:
    """Let a server die while it works on a row; whether the row is a suspect then."""
    flight = Flight(work, server, at - 1, dt.datetime.now(dt.UTC), 1)
    note_fall(flight, error, at)
    work.attempts += 1
    server.go_down(at + down_after_s)
    found = is_suspect(work)
    server.come_up(at + 5)
    return found


@pytest.mark.parametrize("error", [BROKEN, TransientError("http_500", "EngineCore encountered an issue")])
def test_a_row_is_a_suspect_from_the_second_death_on_and_no_death_costs_it_an_attempt(error: ChatError) -> None:
    work, server = row(), replica()
    assert [dies(work, server, at, error=error) for at in (10.0, 40.0, 70.0)] == [False, True, True]
    assert (work.deaths, work.attempts) == (3, 0)
    assert not is_to_blame(work), "others were under way with it"


@pytest.mark.parametrize(
    "error",
    [UnreachableError("connection", "refused"), OverloadedError("http_503", "busy"), TransientError("timeout", "")],
)
def test_other_failures_say_nothing(error: ChatError) -> None:
    work, server = row(), replica()
    assert [dies(work, server, at, error=error) for at in (10.0, 40.0, 70.0)] == [False, False, False]
    assert (work.deaths, work.attempts) == (0, 3)


@pytest.mark.parametrize("down_after_s", [-5.0, 30.0])
def test_a_server_that_went_down_at_another_time_did_not_die_of_it(down_after_s: float) -> None:
    work, server = row(), replica()
    assert not any(dies(work, server, at, down_after_s=down_after_s) for at in (100.0, 200.0, 300.0))


def test_each_death_counts_once() -> None:
    work, server = row(), replica()
    dies(work, server, 10.0, down_after_s=0.1)
    assert not is_suspect(work)
    note_fall(Flight(work, server, 10.4, dt.datetime.now(dt.UTC), 1), BROKEN, 10.5)
    assert not is_suspect(work), "it fell within a second of the same death"
    assert work.deaths == 1


def test_attempts_that_failed_while_the_server_was_dying_are_all_given_back() -> None:
    work, server = row(), replica()
    for at in (10.0, 12.0, 15.0):
        note_fall(Flight(work, server, at, dt.datetime.now(dt.UTC), 1), TransientError("http_500", "dying"), at)
        work.attempts += 1
        assert not is_suspect(work)
    server.go_down(16.0)
    is_suspect(work)
    assert (work.deaths, work.attempts) == (1, 0)


def test_an_old_reading_says_nothing_about_others() -> None:
    work, server = row(), replica()
    work.is_alone = True
    server.read(Load(running=0, waiting=0, most=0), 10.0)
    dies(work, server, 30.0)
    assert not is_to_blame(work)


@pytest.mark.parametrize(
    ("load", "deaths"),
    [
        (None, 3),
        (Load(running=0, waiting=0, most=0), 1),
        (Load(running=1, waiting=0, most=1), 1),
        (Load(running=1, waiting=0, most=2), 3),
    ],
)
def test_the_only_row_under_way_is_to_blame_at_once_where_the_server_tells_of_no_others(
    load: Load | None, deaths: int
) -> None:
    work, server = row(), replica()
    work.is_alone = True
    for death in range(1, deaths + 1):
        at = 30.0 * death
        if load is not None:
            server.read(load, at - 0.5)
        dies(work, server, at)
        assert is_to_blame(work) == (death == deaths)
