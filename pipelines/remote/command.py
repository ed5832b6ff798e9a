"""`python -m pipelines.run --host …`: submit the compiled pipeline to Kubeflow, follow it, end it."""

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.text import Text

from clients.batch.arguments import RARE_GROUPS
from clients.display import RunView, error_line, print_numbers
from clients.errors import LLMInferenceError, SettingsError
from clients.events import log_to_stderr
from clients.records import Outcome
from clients.results.summary import Summary
from clients.steps.interrupts import InterruptedRunError, interruptible
from clients.wide_help import HelpParser
from pipelines.remote.api import RemoteError
from pipelines.remote.arguments import (
    KUBEFLOW_GROUP,
    Given,
    access_of,
    add_access_arguments,
    add_job_arguments,
    check_job,
    package_name,
)
from pipelines.remote.connection import Connection
from pipelines.remote.follow import Ending, Follower, give_up_hint, is_lost, resume_hint
from pipelines.remote.parameters import Package
from pipelines.remote.resume import WITH_RUN, resumed
from pipelines.remote.staging import described, staged
from pipelines.remote.submit import create_run, get_run, linked, package_of, run_body, spec_of, stamp
from pipelines.volumes import parse_volumes, volumes_of

_EXAMPLES = """examples:
  kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80
  python -m pipelines.run --host http://localhost:8080 --prompts prompts.jsonl --url http://vllm.ml:8000/v1
  python -m pipelines.run --host https://kubeflow.example.com/pipeline --namespace ml --token-file token \\
      --prompts s3://bucket/prompts.jsonl --output s3://bucket/out/{date} --set profile=throughput
  python -m pipelines.run --host http://localhost:8080 --resume RUN --max-error-rate 0.5
"""


class RunEndedError(LLMInferenceError):
    """The run did not succeed; its own cause and exit code."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.cause)
        self.exit_code = ending.exit_code


def main(arguments: list[str]) -> int:
    """Parse, submit or follow, print; returns the exit code."""
    given = Given(_parser(), arguments)
    try:
        with interruptible():
            _act(given)
    except LLMInferenceError as error:
        error_line(str(error))
        return error.exit_code
    return 0


def _act(given: Given) -> None:
    options = given.options
    if options.max_resumes < 0:
        raise SettingsError(f"--max-resumes must be at least 0, found {options.max_resumes}")
    if options.dry_run and not options.resume:
        _print_plan(_plan(given, None))
        return
    if not (options.follow or options.terminate or options.resume):
        check_job(given, Package.named(package_name(given)).mounting(parse_volumes(options.volumes)), {})
    connection = Connection.open(access_of(options))
    if options.terminate:
        get_run(connection, options.terminate)
        connection.api.act(f"/apis/v2beta1/runs/{options.terminate}:terminate")
        print(f"Asked Kubeflow to end run {options.terminate}. A model that it deployed is released by its last step;")
        print("should that step not run: python -m clients.serving sweep")
        return
    if options.follow:
        get_run(connection, options.follow)
        _conclude(connection, options.follow, _follow(connection, options.follow))
        return
    plan = _plan(given, connection)
    if options.dry_run:
        _print_plan(plan)
        return
    run = _submit(connection, given, plan)
    if options.no_wait:
        print(f"Follow it with: python -m pipelines.run {connection.flags()} --follow {run}")
        return
    ending = _follow(connection, run)
    for left in reversed(range(options.max_resumes)):
        if not ending.pod_lost:
            break
        _say(f"{ending.cause}. Going on with what is missing in a new run, as --resume {run} does ({left} left)")
        earlier = get_run(connection, run)
        plan = _Plan(plan.package, resumed(earlier, plan.package, say=_say), earlier)
        run = _submit(connection, given, plan)
        ending = _follow(connection, run)
    _conclude(connection, run, ending)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is to be run: the pipeline, its arguments, and the run that it goes on with (empty for none)."""

    package: Package
    arguments: Mapping[str, Any]
    earlier: Mapping[str, Any]


def _plan(given: Given, connection: Connection | None) -> _Plan:
    """The pipeline and all its arguments, checked; files are staged unless nothing is to be sent."""
    options = given.options
    run: Mapping[str, Any] = {}
    earlier: dict[str, Any] = {}
    package = Package.named(package_name(given))
    if options.resume and connection is not None:
        run = get_run(connection, options.resume)
        package = package_of(connection, run)
        earlier = resumed(run, package, say=_say, anew=[name for name in WITH_RUN if name in given])
    volumes = parse_volumes(options.volumes)
    if run and "volumes" not in given:
        volumes = volumes_of(spec_of(connection, run)) if connection else ()
    package = package.mounting(volumes)
    if options.prompts:
        earlier.pop("prompts", None)
    arguments = check_job(given, package, earlier)
    if options.prompts:
        upload = not options.dry_run
        arguments["prompts"] = staged(options.prompts, options.staging, package, say=_say, upload=upload)
    package.check(arguments)
    return _Plan(package, arguments, run)


def _submit(connection: Connection, given: Given, plan: _Plan) -> str:
    """Create the run; what was not given is as in the run that it goes on with."""
    options, earlier, package = given.options, plan.earlier, plan.package
    name = options.run_name or f"{_subject(options, plan)} {stamp()}"
    same_experiment = earlier.get("experiment_id") if "experiment" not in given else None
    body = run_body(
        experiment=str(same_experiment or connection.experiment(options.experiment)),
        name=name,
        arguments=linked(plan.arguments, connection),
        package=package,
        service_account=options.service_account or str(earlier.get("service_account") or ""),
        pipeline_root=options.pipeline_root or str((earlier.get("runtime_config") or {}).get("pipeline_root") or ""),
    )
    try:
        with interruptible():
            run = create_run(connection, body)
    except InterruptedRunError as error:
        message = f"interrupted while submitting {name!r}; it may have been created all the same, look among the runs"
        raise _StoppedError(message, error.exit_code) from None
    _say(f"Run {name} ({package.name}), {described(str(plan.arguments['prompts']))}")
    _print_address(connection, run)
    return run


def _subject(options: argparse.Namespace, plan: _Plan) -> str:
    """What a run is about, for its name: the earlier run's name, or that of the prompts' file."""
    if plan.earlier and not options.prompts:
        return re.sub(r" \d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", "", str(plan.earlier.get("display_name") or ""))
    prompts = str(options.prompts or plan.arguments["prompts"])
    name = "" if prompts.startswith("inline:") else Path(prompts.partition("?")[0]).name.split(".")[0]
    return name or plan.package.title


def _print_address(connection: Connection, run: str) -> None:
    print(connection.run_url(run), flush=True)
    if not connection.has_pages():
        _say(
            "  (no pages there; to look at it: kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80, then "
            f"http://localhost:8080/#/runs/details/{run})"
        )


def _follow(connection: Connection, run: str) -> Ending:
    try:
        with interruptible(), RunView() as view:
            if not view.console.is_terminal:
                log_to_stderr()
            ending = Follower(connection, run, view).to_the_end()
    except InterruptedRunError as error:
        _say(give_up_hint(connection, run))
        raise _StoppedError("stopped following", error.exit_code) from None
    except RemoteError as error:
        if is_lost(error):
            _say(give_up_hint(connection, run))
        raise
    _print_summary(ending.summary, reused=view.reused)
    return ending


def _conclude(connection: Connection, run: str, ending: Ending) -> None:
    """Say how the run that counts ended, and raise its error."""
    if ending.exit_code:
        _say(f"Page of the run: {connection.run_url(run)}")
        if ending.pod_lost:
            _say(resume_hint(connection, run))
        raise RunEndedError(ending)
    print(f"Succeeded. Report, metrics and results: {connection.run_url(run)}")


class _StoppedError(LLMInferenceError):
    """A signal ended the command, not the run."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _print_summary(told: Mapping[str, Any], *, reused: int) -> None:
    """What the merging step told of its summary, as after a run on this machine; other versions tell less."""
    if not told.get("rows"):
        return
    outcomes = dict.fromkeys(Outcome, 0) | dict(told.get("outcomes") or {})
    summary = {**dict.fromkeys(Summary.__annotations__), "completion_tokens": 0, **told, "outcomes": outcomes}
    print_numbers(cast("Summary", summary), Console(highlight=False), reused=reused)
    print()
    if location := told.get("location"):
        print(f"Results: {location}")


def _print_plan(plan: _Plan) -> None:
    package = plan.package
    print(f"Would run {package.name} ({package.title}-{package.digest}) with")
    for name, value in plan.arguments.items():
        text = described(value) if name == "prompts" else json.dumps(value, ensure_ascii=False)
        print(f"  {name:<18}{text}")
    for volume in package.volumes:
        print(f"  {'(volume)':<18}{volume.claim} at {volume.folder}")
    print("Nothing was sent. The pipeline's other parameters keep their defaults.")


def _say(text: str) -> None:
    Console(stderr=True, highlight=False).print(Text(text), soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = HelpParser(
        prog="python -m pipelines.run --host URL",
        usage="python -m pipelines.run --host URL --prompts FILE|URI [--url URL] [...]",
        description="Run the batch pipeline on Kubeflow: submit it, follow it, exit with its result. Ctrl-C stops "
        "following; the run goes on.",
        epilog=_EXAMPLES,
        rare=(*RARE_GROUPS, KUBEFLOW_GROUP),
        elsewhere=(("--gguf", "--batch-output", "-o", "--gpus"), "it is for a run on this machine, without --host"),
    )
    add_access_arguments(parser, optional_value=True)
    what = parser.add_argument_group("what to do")
    one = what.add_mutually_exclusive_group()
    one.add_argument(
        "--resume", metavar="RUN", default="", help="run again as that run was, and send what has no answer yet"
    )
    one.add_argument("--follow", metavar="RUN", default="", help="follow a run that exists")
    one.add_argument("--terminate", metavar="RUN", default="", help="end a run")
    what.add_argument(
        "--max-resumes",
        metavar="N",
        type=int,
        default=2,
        help="times that it goes on by itself, in a new run, after a lost pod (default: 2)",
    )
    what.add_argument("--no-wait", action="store_true", help="submit, print the run's page, and return")
    what.add_argument("--dry-run", action="store_true", help="check and print the arguments; send nothing")
    what.add_argument("--run-name", metavar="TEXT", default="", help="name of the run (default: prompts and time)")
    add_job_arguments(parser)
    return parser
