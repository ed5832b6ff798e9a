"""Run a file of prompts against an OpenAI-compatible endpoint: the batch engine alone, without Kubeflow.

The same command again goes on where the last one stopped: finished rows are not sent again, edited rows are.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
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
from clients.batch.footprint import keep_small
from clients.wide_help import HelpParser

if TYPE_CHECKING:
    from clients.workplace import Workplace

_EXAMPLES = """examples:
  python -m clients.batch --prompts prompts.jsonl --url http://localhost:8000/v1 --output results/mine
  python -m clients.batch --prompts reviews.csv --url http://localhost:8000/v1 --template "Translate: {text}"
  python -m clients.batch -i batch.jsonl -o answers.jsonl --url http://localhost:8000/v1 --model qwen3-30b-fp8
"""


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not (options.url or options.dry_run):
        parser.error("the following arguments are required: --url")
    from clients.errors import LLMInferenceError
    from clients.steps.interrupts import interruptible

    try:
        with interruptible():
            check_run_arguments(options)
            run_options(options)
            template_of(options)
            return _dry_run(options) if options.dry_run else _run(options)
    except LLMInferenceError as error:
        from clients.display import error_line

        error_line(str(error))
        return error.exit_code


def _dry_run(options: argparse.Namespace) -> int:
    from clients.preflight_view import DryRun, print_preflight
    from clients.prompts.rows import JobDefaults
    from clients.steps.boundary import api_key

    defaults = JobDefaults(
        model=options.model,
        system_prompt=options.system,
        request_defaults=request_defaults(options),
        template=template_of(options),
    )
    print_preflight(
        DryRun(
            prompts=options.prompts,
            defaults=defaults,
            url=options.url,
            model=options.model,
            api_key=api_key(),
            earlier=earlier_folders(options),
            gpus=options.gpus,
            join_duplicates=not options.keep_duplicates,
        )
    )
    return 0


def _run(options: argparse.Namespace) -> int:
    from clients.events import follow
    from clients.workplace import Workplace

    place = Workplace.prepare(options.prompts, output_folder(options), fresh=options.fresh)
    failures: list[str] = []
    reused: dict[int, int] = {}
    with place.held():
        with contextlib.ExitStack() as stack:
            show = _live(stack) if sys.stderr.isatty() else _log

            def see(event: dict[str, Any]) -> None:
                show(event)
                if event["event"] == "step.failed":
                    failures.append(event["error"])
                if event["event"] == "shard.progress":
                    reused[event["shard"]] = event["reused"]

            follow(see)
            exit_code = _run_steps(options, place)
        # What shows and writes results is loaded once there are some, so that the first request need not wait for it.
        from clients.display import error_line, print_summary
        from clients.results.openai_batch import write_batch_output

        if place.summary_is_new():
            if options.batch_output:
                write_batch_output(place.output / "results.parquet", options.batch_output)
            print_summary(
                place.read_summary(), place.output, batch_output=options.batch_output, reused=sum(reused.values())
            )
        if failures:
            error_line(failures[0])
        if not exit_code:
            place.settle()
    return exit_code


def _live(stack: contextlib.ExitStack) -> Callable[[dict[str, Any]], None]:
    """With a terminal: a live line until the stack is closed."""
    from clients.display import RunView

    return stack.enter_context(RunView()).see_and_show


def _log(event: dict[str, Any]) -> None:
    """Without a terminal: each event as a line of JSON."""
    print(json.dumps(event, ensure_ascii=False), file=sys.stderr, flush=True)


def _run_steps(options: argparse.Namespace, place: "Workplace") -> int:
    """The steps of the pipeline one after another, in this process; returns the exit code of the one that failed."""
    import tempfile

    from clients.steps.check_prompts import check_prompts
    from clients.steps.plan_shards import plan_shards
    from clients.steps.resolve_endpoint import resolve_endpoint
    from clients.steps.run_shard import run_shard
    from clients.storage import refusals

    prompts = str(options.prompts.resolve())
    chosen = run_options(options)
    if options.fresh:
        chosen = chosen.with_lengths(place.earlier_results())
    with contextlib.ExitStack() as stack:
        with refusals("write", place.scratch):
            place.scratch.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(tempfile.TemporaryDirectory(dir=place.scratch))
        paths = {name: str(Path(scratch) / name) for name in ("checked", "part")}
        try:
            check_prompts(
                prompts=prompts,
                state=str(place.state.resolve()),
                checked_path=paths["checked"],
                options=chosen.to_json(),
                system_prompt=options.system,
                request_defaults=request_defaults(options),
                template=template_of(options),
            )
            endpoint = resolve_endpoint(
                endpoint_url=options.url, model=options.model, server_wait_s=options.server_wait
            )
            (spec,) = plan_shards(
                checked_path=paths["checked"],
                endpoint=endpoint,
                shards=1,
                concurrency=options.concurrency,
                server_wait_s=options.server_wait,
                options=chosen.to_json(),
            )
            run_shard(spec=spec, part_path=paths["part"])
            from clients.steps.gate import gate
            from clients.steps.merge_shards import Paths, merge_shards

            merged = merge_shards(
                paths=Paths(*(Path(scratch) / name for name in ("results", "rejects", "report", "markdown"))),
                part_paths=[paths["part"]],
                checked_path=paths["checked"],
                output=str(place.output.resolve()),
                endpoint=endpoint,
                max_error_rate=options.max_error_rate,
            )
            gate(summary=merged.summary, max_error_rate=options.max_error_rate)
        except SystemExit as stop:  # a step ended with an error that its event tells
            return int(stop.code or 0)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = HelpParser(
        prog="python -m clients.batch",
        usage="python -m clients.batch --prompts FILE --url URL [--output DIR] [...]",
        description=__doc__,
        epilog=_EXAMPLES,
        rare=RARE_GROUPS,
    )
    add_input_arguments(parser)
    parser.add_argument(
        "--url",
        default="",
        help="OpenAI-compatible endpoint, or several divided by commas; their key is read from OPENAI_API_KEY",
    )
    parser.add_argument("--model", metavar="NAME", default="", help="model name (default: what the endpoint lists)")
    add_request_arguments(parser)
    add_run_arguments(parser)
    add_policy_arguments(parser)
    return parser


if __name__ == "__main__":
    keep_small()
    sys.exit(main())
