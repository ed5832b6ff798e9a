"""What is wrong with a job is said before anything is sent, wherever the value comes from."""

import argparse
from typing import Any

import pytest

from clients.errors import SettingsError
from pipelines.remote.arguments import Given, add_access_arguments, add_job_arguments, job_arguments
from pipelines.remote.job_checks import check_values
from pipelines.remote.parameters import Package
from pipelines.volumes import Volume
from tests.unit.test_kfp_parameters import NEEDED

CLIENT = Package.named("batch_client")
INFERENCE = Package.named("batch_inference")
WITH_DATA = CLIENT.mounting((Volume("shared-data", "/data"),))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shards": 0}, "shards must be at least 1, found 0"),
        ({"concurrency": -1}, "concurrency must be at least 0"),
        ({"max_error_rate": 7}, "max_error_rate must be between 0 and 1, found 7"),
        ({"options": {"nope": 1}}, "unknown option 'nope'"),
        ({"options": {"retry": "nonsense"}}, "nonsense"),
        ({"run_date": "2026-13-01"}, "run_date must be a date"),
        ({"endpoint_url": "http://localhost:8000/v1"}, "localhost is each pod itself"),
        ({"after_run": "nonsense"}, "after_run is 'nonsense': choose one of delete, stop, keep"),
        ({"profile": "nope"}, "profile is 'nope': choose one of guide, throughput"),
        ({"replicas": -3}, "replicas must be at least 0"),
        ({"output": "/results/x"}, "output is /results/x, which no pod can see (volumes: none)"),
        ({"state": "relative"}, "state is relative, which no pod can see"),
        ({"prompts": "p.jsonl"}, "prompts is p.jsonl, which no pod can see"),
        ({"prompts": "s3://bucket/"}, "names no file. Give one in it: s3://bucket/prompts.jsonl"),
        ({"prompts": "s3:/bucket/p"}, "prompts is s3:/bucket/p, no address. Did you mean s3://bucket/p?"),
        ({"prompts": "s3://b/{Dates}/p"}, "prompts has {Dates}, which nothing stands for. Did you mean {date}?"),
        ({"output": "s3://b/{yesteday}"}, "Did you mean {yesterday}?"),
        ({"options": {"lengths_from": "/earlier"}}, "lengths_from is /earlier, which no pod can see"),
    ],
)
def test_values_with_which_a_run_would_fail_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_values(arguments, INFERENCE)
    assert message in str(caught.value)


def test_paths_in_a_volume_pass_and_those_beside_it_do_not() -> None:
    check_values({"prompts": "/data/p.jsonl", "output": "/data/{date}", "state": "/data/state"}, WITH_DATA)
    check_values({"prompts": "s3://b/{date}/{model}.jsonl", "output": "s3://b/{yesterday}/{run}"}, WITH_DATA)
    with pytest.raises(SettingsError, match=r"/dat/x, which no pod can see \(volumes: /data\)"):
        check_values({"output": "/dat/x"}, WITH_DATA)


def test_what_the_pipelines_have_by_default_passes() -> None:
    for package in (CLIENT, INFERENCE):
        defaults = {name: one["defaultValue"] for name, one in package.inputs.items() if "defaultValue" in one}
        check_values(defaults | {"run_date": "[[ScheduledTime]]"}, package)


@pytest.mark.parametrize("claim", ["storage-credentials", "mlpipeline-minio-artifact", "kfp-launcher"])
def test_a_claim_named_like_another_volume_of_the_pod_is_refused(claim: str) -> None:
    with pytest.raises(SettingsError, match="Make a claim of another name"):
        check_values({}, CLIENT.mounting((Volume(claim, "/data"),)))


@pytest.mark.parametrize("text", ["NaN", "-Infinity"])
def test_what_is_no_json_is_no_number(text: str) -> None:
    with pytest.raises(SettingsError, match=f"--set max_error_rate={text}: expected a number"):
        CLIENT.read("max_error_rate", text)


def test_a_resumed_run_that_is_to_be_fresh_resumes_nothing() -> None:
    earlier = NEEDED | {"options": {"resumes": "a", "retry": ["truncated"]}}
    assert merged(["--fresh"], earlier)["options"] == {"retry": ["truncated"], "fresh": True}
    assert merged([], earlier)["options"] == {"resumes": "a", "retry": ["truncated"]}


def merged(words: list[str], earlier: dict[str, Any]) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_access_arguments(parser)
    add_job_arguments(parser)
    return job_arguments(Given(parser, words), CLIENT, earlier)
