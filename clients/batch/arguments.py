"""Flags that every command which sends requests has, in the same words."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from clients.batch.options import RunOptions, outcomes
from clients.errors import SettingsError
from clients.prompts.template import Template
from clients.tracing.settings import CONTENTS

#: Beginnings of the titles of groups that few need; see `clients.wide_help.HelpParser`.
RARE_GROUPS = ("request fields", "answers that are not ok", "what others see")


def local_path(text: str) -> Path:
    """Type of a flag that takes a path on this machine, not an address.

    Raises:
        argparse.ArgumentTypeError: it is empty, or an address.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give it a file or a folder")
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is an address; a run on this machine reads and writes local files, "
            "a run on Kubeflow (--host URL) takes it"
        )
    return Path(text)


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for what goes in and what comes out; `template_of` and `output_folder` read some of them."""
    files = parser.add_argument_group("what goes in and what comes out")
    files.add_argument(
        "-i",
        "--prompts",
        metavar="FILE",
        type=local_path,
        required=True,
        help="JSONL (one request a line), OpenAI batch lines, CSV, TSV or Parquet; text also with gzip or zstd",
    )
    how = files.add_mutually_exclusive_group()
    how.add_argument(
        "--template", metavar="TEXT", default="", help="user message from columns, such as 'Translate: {text}'"
    )
    how.add_argument("--prompt-column", metavar="NAME", default="", help="the column that is the user message")
    files.add_argument(
        "--output",
        metavar="DIR",
        type=local_path,
        help="folder for the results (default: results/<name of the prompts>, or FILE.run with --batch-output)",
    )
    files.add_argument(
        "-o", "--batch-output", metavar="FILE", type=local_path, help="the answers as OpenAI batch lines, too"
    )
    files.add_argument(
        "--dry-run", action="store_true", help="check the prompts, tell what a run would take, and send nothing"
    )
    files.add_argument(
        "--gpus", metavar="N", type=int, default=0, help="GPUs that serve the model, to tell GPU hours by"
    )


def template_of(options: argparse.Namespace) -> str:
    """The template that --template or --prompt-column gives; "" for none.

    Raises:
        SettingsError: it cannot be used.
    """
    name = options.prompt_column
    if "{" in name or "}" in name:
        raise SettingsError(f"--prompt-column {name!r}: a name with braces cannot be used. Rename the column.")
    text = f"{{{name}}}" if name else str(options.template)
    if text:
        Template(text)
    return text


def output_folder(options: argparse.Namespace) -> Path:
    """The folder for the results: as given, beside the file of --batch-output, or below results/."""
    if options.output is not None:
        return Path(options.output)
    if options.batch_output is not None:
        file: Path = options.batch_output
        return file.with_name(f"{file.stem if file.suffix != '.run' else file.name}.run")
    return Path("results", options.prompts.name.split(".")[0])


def earlier_folders(options: argparse.Namespace) -> tuple[Path, ...]:
    """Folders that may hold the summary of an earlier run of the same kind."""
    named = Path(options.lengths_from) if options.lengths_from else None
    if named is not None and named.suffix == ".parquet":
        named = named.parent
    return tuple(folder for folder in (named, output_folder(options)) if folder is not None)


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for request fields, which `request_defaults` reads."""
    request = parser.add_argument_group("request fields, for rows that have none of their own")
    request.add_argument("--system", metavar="TEXT", default="", help="system prompt")
    request.add_argument("--max-tokens", metavar="N", type=int, help="longest answer, in tokens")
    request.add_argument("--temperature", metavar="T", type=float, help="0 for the most likely answer")
    request.add_argument(
        "--param",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any other field, such as top_k=20; repeatable",
    )


def request_defaults(options: argparse.Namespace) -> dict[str, Any]:
    """Put the request fields of the command line together.

    A value of --param that is JSON is taken as such, anything else as text.

    Raises:
        SettingsError: a --param that is not KEY=VALUE.
    """
    fields: dict[str, Any] = {}
    for text in options.param:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise SettingsError(f"--param {text!r}: expected KEY=VALUE, such as --param top_k=20")
        try:
            fields[key] = json.loads(value)
        except ValueError:
            fields[key] = value
    own = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    return fields | {key: value for key, value in own.items() if value is not None}


def add_run_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags for how a run goes."""
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--concurrency",
        metavar="N",
        type=int,
        default=0,
        help="most requests in flight (default: found out while it runs)",
    )
    how.add_argument(
        "--server-wait",
        metavar="SECONDS",
        type=int,
        default=30,
        help="wait this long for an endpoint that cannot be reached (default: %(default)s)",
    )
    how.add_argument(
        "--max-error-rate",
        metavar="SHARE",
        type=float,
        default=0.2,
        help="share of rows that may go wrong, 0 to 1 (default: %(default)s)",
    )
    how.add_argument(
        "--fresh", action="store_true", help="answer every row anew; old results stay until the new ones stand"
    )
    return how


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for rows that do not end ok, what a run may spend, and who sees it; `run_options` reads them."""
    policy = parser.add_argument_group("answers that are not ok, and what a run may spend")
    policy.add_argument(
        "--retry",
        metavar="OUTCOMES",
        default="",
        help="send these again that ended so earlier, such as truncated,rejected",
    )
    policy.add_argument(
        "--resample", metavar="OUTCOMES", default="", help="ask once more at once, such as empty,schema_invalid"
    )
    policy.add_argument(
        "--reasoning-max-tokens",
        metavar="N",
        type=int,
        help="a row cut off while thinking gets one more try with N tokens",
    )
    policy.add_argument(
        "--thinking-token-budget", metavar="N", type=int, help="the same, with its thinking ended after N tokens (vLLM)"
    )
    policy.add_argument("--raw-response", action="store_true", help="keep every answer as the server sent it, too")
    policy.add_argument(
        "--keep-duplicates", action="store_true", help="send identical rows one by one, not once for all"
    )
    policy.add_argument("--time-limit", metavar="SECONDS", type=float, help="end after this time with what is there")
    policy.add_argument("--max-output-tokens", metavar="N", type=int, help="end after so many tokens in all")
    policy.add_argument(
        "--lengths-from", metavar="PATH", default="", help="earlier results; what took long there goes first"
    )
    policy.add_argument(
        "--max-regression",
        metavar="NAME=SHARE",
        default="",
        help="how much worse than the run before it may be, such as error_rate=0.02,rows_per_s=0.3",
    )
    _add_observation_arguments(parser)


def _add_observation_arguments(parser: argparse.ArgumentParser) -> None:
    seen = parser.add_argument_group("what others see of it (traces need the LANGFUSE_... variables)")
    seen.add_argument(
        "--trace-content",
        choices=CONTENTS,
        default="full",
        help="what of prompts and answers Langfuse gets: all, their SHA-256, or nothing (default: %(default)s)",
    )
    seen.add_argument(
        "--trace-sample-rate",
        metavar="SHARE",
        type=float,
        help="share of the rows that are traced, 0 to 1; rows that went wrong always are (default: all)",
    )
    seen.add_argument("--trace-scores", action="store_true", help="send outcomes to Langfuse as scores, too")
    seen.add_argument(
        "--metrics-port", metavar="PORT", type=int, help="let Prometheus read the progress at this port (0: any)"
    )
    seen.add_argument(
        "--metrics-host",
        metavar="HOST",
        default="127.0.0.1",
        help="address at which that port is open (default: %(default)s, this machine alone)",
    )
    seen.add_argument("--pushgateway", metavar="URL", default="", help="send the progress to a Prometheus Pushgateway")


def _limits(text: str) -> tuple[tuple[str, float], ...]:
    if not text:
        return ()
    from clients.results.comparison import read_limits  # late: few runs have any, and most of it is for the end

    return read_limits(text, "--max-regression")


def run_options(options: argparse.Namespace) -> RunOptions:
    """The options of a run from its flags.

    Raises:
        SettingsError: a word that is no outcome, or a number out of its range.
    """
    return RunOptions(
        retry=outcomes(options.retry, "--retry"),
        resample=outcomes(options.resample, "--resample"),
        reasoning_max_tokens=options.reasoning_max_tokens,
        thinking_token_budget=options.thinking_token_budget,
        raw_response=options.raw_response,
        join_duplicates=not options.keep_duplicates,
        max_error_rate=options.max_error_rate,
        max_regression=_limits(options.max_regression),
        time_limit_s=options.time_limit,
        max_output_tokens=options.max_output_tokens,
        lengths_from=str(Path(options.lengths_from).resolve()) if options.lengths_from else "",
        trace_content=options.trace_content,
        trace_sample_rate=options.trace_sample_rate,
        trace_scores=options.trace_scores,
        metrics_port=options.metrics_port,
        metrics_host=options.metrics_host,
        pushgateway=options.pushgateway,
    )


def check_run_arguments(options: argparse.Namespace) -> None:
    """Refuse values that `add_input_arguments` and `add_run_arguments` let through.

    Raises:
        SettingsError: a number out of its range, or a file that cannot be written.
    """
    for flag in ("concurrency", "server_wait", "gpus"):
        if (value := getattr(options, flag)) < 0:
            raise SettingsError(f"--{flag.replace('_', '-')} must be at least 0, found {value}")
    if not 0 <= options.max_error_rate <= 1:
        raise SettingsError(f"--max-error-rate must be between 0 and 1, found {options.max_error_rate:g}")
    if options.batch_output is not None:
        _check_batch_output(options.batch_output, options.prompts)


def _check_batch_output(target: Path, prompts: Path) -> None:
    """What cannot be written after hours should be known at once."""
    if target.exists() and prompts.exists() and target.samefile(prompts):
        raise SettingsError(f"--batch-output {target} is the file of the prompts. Give it another name.")
    if target.is_dir():
        raise SettingsError(f"--batch-output {target} is a folder. Give the name of a file, such as {target}/out.jsonl")
    if not target.absolute().parent.is_dir():
        raise SettingsError(f"--batch-output {target}: there is no folder {target.parent}. Make it first.")
    if not os.access(target.absolute().parent, os.W_OK):
        raise SettingsError(f"--batch-output {target}: {target.parent} cannot be written. Choose another folder.")
