"""Run the batch inference pipeline on a file of prompts.

With nothing else, it runs on this machine against a small embedded model, which shows the machinery, not quality.
The same command again goes on where the last one stopped: finished rows are not sent again, edited rows are.
"""

import argparse
import contextlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.batch.arguments import (
    RARE_GROUPS,
    add_input_arguments,
    add_policy_arguments,
    add_request_arguments,
    add_run_arguments,
    check_run_arguments,
    earlier_folders,
    output_folder,
    request_defaults,
    run_options,
    template_of,
)
from clients.errors import LLMInferenceError
from clients.wide_help import HelpParser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clients.display import RunView
    from clients.workplace import Workplace
    from pipelines.settings import RunSettings

_EXAMPLES = """examples:
  python -m pipelines.run --prompts examples/prompts.jsonl
  python -m pipelines.run --prompts prompts.jsonl --url http://localhost:8000/v1 --max-tokens 1024
  python -m pipelines.run --prompts prompts.jsonl --gguf model.gguf --output results/trial
  python -m pipelines.run --prompts prompts.jsonl --host http://localhost:8080 --url http://vllm.ml:8000/v1
"""

#: Flags that only a run on Kubeflow has; each of them makes a command one, with the flags of pipelines.remote.command.
_ON_KUBEFLOW = ("--host", "--resume", "--follow", "--terminate", "--no-wait")

#: Flags of such a run that make no sense without it.
_OF_KUBEFLOW = (
    *("--set", "--volume", "--staging", "--state", "--image", "--reuse", "--namespace", "--token-file", "--ca-file"),
    *("--experiment", "--run-name", "--service-account", "--pipeline-root", "--max-resumes"),
)

#: A disk with less space than this is taken for full.
_FULL_DISK_BYTES = 4 << 20


class _RunFailedError(LLMInferenceError):
    """A step of the pipeline failed; its own message and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print; returns the exit code."""
    if is_remote(sys.argv[1:] if arguments is None else arguments):
        from pipelines.remote.command import main as run_on_kubeflow

        return run_on_kubeflow(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    from clients.display import error_line
    from clients.steps.interrupts import interruptible

    try:
        with interruptible():
            settings = _settings(options)
            if options.dry_run:
                _dry_run(settings, earlier=earlier_folders(options), gpus=options.gpus)
            else:
                run(settings)
    except LLMInferenceError as error:
        error_line(str(error))
        return error.exit_code
    return 0


def is_remote(arguments: list[str]) -> bool:
    """Tell whether a command line is about a run on Kubeflow, which has flags of its own."""
    return any(word.partition("=")[0] in _ON_KUBEFLOW for word in arguments)


def _settings(options: argparse.Namespace) -> "RunSettings":
    from pipelines.settings import RunSettings

    check_run_arguments(options)
    return RunSettings(
        prompts=options.prompts,
        output=output_folder(options),
        url=options.url,
        model=options.model,
        gguf=options.gguf,
        system_prompt=options.system,
        request_defaults=request_defaults(options),
        template=template_of(options),
        batch_output=options.batch_output,
        shards=options.shards,
        concurrency=options.concurrency,
        max_error_rate=options.max_error_rate,
        options=run_options(options),
        server_wait_s=options.server_wait,
        fresh=options.fresh,
    )


def _dry_run(settings: "RunSettings", *, earlier: tuple[Path, ...], gpus: int) -> None:
    from clients.preflight_view import DryRun, print_preflight
    from clients.prompts.rows import JobDefaults
    from pipelines.settings import EMBEDDED_MAX_TOKENS, api_key

    embedded = {} if settings.url else {"max_tokens": EMBEDDED_MAX_TOKENS}
    defaults = JobDefaults(
        model=settings.model,
        system_prompt=settings.system_prompt,
        request_defaults=embedded | settings.request_defaults,
        template=settings.template,
    )
    print_preflight(
        DryRun(
            prompts=settings.prompts,
            defaults=defaults,
            url=settings.url,
            model=settings.model,
            api_key=api_key(),
            earlier=earlier,
            gpus=gpus,
            join_duplicates=settings.options.join_duplicates,
        )
    )


def run(settings: "RunSettings") -> None:
    """Run the pipeline on this machine and show how it goes.

    Raises:
        LLMInferenceError: what went wrong, as one line.
    """
    from clients.display import RunView, print_summary
    from clients.events import log_to_stderr
    from clients.results.openai_batch import write_batch_output
    from clients.workplace import Workplace

    place = Workplace.prepare(settings.prompts, settings.output, fresh=settings.fresh)
    with place.held():
        with RunView() as view:
            if not view.console.is_terminal:
                log_to_stderr()
            with _endpoint(settings, place, view) as arguments:
                failure = _follow(settings, place, arguments, view)
        if place.summary_is_new():
            if settings.batch_output:
                write_batch_output(place.output / "results.parquet", settings.batch_output)
            print_summary(place.read_summary(), place.output, batch_output=settings.batch_output, reused=view.reused)
        if failure is not None:
            raise failure
        place.settle()


@contextlib.contextmanager
def _endpoint(settings: "RunSettings", place: "Workplace", view: "RunView") -> "Iterator[dict[str, Any]]":
    """The pipeline arguments that say where the model answers, as long as it does."""
    from clients.models import resolve_all
    from pipelines.settings import EMBEDDED_CONCURRENCY, EMBEDDED_MAX_TOKENS, api_key

    if settings.url:
        view.stage(f"Asking {settings.url} for its models")
        found = resolve_all(settings.url, model=settings.model, api_key=api_key(), patience_s=settings.server_wait_s)
        view.note(f"Model {found.model} at {found.base_url.replace(' ', ', ')}")
        yield {
            "endpoint_url": found.base_url,
            "model": found.model,
            "request_defaults": settings.request_defaults,
            "concurrency": settings.concurrency,
        }
        return
    from clients.local_server import LocalServer, ensure_model

    model = ensure_model(settings.gguf, report=view.stage)
    view.stage(f"Starting the embedded server with {model.alias}")
    with LocalServer(model, log=place.server_log) as server:
        view.note(f"Model {model.alias}, embedded, at {server.base_url}")
        yield {
            "endpoint_url": server.base_url,
            "model": model.alias,
            "request_defaults": {"max_tokens": EMBEDDED_MAX_TOKENS} | settings.request_defaults,
            "concurrency": settings.concurrency or EMBEDDED_CONCURRENCY,
        }


def _follow(
    settings: "RunSettings", place: "Workplace", arguments: dict[str, Any], view: "RunView"
) -> _RunFailedError | None:
    """Run the compiled pipeline to its end; returns why it failed, if it did."""
    from clients.prompts.plan import MOST_PODS
    from pipelines.catalog import compiled_path
    from pipelines.local_run import SHARDS_AT_A_TIME, LocalRun

    # A shard's share is the whole divided by all shards, but here only a few of them run at a time.
    side_by_side = min(settings.shards, SHARDS_AT_A_TIME)
    chosen = settings.options.with_lengths(place.earlier_results()) if settings.fresh else settings.options
    arguments = {
        **arguments,
        "concurrency": arguments["concurrency"] * min(settings.shards, MOST_PODS) // side_by_side,
        "prompts": str(settings.prompts.resolve()),
        "system_prompt": settings.system_prompt,
        "template": settings.template,
        "shards": settings.shards,
        "max_error_rate": settings.max_error_rate,
        "output": str(place.output.resolve()),
        "state": str(place.state.resolve()),
        "server_wait_s": settings.server_wait_s,
        "options": chosen.to_json(),
    }
    view.stage("Starting the pipeline")
    with LocalRun(compiled_path("batch_inference"), arguments, scratch=place.scratch, log=place.run_log) as local:
        passed = False
        for event in local.events():
            if event is not None:
                view.see(event)
                passed = passed or (event["event"], event.get("step")) == ("step.finished", "gate")
            view.tick()
        # A shard that was killed fails its task for good, though a later step has finished its rows.
        if local.succeeded() or (passed and not view.failure):
            return None
        cause = view.failure or _unnamed_cause(place)
    return _RunFailedError(f"{cause} (log: {place.run_log})", view.exit_code or 1)


def _unnamed_cause(place: "Workplace") -> str:
    """Why a run may have ended without a word: on a full disk not even its log takes one."""
    free = shutil.disk_usage(place.output).free
    if free < _FULL_DISK_BYTES:
        return f"the disk of {place.output} is full ({free >> 10} KiB left). Free some space and run it again"
    return "the pipeline ended without naming a cause"


def _parser() -> argparse.ArgumentParser:
    parser = HelpParser(
        prog="python -m pipelines.run",
        usage="python -m pipelines.run --prompts FILE [--url URL | --gguf PATH | --host URL] [...]",
        description=__doc__,
        epilog=_EXAMPLES,
        rare=RARE_GROUPS,
        elsewhere=(_OF_KUBEFLOW, "it is for a run on Kubeflow. Give --host URL, too"),
    )
    add_input_arguments(parser)
    where = parser.add_argument_group("where the model answers")
    where.add_argument(
        "--url",
        default="",
        help="OpenAI-compatible endpoint, or several divided by commas; their key is read from OPENAI_API_KEY",
    )
    where.add_argument("--model", metavar="NAME", default="", help="model name (default: what the endpoint lists)")
    where.add_argument("--gguf", metavar="PATH", type=Path, help="serve this model with the embedded server")
    add_request_arguments(parser)
    how = add_run_arguments(parser)
    how.add_argument(
        "--shards", metavar="N", type=int, default=4, help="parts that run side by side (default: %(default)s)"
    )
    add_policy_arguments(parser)
    kubeflow = parser.add_argument_group("on Kubeflow instead of this machine; all flags: --host URL --help")
    kubeflow.add_argument("--host", metavar="URL", help="submit to this Kubeflow Pipelines API and follow the run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
