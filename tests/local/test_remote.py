"""`python -m pipelines.run --host …` as a person types it, against a Kubeflow Pipelines API on a socket."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.prompts.start import Start
from clients.records import Outcome
from clients.results.advice import ADVICE
from clients.steps.check_prompts import check_prompts
from pipelines.remote.parameters import Package
from pipelines.volumes import Volume, volumes_of
from tests.servers.kfp_api import Frame, KfpApi, Seen, Store
from tests.servers.s3 import ObjectStore

ROOT = Path(__file__).resolve().parents[2]
URL = ("--url", "http://vllm.ml:8000/v1")
RUNS = "/apis/v2beta1/runs"

CHECKED = {"event": "prompts.checked", "rows": 30, "invalid": 0, "repeated_ids": 0, "duplicates": 0}
PLANNED = {"event": "shards.planned", "plan": "p", "rows": 30, "rows_of_shard": [20, 10]}
MERGED = {"event": "results.merged", "rows": 30, "outcomes": {"ok": 29, "rejected": 1}, "duration_s": 12.0}
FAILED = {"event": "step.failed", "step": "gate", "error": "9 of 30 rows went wrong (rejected 9)", "exit_code": 1}
DONE = {"check-prompts": "SUCCEEDED", "resolve-endpoint": "SUCCEEDED", "plan-shards": "SUCCEEDED"}
ENDED = {**DONE, "run-shard": ["SUCCEEDED"] * 2, "merge-shards": "SUCCEEDED"}


def progress(shard: int, done: int, rows: int) -> dict[str, Any]:
    numbers = {"done": done, "reused": 0, "output_tokens": done * 9, "in_flight": 2, "outcomes": {"ok": done}}
    return {"event": "shard.progress", "shard": shard, "rows": rows, **numbers}


LOGS = {"check-prompts": [CHECKED], "plan-shards": [PLANNED], "merge-shards": [MERGED]}
AT_WORK = Frame(
    steps={**DONE, "run-shard": ["RUNNING", "RUNNING"]},
    logs={**LOGS, "run-shard#0": [progress(0, 5, 20)], "run-shard#1": [progress(1, 10, 10)]},
)
GOOD = [AT_WORK, Frame(state="SUCCEEDED", steps={**ENDED, "gate": "SUCCEEDED"}, logs=LOGS)]
BAD = [AT_WORK, Frame(state="FAILED", steps={**ENDED, "gate": "FAILED"}, logs={**LOGS, "gate": [FAILED]})]


def parameters_of(body: dict[str, Any], api: KfpApi) -> dict[str, Any]:
    """What a run was sent with; the address of its page is taken out of the options, where every run has it."""
    found = dict(body["runtime_config"]["parameters"])
    options = dict(found.pop("options"))
    assert options.pop("run_url") == f"{api.host}/#/runs/details/{{run}}"
    return {**found, "options": options} if options else found


def environment() -> dict[str, str]:
    dropped = ("OPENAI_", "COV_", "KF_PIPELINES", "KFP_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pipelines.run", *map(str, arguments)]


def run(cwd: Path, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment() | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done


@pytest.fixture
def api() -> Iterator[KfpApi]:
    with KfpApi(store=Store(script=lambda _: GOOD), pages=True) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p.jsonl").write_text('{"prompt": "hello"}\n{"prompt": "bye"}\n')
    return tmp_path


def wait_until(fact: Callable[[], Any], timeout_s: float = 20) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if fact():
            return True
        time.sleep(0.05)
    return False


class TestSubmission:
    def test_a_run_is_submitted_followed_and_told(self, api: KfpApi, folder: Path) -> None:
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL, "--max-tokens", "64", "--shards", "2")
        assert done.returncode == 0, done.stderr
        (body,) = api.sent("POST", RUNS)
        arguments = parameters_of(body, api)
        assert arguments.pop("prompts").startswith("inline:jsonl:")
        assert arguments == {
            "endpoint_url": "http://vllm.ml:8000/v1",
            "request_defaults": {"max_tokens": 64},
            "shards": 2,
        }
        assert set(body["pipeline_spec"]) == {"pipeline_spec", "platform_spec"}
        assert body["pipeline_spec"] == Package.named("batch_client").spec
        assert "exec-run-shard" in json.dumps(body["pipeline_spec"]["platform_spec"])
        (run_id,) = api.store.runs
        assert [line.rstrip() for line in done.stdout.splitlines() if line] == [
            f"{api.host}/#/runs/details/{run_id}",
            "Outcome    Rows    Share",
            "ok           29   96.7 %",
            f"rejected      1    3.3 %   {ADVICE[Outcome.REJECTED]}",
            "30 rows · 12 s · 0 output tokens",
            f"Succeeded. Report, metrics and results: {api.host}/#/runs/details/{run_id}",
        ]
        assert "30 rows checked" in done.stderr
        assert '"event": "run.progress", "rows": 30, "done": 15' in done.stderr
        assert "done      Run shard (2 shards)" in done.stderr

    def test_without_an_endpoint_the_model_is_deployed(self, api: KfpApi, folder: Path) -> None:
        more = ("--set", "profile=throughput", "--set", "replicas=4", "--set", 'node_selector={"zone": "a"}')
        kubeflow = ("--experiment", "nightly", "--service-account", "runner", "--pipeline-root", "s3://b/root")
        named = ("--run-name", "mine", "--no-wait")
        done = run(folder, "-i", "s3://b/p.jsonl", "--host", api.host, *more, *kubeflow, *named)
        assert done.returncode == 0, done.stderr
        (body,) = api.sent("POST", RUNS)
        parameters = {"prompts": "s3://b/p.jsonl", "profile": "throughput", "replicas": 4}
        assert parameters_of(body, api) == {**parameters, "node_selector": {"zone": "a"}}
        assert body["runtime_config"]["pipeline_root"] == "s3://b/root"
        assert (body["display_name"], body["service_account"]) == ("mine", "runner")
        assert body["pipeline_spec"] == Package.named("batch_inference").spec
        assert [each["display_name"] for each in api.store.experiments.values()] == ["nightly"]
        assert f"Follow it with: python -m pipelines.run --host {api.host} --follow " in done.stdout

    @pytest.mark.parametrize(
        ("flags", "parameters"),
        [
            (("--image", "registry/steps:1"), {"step_image": "registry/steps:1"}),
            (("--reuse",), {"options": {"reuse": True}}),
            (("--fresh", "--retry", "truncated"), {"options": {"fresh": True, "retry": ["truncated"]}}),
            (("--max-regression", "error_rate=0.02"), {"options": {"max_regression": {"error_rate": 0.02}}}),
            (("--trace-content", "hash"), {"options": {"trace_content": "hash"}}),
            (("--metrics-port", "9000"), {"options": {"metrics_port": 9000, "metrics_host": "0.0.0.0"}}),
            (("--set", "langfuse_secret=mine"), {"langfuse_secret": "mine"}),
        ],
    )
    def test_a_flag_is_the_parameter_or_the_option_of_its_name(
        self, api: KfpApi, folder: Path, flags: tuple[str, ...], parameters: dict[str, Any]
    ) -> None:
        done = run(folder, "-i", "s3://b/p.jsonl", "--host", api.host, *URL, *flags, "--no-wait")
        assert done.returncode == 0, done.stderr
        (body,) = api.sent("POST", RUNS)
        plain = {"prompts": "s3://b/p.jsonl", "endpoint_url": "http://vllm.ml:8000/v1"}
        assert parameters_of(body, api) == plain | parameters

    def test_a_dry_run_sends_nothing(self, folder: Path) -> None:
        done = run(folder, "--prompts", "p.jsonl", "--host", "http://nowhere.invalid", *URL, "--dry-run")
        assert done.returncode == 0, done.stderr
        assert "Would run batch_client (batch-client-" in done.stdout
        assert 'endpoint_url      "http://vllm.ml:8000/v1"' in done.stdout

    def test_a_large_file_is_staged(self, api: KfpApi, folder: Path) -> None:
        (folder / "large.jsonl").write_text(
            "".join(json.dumps({"prompt": os.urandom(90).hex()}) + "\n" for _ in range(900))
        )
        done = run(folder, "--prompts", "large.jsonl", "--host", api.host, *URL, "--no-wait")
        assert done.returncode == 2
        assert "is too large to travel inside the run. Give --staging s3://bucket/folder" in done.stderr
        staging = f"file://{folder}/store"
        done = run(folder, "--prompts", "large.jsonl", "--host", api.host, *URL, "--no-wait", "--staging", staging)
        assert done.returncode == 0, done.stderr
        (body,) = api.sent("POST", RUNS)
        uri = body["runtime_config"]["parameters"]["prompts"]
        assert Path(uri.removeprefix("file://")).read_bytes() == (folder / "large.jsonl").read_bytes()

    @pytest.mark.slow
    def test_a_large_file_is_staged_once_in_an_object_store(self, api: KfpApi, folder: Path) -> None:
        lines = "".join(json.dumps({"prompt": os.urandom(90).hex()}) + "\n" for _ in range(900))
        (folder / "large.jsonl").write_text(lines)
        command = ("--prompts", "large.jsonl", "--host", api.host, *URL, "--no-wait", "--staging")
        with ObjectStore() as store:
            bucket = store.make_bucket("staging")
            keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": store.url}
            for _ in range(2):
                done = run(folder, *command, f"s3://{bucket}/prompts", **keys)
                assert done.returncode == 0, done.stderr
            assert "is there already" in done.stderr
            ((key,), bodies) = store.keys(bucket), api.sent("POST", RUNS)
            assert {body["runtime_config"]["parameters"]["prompts"] for body in bodies} == {f"s3://{bucket}/{key}"}
            assert store.get(bucket, key).decode() == lines
            store.before = lambda _: "denied"
            done = run(folder, *command, f"s3://{bucket}/others", **keys)
            assert done.returncode == 1
            assert done.stderr.splitlines()[-1].startswith(f"error: cannot list s3://{bucket}/others/")
            assert "lack the right" in done.stderr
        assert len(api.sent("POST", RUNS)) == 2

    def test_a_bare_forwarded_api_says_how_to_look(self, api: KfpApi, folder: Path) -> None:
        api.pages = False
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL, "--no-wait")
        assert "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80" in done.stderr

    def test_host_and_token_may_come_from_the_environment(self, api: KfpApi, folder: Path) -> None:
        api.token = "right"
        arguments = ("--prompts", "p.jsonl", "--host", *URL, "--no-wait")
        done = run(folder, *arguments, KF_PIPELINES_ENDPOINT=api.host, KFP_TOKEN="right")
        assert done.returncode == 0, done.stderr
        done = run(folder, *arguments, KF_PIPELINES_ENDPOINT=api.host, KFP_TOKEN="wrong")
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1
        assert "wrong" not in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((*URL, "--set", "replicas=4"), "batch_client has no parameter 'replicas'"),
            (("--set", "replicsa=4"), "Did you mean replicas?"),
            (("--set", "replicas=many"), "expected a whole number"),
            (("--set", "replicas"), "expected NAME=VALUE"),
            (("--output", "results"), "pods cannot see this machine's folders"),
            (("--url", "http://localhost:8000/v1"), "localhost is each pod itself there"),
            (("--shards", "0"), "--shards must be at least 1"),
            (("--max-error-rate", "7"), "must be between 0 and 1"),
            (("--retry", "nonsense"), "'nonsense' is no outcome"),
            (("--fresh", "--state", "s3://b/state"), "with --state, give another folder instead"),
            (("--fresh", "--reuse"), "not allowed with argument"),
            (("--set", "storage_secret=my.secret"), "storage_secret must be at most 63 of a-z, 0-9 and -"),
            (
                ("--set", "storage_secret=langfuse-credentials"),
                "is in use for something else: give each its own Secret",
            ),
            (("--namespace", "ml", "--prompts", "none.jsonl"), "no such file: none.jsonl"),
        ],
    )
    def test_mistakes_are_told_before_anything_is_sent(
        self, api: KfpApi, folder: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert not [seen for seen in api.requests if seen.method != "GET"]

    def test_prompts_are_needed(self, api: KfpApi, folder: Path) -> None:
        done = run(folder, "--host", api.host, *URL)
        assert (done.returncode, "Give --prompts" in done.stderr) == (2, True)
        done = run(folder, "--prompts", "p.jsonl", "--no-wait", *URL)
        assert "Give its address, such as --host http://localhost:8080" in done.stderr


class TestFollowing:
    def test_the_summary_is_that_of_a_run_on_this_machine(self, api: KfpApi, folder: Path) -> None:
        advice = "The servers' batches were full: more replicas or GPUs would make it faster."
        told = MERGED | {
            "rows_per_s": 2.5,
            "completion_tokens": 4100,
            "output_tokens_per_s": 341.7,
            "joined": 3,
            "gpu_seconds_held": 7200.0,
            "gpu_seconds_used": 3600.0,
            "traces": {"exported": 27, "spooled": 3},
            "verdict": {"kind": "server-bound", "advice": advice, "seconds": {}},
            "location": "s3://b/out/results.parquet",
        }
        reused = {**progress(0, 20, 20), "reused": 12}
        ended = Frame(
            state="SUCCEEDED",
            steps={**ENDED, "gate": "SUCCEEDED"},
            logs={**LOGS, "run-shard#0": [reused], "merge-shards": [told]},
        )
        at_work = Frame(steps=AT_WORK.steps, logs={**AT_WORK.logs, "run-shard#0": [reused]})
        api.store.script = lambda _: [at_work, at_work, ended]
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL)
        assert done.returncode == 0, done.stderr
        numbers, *others = [line for line in done.stdout.splitlines() if line][4:-1]
        assert numbers.startswith("30 rows · 12 s · 2.50 rows/s · 4,100 output tokens · 342 tokens/s · 3 rows answered")
        assert numbers.endswith(
            "2.00 GPU hours held, 50.0 % of it with requests · 27 traces in Langfuse, 3 kept for later"
        )
        assert others == [
            "12 rows had an answer before and were not sent again.",
            advice,
            "Results: s3://b/out/results.parquet",
        ]

    @pytest.mark.parametrize("way", ["pages", "api"])
    @pytest.mark.parametrize("names", [True, False])
    def test_a_failing_step_says_why(self, api: KfpApi, folder: Path, way: str, names: bool) -> None:
        api.store.script, api.pages, api.store.with_pod_names = lambda _: BAD, way == "pages", names
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "error: Gate: 9 of 30 rows went wrong (rejected 9)"
        assert "failed    Gate" in done.stderr

    def test_without_logs_the_states_and_kubeflows_own_words_are_told(self, api: KfpApi, folder: Path) -> None:
        ended = {**DONE, "run-shard": ["SUCCEEDED", "FAILED"]}
        frame = Frame(state="FAILED", steps=ended, errors={"run-shard": "OOMKilled (exit code 137)"})
        api.store.script, api.pages, api.logs = (lambda _: [AT_WORK, frame]), False, False
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "error: Run shard failed: OOMKilled (exit code 137)"
        assert "failed    Run shard (1 of 2 shards)" in done.stderr

    def test_the_one_failed_shard_of_many_is_found(self, api: KfpApi, folder: Path) -> None:
        states = ["SUCCEEDED"] * 90 + ["FAILED"] + ["SUCCEEDED"] * 30
        failed = {"event": "step.failed", "step": "run_shard", "error": "the disk is full", "exit_code": 1}
        logs = {f"run-shard#{shard}": [progress(shard, 1, 1)] for shard in range(121)} | {"run-shard#90": [failed]}
        api.store.script = lambda _: [Frame(state="FAILED", steps={**DONE, "run-shard": states}, logs=logs)]
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL)
        assert done.stderr.splitlines()[-1] == "error: Run shard: the disk is full"
        assert "failed    Run shard (1 of 121 shards)" in done.stderr

    @pytest.mark.slow
    def test_a_shard_that_a_later_step_finished_is_not_the_cause(self, api: KfpApi, folder: Path) -> None:
        evicted = {"event": "step.failed", "step": "run_shard", "error": "interrupted", "exit_code": 143}
        steps = {
            **DONE,
            "run-shard": ["SUCCEEDED", "FAILED"],
            "finish-shards": "SUCCEEDED",
            "merge-shards": "SUCCEEDED",
        }
        logs = {**LOGS, "run-shard#1": [evicted]}
        bad = Frame(state="FAILED", steps={**steps, "gate": "FAILED"}, logs={**logs, "gate": [FAILED]})
        api.store.script = lambda _: [AT_WORK, bad]
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "error: Gate: 9 of 30 rows went wrong (rejected 9)"
        good = Frame(state="SUCCEEDED", steps={**steps, "gate": "SUCCEEDED"}, logs=logs)
        api.store.script = lambda _: [AT_WORK, good]
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL)
        assert done.returncode == 0, done.stderr
        assert "failed    Run shard (1 of 2 shards)" in done.stderr
        assert "done      Finish shards" in done.stderr

    @pytest.mark.slow
    def test_faults_on_the_way_are_survived(self, api: KfpApi, folder: Path) -> None:
        looks = list[Seen]()

        def away(seen: Seen) -> int | str | None:
            if seen.method == "GET" and seen.path.startswith(f"{RUNS}/"):
                looks.append(seen)
                return [None, 503, "reset", 429, 502, 500, 503][len(looks) - 1] if len(looks) < 8 else None
            return None

        api.faults = away
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("Trying again; the run goes on meanwhile") == 1
        assert "the API answers again" in done.stderr

    def test_ctrl_c_lets_the_run_go_on_and_says_how_to_come_back(self, api: KfpApi, folder: Path) -> None:
        api.store.script = lambda _: [AT_WORK] * 1000
        process = subprocess.Popen(
            command("--prompts", "p.jsonl", "--host", api.host, *URL),
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert wait_until(lambda: [each for each in api.store.runs.values() if each.looks >= 2])
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130
        ((run_id, stored),) = api.store.runs.items()
        assert stored.ended_by_hand == ""
        assert f"follow it again:  python -m pipelines.run --host {api.host} --follow {run_id}" in errors
        assert f"end it:           python -m pipelines.run --host {api.host} --terminate {run_id}" in errors
        assert errors.splitlines()[-1] == "error: stopped following"
        done = run(folder, "--host", api.host, "--terminate", run_id)
        assert (done.returncode, stored.ended_by_hand) == (0, "CANCELED")
        done = run(folder, "--host", api.host, "--follow", run_id)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "error: the run was terminated"

    def test_a_login_that_ends_meanwhile_does_not_hide_the_run(self, api: KfpApi, folder: Path) -> None:
        api.store.script = lambda _: [AT_WORK] * 1000
        api.cookie = "session=1"
        looks = list[Seen]()

        def ended(seen: Seen) -> None:
            looks.append(seen)
            if len(looks) > 12:
                api.cookie, api.login = "session=2", 302

        api.faults = ended
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL, KFP_COOKIE="session=1")
        assert done.returncode == 2
        assert "this host asks for a login: The session in KFP_COOKIE has ended" in done.stderr.splitlines()[-1]
        assert "follow it again:" in done.stderr

    def test_a_run_that_does_not_exist(self, api: KfpApi, folder: Path) -> None:
        for flag in ("--follow", "--resume", "--terminate"):
            done = run(folder, "--host", api.host, flag, "none")
            assert done.returncode == 2
            assert "there is no run none" in done.stderr


class TestResume:
    def test_the_earlier_arguments_are_sent_again_with_what_was_given_on_top(self, api: KfpApi, folder: Path) -> None:
        first = ("--max-tokens", "64", "--param", "top_k=20", "--shards", "8", "--retry", "truncated")
        kubeflow = ("--experiment", "mine", "--service-account", "runner", "--no-wait")
        assert run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL, *first, *kubeflow).returncode == 0
        (earlier,) = api.store.runs
        again = ("--resume", earlier, "--max-tokens", "128", "--shards", "2", "--no-wait")
        done = run(folder, "--host", api.host, *again)
        assert done.returncode == 0, done.stderr
        one, two = api.sent("POST", RUNS)
        before, after = (parameters_of(body, api) for body in (one, two))
        created = api.store.runs[earlier].body["created_at"]
        changed = {"request_defaults": {"max_tokens": 128, "top_k": 20}, "shards": 2, "run_date": created[:10]}
        changed["options"] = {"retry": ["truncated"], "resumes": earlier}
        assert after == before | changed
        assert isinstance(after["options"]["retry"], list)
        assert two["experiment_id"] == one["experiment_id"]
        assert (two["service_account"], two["display_name"][:2]) == ("runner", "p ")
        assert two["pipeline_spec"] == one["pipeline_spec"]

    def test_the_volumes_of_the_earlier_run_are_mounted_again(self, api: KfpApi, folder: Path) -> None:
        files = ("--prompts", "/data/p.jsonl", "--output", "/data/out", "--volume", "shared-data:/data", "--no-wait")
        assert run(folder, "--host", api.host, *URL, *files).returncode == 0
        (earlier,) = api.store.runs
        assert run(folder, "--host", api.host, "--resume", earlier, "--no-wait").returncode == 0
        other = ("--volume", "other:/data", "--no-wait")
        assert run(folder, "--host", api.host, "--resume", earlier, *other).returncode == 0
        mounted = [volumes_of(body["pipeline_spec"]) for body in api.sent("POST", RUNS)]
        assert mounted == [(Volume("shared-data", "/data"),)] * 2 + [(Volume("other", "/data"),)]
        assert {parameters_of(body, api)["prompts"] for body in api.sent("POST", RUNS)} == {"/data/p.jsonl"}

    def test_arguments_that_this_version_has_not_are_left_out_and_said(self, api: KfpApi, folder: Path) -> None:
        arguments = {"prompts": "s3://b/p", "endpoint_url": "http://vllm", "gone": 1}
        experiment = api.store.create_experiment({"display_name": "Default"})["experiment_id"]
        body = {"experiment_id": experiment, "pipeline_spec": Package.named("batch_client").spec, "display_name": "old"}
        earlier = api.store.create_run({**body, "runtime_config": {"parameters": arguments}})["run_id"]
        done = run(folder, "--host", api.host, "--resume", earlier, "--no-wait")
        assert done.returncode == 0, done.stderr
        assert f"gone of run {earlier} is left out" in done.stderr
        (sent,) = api.sent("POST", RUNS)
        assert "gone" not in sent["runtime_config"]["parameters"]

    def test_the_resumed_run_works_in_the_state_of_the_first_on_another_day_too(
        self, api: KfpApi, folder: Path
    ) -> None:
        """What each run's first step would decide, from the arguments that the server was sent."""
        api.store.script = lambda _: [Frame(state="FAILED")]
        api.store._clock -= dt.timedelta(days=3)
        outputs = ("--output", f"file://{folder}/{{date}}/{{run}}/{{yesterday}}", "--fresh", "--no-wait")
        assert run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL, *outputs).returncode == 0
        (earlier,) = api.store.runs
        done = run(folder, "--host", api.host, "--resume", earlier, "--no-wait")
        assert done.returncode == 0, done.stderr
        assert f"{{run}} in output stays {earlier}" in done.stderr
        _, later = api.store.runs
        one, two = (body["runtime_config"]["parameters"] for body in api.sent("POST", RUNS))
        day = api.store.runs[earlier].body["created_at"][:10]
        first = first_step(folder, earlier, {**one, "run_date": day})
        second = first_step(folder, later, two)
        assert (first.state, first.date, first.output) == (second.state, second.date, second.output)
        assert second.output.startswith(f"file://{folder}/{day}/{earlier}/")
        page = f"{api.host}/#/runs/details/{{run}}"
        assert one["options"] == {"fresh": True, "run_url": page}
        assert two["options"] == {"resumes": earlier, "run_url": page}
        assert first_step(folder, "another", {**one, "run_date": day}).state != first.state  # --fresh, had it stayed


STARTED = {"event": "step.started", "step": "run_shard"}
TOLD_TO_END = {"event": "step.failed", "step": "run_shard", "error": "interrupted; rows are kept", "exit_code": 143}


def lost(*last_words: dict[str, Any]) -> list[Frame]:
    """A run of which the second shard is ended from outside, its log gone or with these last words."""
    begun = Frame(steps=AT_WORK.steps, logs={**LOGS, "run-shard#0": [STARTED], "run-shard#1": [STARTED]})
    logs = {**LOGS, "run-shard#0": [STARTED], **({"run-shard#1": [STARTED, *last_words]} if last_words else {})}
    return [begun, Frame(state="FAILED", steps={**DONE, "run-shard": ["SUCCEEDED", "FAILED"]}, logs=logs)]


class TestLostPods:
    @pytest.mark.parametrize("last_words", [(), (TOLD_TO_END,)])
    def test_a_run_that_lost_a_pod_is_gone_on_with(
        self, api: KfpApi, folder: Path, last_words: tuple[dict[str, Any], ...]
    ) -> None:
        api.store.script = lambda body: GOOD if is_resumed(body) else lost(*last_words)
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL, "--fresh", "--shards", "2")
        assert done.returncode == 0, done.stderr
        first, second = api.store.runs
        assert "Run shard lost its pod: evicted, drained, or out of memory. Going on" in done.stderr
        assert f"as --resume {first} does (1 left)" in done.stderr
        one, two = (parameters_of(body, api) for body in api.sent("POST", RUNS))
        date = api.store.runs[first].body["created_at"][:10]
        assert two == one | {"run_date": date, "options": {"resumes": first}}
        assert done.stdout.splitlines()[-1].endswith(second)

    def test_it_is_given_up_at_last_and_told_how_to_go_on(self, api: KfpApi, folder: Path) -> None:
        api.store.script = lambda _: lost(TOLD_TO_END)
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL, "--max-resumes", "1")
        assert done.returncode == 1
        first, second = api.store.runs
        assert done.stderr.count("in a new run") == 1
        hint = f"Go on with what is missing: python -m pipelines.run --host {api.host} --resume {second}"
        assert done.stderr.splitlines()[-2:] == [
            hint,
            "error: Run shard lost its pod: evicted, drained, or out of memory",
        ]
        done = run(folder, "--host", api.host, "--follow", first)
        assert (done.returncode, len(api.store.runs)) == (1, 2)
        assert f"--resume {first}" in done.stderr

    @pytest.mark.parametrize(
        ("state", "step", "words"),
        [
            ("FAILED", "run_shard", {"error": "the disk is full", "exit_code": 1}),
            ("FAILED", "gate", {"error": "9 of 30 rows went wrong", "exit_code": 1}),
            ("CANCELED", "run_shard", {"error": "interrupted", "exit_code": 143}),
        ],
    )
    def test_a_run_that_failed_for_its_own_reason_is_not_begun_again(
        self, api: KfpApi, folder: Path, state: str, step: str, words: dict[str, Any]
    ) -> None:
        task = step.replace("_", "-")
        failed = [{"event": "step.started", "step": step}, {"event": "step.failed", "step": step, **words}]
        steps = {**DONE, "run-shard": "SUCCEEDED", task: state}
        api.store.script = lambda _: [AT_WORK, Frame(state=state, steps=steps, logs={**LOGS, task: failed})]
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL)
        assert (done.returncode, len(api.store.runs)) == (1, 1)
        assert "--resume" not in done.stderr

    def test_a_pod_that_never_began_is_not_a_lost_one(self, api: KfpApi, folder: Path) -> None:
        ended = Frame(state="FAILED", steps={**DONE, "run-shard": "FAILED"}, errors={"run-shard": "ErrImagePull"})
        api.store.script = lambda _: [ended]
        done = run(folder, "--prompts", "p.jsonl", "--host", api.host, *URL)
        assert (done.returncode, len(api.store.runs)) == (1, 1)
        assert done.stderr.splitlines()[-1] == "error: Run shard failed: ErrImagePull"


def is_resumed(body: dict[str, Any]) -> bool:
    return "resumes" in body["runtime_config"]["parameters"]["options"]


def first_step(folder: Path, run_id: str, arguments: dict[str, Any]) -> Start:
    checked = folder / f"checked-{run_id}"
    check_prompts(
        run=run_id,
        prompts=arguments["prompts"],
        output=arguments.get("output", ""),
        run_date=arguments.get("run_date", ""),
        options=arguments.get("options"),
        system_prompt="",
        request_defaults={},
        template="",
        checked_path=str(checked),
        artifact=f"{folder}/artifacts/check-prompts/checked",
    )
    return Start.from_json(checked.read_bytes().partition(b"\n")[0])
