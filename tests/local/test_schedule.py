"""`python -m pipelines.schedule` as a person types it, against a Kubeflow Pipelines API on a socket."""

import datetime as dt
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.prompts.start import date_of
from pipelines.remote.parameters import Package
from tests.local.test_remote import environment
from tests.servers.kfp_api import Frame, KfpApi, Store

JOB = ("--prompts", "s3://b/{date}/p.jsonl", "--output", "s3://b/{date}/out", "--url", "http://vllm.ml/v1")
YESTERYEAR = dt.datetime(2001, 2, 3, tzinfo=dt.UTC)
NIGHTLY = ("--name", "nightly", "--cron", "0 2 * * *")


@pytest.fixture
def api() -> Iterator[KfpApi]:
    with KfpApi() as running:
        yield running


def schedule(*arguments: str, host: str = "", code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.schedule", *arguments],
        env=environment() | ({"KF_PIPELINES_ENDPOINT": host} if host else {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_a_schedule_lives_its_life(api: KfpApi) -> None:
    host = api.host
    assert "There is no schedule yet" in schedule("list", host=host)
    said = schedule("create", *NIGHTLY, *JOB, host=host)
    assert said.startswith("nightly: 0 2 * * * in UTC, the zone of the cluster's scheduler. Next runs:\n")
    assert said.count(" 02:00 UTC\n") == 3
    assert "\nCreated\n" in said
    ((first, made),) = api.store.recurring.items()
    assert made["runtime_config"]["parameters"] == {
        "prompts": "s3://b/{date}/p.jsonl",
        "output": "s3://b/{date}/out",
        "endpoint_url": "http://vllm.ml/v1",
        "run_date": "[[CurrentTime.2006-01-02]]",
    }
    (version,) = api.store.versions.values()
    assert version["pipeline_spec"] == Package.named("batch_client").spec
    assert set(version["pipeline_spec"]) == {"pipeline_spec", "platform_spec"}
    assert set(made["pipeline_version_reference"]) == {"pipeline_id", "pipeline_version_id"}
    assert "pipeline_spec" not in made
    assert "\nUnchanged\n" in schedule("create", *NIGHTLY, *JOB, host=host)
    assert list(api.store.recurring) == [first]

    said = schedule(
        "create", "--name", "nightly", "--cron", "30 18 * * fri-sun", "--timezone", "Asia/Seoul", *JOB, host=host
    )
    assert said.count(" 18:30 KST\n") == 3
    assert "\nUpdated\n" in said
    assert first not in api.store.recurring
    ((second, made),) = api.store.recurring.items()
    assert made["trigger"] == {"cron_schedule": {"cron": "0 30 18 * * 0,5,6"}}

    listed = schedule("list", host=host).splitlines()
    assert listed[0].split() == ["NAME", "STATE", "CRON", "ZONE", "NEXT", "PROMPTS"]
    assert listed[1].startswith("nightly  active  30 18 * * fri-sun  Asia/Seoul  ")

    schedule("pause", "nightly", host=host)
    assert api.store.enabled == []
    assert "paused" in schedule("list", host=host)
    assert "fires again, next " in schedule("resume", "nightly", host=host)
    assert api.store.enabled == [second]

    said = schedule("run-now", "nightly", host=host)
    ((run, stored),) = api.store.runs.items()
    assert f"--follow {run}" in said
    assert stored.body["pipeline_version_reference"] == made["pipeline_version_reference"]
    sent = made["runtime_config"]["parameters"]
    assert stored.body["runtime_config"]["parameters"] == {**sent, "run_date": ""}

    fired = api.store.fire(second)
    assert date_of(api.store.runs[fired].body["runtime_config"]["parameters"]["run_date"], YESTERYEAR).year > 2024
    api.store.macros = False
    older = api.store.fire(second)
    assert date_of(api.store.runs[older].body["runtime_config"]["parameters"]["run_date"], YESTERYEAR).year == 2001
    shown = schedule("show", "nightly", host=host)
    assert shown.count(" 18:30 KST\n") == 3
    assert fired in shown
    assert "prompts           s3://b/{date}/p.jsonl" in shown

    assert "its runs stay" in schedule("delete", "nightly", host=host)
    assert api.store.recurring == {}
    assert "there is no schedule 'nightly'. There is none yet." in schedule("show", "nightly", host=host, code=2)


def test_a_schedule_whose_last_run_failed_says_how_to_go_on_with_it(api: KfpApi) -> None:
    api.store.script = lambda _: [Frame(state="FAILED")]
    schedule("create", *NIGHTLY, *JOB, host=api.host)
    (made,) = api.store.recurring
    failed = api.store.fire(made)
    hint = f"python -m pipelines.run --host {api.host} --resume {failed}"
    assert hint in schedule("show", "nightly", host=api.host)
    api.store.script = lambda _: [Frame(state="SUCCEEDED")]
    api.store.fire(made)
    assert "--resume" not in schedule("show", "nightly", host=api.host)


def test_a_dry_run_prints_the_next_runs_and_sends_nothing() -> None:
    said = schedule("create", "--cron", "@monthly", "--dry-run", *JOB)
    assert said.startswith("batch-client: 0 0 1 * * in UTC")
    assert said.count("-01 00:00 UTC\n") == 3
    assert said.endswith("Nothing was sent.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "--cron", "0 0 2 * * *", *JOB), "The seconds are added here; write '0 2 * * *'"),
        (("create", "--cron", "0 2 * * *", "--timezone", "Seoul", *JOB), "no such time zone"),
        (("create", "--cron", "0 2 * * *"), "batch_inference needs prompts. Give --prompts"),
        (("create", "--cron", "0 2 * * *", *JOB, "--set", "replicas=2"), "batch_client has no parameter 'replicas'"),
        (("create", *JOB), "the following arguments are required: --cron"),
        (("list",), "Give its address, such as --host"),
        (("remove",), "invalid choice: 'remove'"),
    ],
)
def test_mistakes_are_told_with_the_mend(arguments: tuple[str, ...], message: str) -> None:
    assert message in schedule(*arguments, code=2)


def test_several_users_need_a_namespace_and_get_their_own_pipeline() -> None:
    with KfpApi(store=Store(multi_user=True)) as api:
        assert "Give it with --namespace" in schedule("create", *NIGHTLY, *JOB, host=api.host, code=2)
        schedule("create", *NIGHTLY, *JOB, "--namespace", "ml", host=api.host)
        (pipeline,) = api.store.pipelines.values()
        assert pipeline["namespace"] == "ml"
        assert "refuses this in namespace hr" in schedule("list", "--namespace", "hr", host=api.host, code=2)


def test_a_local_file_is_part_of_the_schedule(api: KfpApi, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "every night"}\n')
    schedule("create", *NIGHTLY, "--prompts", str(tmp_path / "p.jsonl"), "--set", "replicas=2", host=api.host)
    (made,) = api.store.recurring.values()
    assert made["runtime_config"]["parameters"]["prompts"].startswith("inline:jsonl:")
    assert "inline, " in schedule("list", host=api.host)


@pytest.mark.parametrize("command", ["create", "list", "show", "pause", "resume", "run-now", "delete"])
def test_each_command_has_help(command: str) -> None:
    assert schedule(command, "--help").startswith(f"usage: python -m pipelines.schedule {command}")
