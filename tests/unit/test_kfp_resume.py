"""What a resumed run is asked: the same prompts on the same date, whoever started the first one."""

from typing import Any

import pytest

from pipelines.remote.parameters import Package
from pipelines.remote.resume import resumed

CLIENT = Package.named("batch_client")
CREATED = "2026-11-24T23:59:58Z"


def earlier(parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    config = {"parameters": {"prompts": "s3://b/{date}.jsonl", "endpoint_url": "http://v/v1", **parameters}}
    return {"run_id": "one", "state": "FAILED", "created_at": CREATED, "runtime_config": config, **more}


def again(run: dict[str, Any]) -> dict[str, Any]:
    return resumed(run, CLIENT, say=lambda _: None)


@pytest.mark.parametrize(
    ("run", "date"),
    [
        (earlier({}), "2026-11-24"),
        (earlier({"run_date": "2026-11-01"}), "2026-11-01"),
        (earlier({"run_date": "20261101020000"}), "20261101020000"),
        (earlier({"run_date": "[[CurrentTime.2006-01-02]]"}), "2026-11-24"),
        (earlier({}, created_at="2026-11-25T08:30:00+09:00"), "2026-11-24"),
        (
            earlier(
                {},
                run_details={
                    "task_details": [
                        {"display_name": "root", "start_time": CREATED},
                        {"display_name": "check-prompts", "start_time": "2026-11-25T00:00:03Z"},
                    ]
                },
            ),
            "2026-11-25",
        ),
    ],
)
def test_the_date_is_that_of_the_first_run(run: dict[str, Any], date: str) -> None:
    found = again(run)
    assert found["run_date"] == date
    assert found["prompts"] == "s3://b/{date}.jsonl"  # so that a schedule's run and its resumption are one job


def test_a_run_that_tells_no_date_is_given_none() -> None:
    assert "run_date" not in again(earlier({}, created_at=None))


def test_the_id_stays_the_first_runs_through_every_resumption() -> None:
    first = again(earlier({"output": "s3://b/{run}/out", "prompts": "inline:{run}"}))
    assert (first["output"], first["prompts"]) == ("s3://b/one/out", "inline:{run}")
    assert again(earlier(first, run_id="two"))["output"] == "s3://b/one/out"


@pytest.mark.parametrize(
    ("anew", "said"),
    [((), ["{run} in output stays one"]), (("prompts",), ["{run} in output stays one"]), (("output",), [])],
)
def test_what_is_given_anew_is_not_said_to_stay(anew: tuple[str, ...], said: list[str]) -> None:
    heard: list[str] = []
    resumed(earlier({"output": "s3://b/{run}"}), CLIENT, say=heard.append, anew=anew)
    assert heard == said


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {"resumes": "one"}),
        ({"options": {"fresh": True, "retry": ["failed"]}}, {"retry": ["failed"], "resumes": "one"}),
        ({"options": {"resumes": "older"}}, {"resumes": "one"}),
    ],
)
def test_the_run_is_named_whose_answers_are_kept(given: dict[str, Any], options: dict[str, Any]) -> None:
    assert again(earlier(given))["options"] == options


def test_whole_numbers_are_whole_again_and_unknown_names_are_said() -> None:
    said: list[str] = []
    found = resumed(earlier({"shards": 4.0, "gone": 1}), CLIENT, say=said.append)
    assert (found["shards"], "gone" in found) == (4, False)
    assert said == ["gone of run one is left out: this version's batch_client has no such parameter"]
