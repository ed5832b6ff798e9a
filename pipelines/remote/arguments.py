"""The flags of commands that talk to a Kubeflow Pipelines API, and the pipeline's arguments that they make."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clients.batch.arguments import (
    add_policy_arguments,
    add_request_arguments,
    request_defaults,
    run_options,
    template_of,
)
from clients.errors import SettingsError
from clients.storage import is_uri
from pipelines.remote.job_checks import check_values, own_machine
from pipelines.remote.parameters import Package
from pipelines.settings import Access, access

#: Title of the flags that are for Kubeflow alone.
KUBEFLOW_GROUP = "how Kubeflow runs it"


class _NotGiven:
    """Stands in a namespace where a flag was not given, whatever its default is."""


class Given:
    """Which flags of a command line were given, apart from those that have their default.

    Args:
        parser: The command's parser.
        arguments: The command line.
    """

    def __init__(self, parser: argparse.ArgumentParser, arguments: list[str] | None) -> None:
        self.options = parser.parse_args(arguments)
        missing = _NotGiven()
        blank = argparse.Namespace(
            **{name: [] if isinstance(value, list) else missing for name, value in vars(self.options).items()}
        )
        given = vars(parser.parse_args(arguments, blank))
        self._given = {name for name, value in given.items() if value is not missing and value != []}

    def __contains__(self, flag: str) -> bool:
        return flag in self._given

    def any_of(self, flags: Iterable[str]) -> bool:
        """Tell whether one of them was given."""
        return any(flag in self._given for flag in flags)


def add_access_arguments(parser: argparse.ArgumentParser, *, optional_value: bool = False) -> None:
    """Add the flags that say which server, and as whom.

    Args:
        parser: To add them to.
        optional_value: Whether --host may stand without an address, where --host itself chooses a way to run.
    """
    where = parser.add_argument_group("which Kubeflow, and as whom (secrets: KFP_TOKEN, KFP_COOKIE)")
    extra: dict[str, Any] = {"nargs": "?", "const": ""} if optional_value else {}
    where.add_argument(
        "--host", metavar="URL", default="", help="Kubeflow Pipelines API (default: KF_PIPELINES_ENDPOINT)", **extra
    )
    where.add_argument("--namespace", metavar="NAME", default="", help="your namespace, where Kubeflow has several")
    where.add_argument("--token-file", metavar="FILE", type=Path, help="file with a service account's token")
    where.add_argument("--ca-file", metavar="FILE", type=Path, help="certificates to trust (PEM)")


def access_of(options: argparse.Namespace) -> Access:
    """How to reach the server, from flags and environment.

    Raises:
        SettingsError: something is missing.
    """
    return access(options.host, namespace=options.namespace, token_file=options.token_file, ca_file=options.ca_file)


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that become the pipeline's arguments; `job_arguments` reads them."""
    files = parser.add_argument_group("what goes in and what comes out")
    files.add_argument(
        "-i",
        "--prompts",
        metavar="FILE|URI",
        default="",
        help="file of this machine, or an address that pods can read; {date} is the day of the run",
    )
    files.add_argument("--staging", metavar="URI", default="", help="folder for a file too large to travel inline")
    files.add_argument("--output", metavar="URI", default="", help="folder for results, such as s3://bucket/out/{date}")
    files.add_argument("--state", metavar="URI", default="", help="folder for finished rows (default: the pipeline's)")
    how = files.add_mutually_exclusive_group()
    how.add_argument("--template", metavar="TEXT", default="", help="user message from columns: 'Translate: {text}'")
    how.add_argument("--prompt-column", metavar="NAME", default="", help="the column that is the user message")
    where = parser.add_argument_group("where the model answers (without --url it is deployed for the run)")
    where.add_argument("--url", default="", help="OpenAI-compatible endpoint, as the pods see it")
    where.add_argument("--model", metavar="NAME", default="", help="model name (default: what the endpoint lists)")
    where.add_argument(
        "--set",
        metavar="NAME=VALUE",
        dest="parameters",
        action="append",
        default=[],
        help="any other parameter of the pipeline, such as replicas=4; repeatable",
    )
    add_request_arguments(parser)
    _add_run_arguments(parser)
    add_policy_arguments(parser)
    kubeflow = parser.add_argument_group(KUBEFLOW_GROUP)
    kubeflow.add_argument("--image", metavar="IMAGE", default="", help="of the steps; see Dockerfile (default: Python)")
    kubeflow.add_argument(
        "--volume",
        metavar="CLAIM:FOLDER",
        dest="volumes",
        action="append",
        default=[],
        help="mount a ReadWriteMany claim there in the pods; --prompts, --output and --state may be paths in it",
    )
    kubeflow.add_argument("--experiment", metavar="NAME", default="Default", help="experiment (default: %(default)s)")
    kubeflow.add_argument("--service-account", metavar="NAME", default="", help="account of the pods")
    kubeflow.add_argument("--pipeline-root", metavar="URI", default="", help="where Kubeflow keeps artifacts")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """As for a run on this machine, with the pipeline's defaults."""
    how = parser.add_argument_group("how it runs")
    how.add_argument("--shards", metavar="N", type=int, default=4, help="pods that work side by side (default: 4)")
    how.add_argument("--concurrency", metavar="N", type=int, default=0, help="most requests in flight (default: found)")
    how.add_argument(
        "--max-error-rate", metavar="SHARE", type=float, default=0.2, help="rows that may go wrong (default: 0.2)"
    )
    how.add_argument(
        "--server-wait", metavar="SECONDS", type=int, default=600, help="wait for an endpoint (default: 600)"
    )
    answers = how.add_mutually_exclusive_group()
    answers.add_argument("--reuse", action="store_true", help="unchanged rows keep the last finished run's answers")
    answers.add_argument("--fresh", action="store_true", help="answer every row anew, after an unfinished run too")


#: Flags and the pipeline's parameters, where one is simply the other.
_PLAIN = {
    "output": "output",
    "state": "state",
    "url": "endpoint_url",
    "model": "model",
    "system": "system_prompt",
    "shards": "shards",
    "concurrency": "concurrency",
    "max_error_rate": "max_error_rate",
    "server_wait": "server_wait_s",
    "image": "step_image",
}

_REQUEST_FLAGS = ("param", "max_tokens", "temperature")

#: Choices that only a run with a state of Kubeflow's own has.
_STATE_FLAGS = ("reuse", "fresh")


def job_arguments(given: Given, package: Package, earlier: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's arguments: those of an earlier run, and on top what was given. Without the prompts.

    Args:
        given: The command line.
        package: The pipeline.
        earlier: Arguments of the run to go on with; empty for none.

    Raises:
        SettingsError: a flag cannot be used.
    """
    options = given.options
    _check(given)
    found = dict(earlier)
    found |= {name: getattr(options, flag) for flag, name in _PLAIN.items() if flag in given}
    if given.any_of(("template", "prompt_column")):
        found["template"] = template_of(options)
    if given.any_of(_REQUEST_FLAGS):
        found["request_defaults"] = (found.get("request_defaults") or {}) | request_defaults(options)
    if "fresh" in given and found.get("options"):
        found["options"] = {name: value for name, value in found["options"].items() if name != "resumes"}
    if given.any_of((*_policy_flags(), *_STATE_FLAGS)):
        found["options"] = (found.get("options") or {}) | _run_options(given)
    for text in options.parameters:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise SettingsError(f"--set {text!r}: expected NAME=VALUE, such as --set replicas=4")
        found[name] = package.read(name, value)
    return found


def check_job(given: Given, package: Package, earlier: dict[str, Any]) -> dict[str, Any]:
    """As `job_arguments`, and compare them with the pipeline before a file is uploaded or a server asked.

    Args:
        given: The command line.
        package: The pipeline.
        earlier: Arguments of the run to go on with; empty for none.

    Raises:
        SettingsError: something does not fit.
    """
    found = job_arguments(given, package, earlier)
    package.check(found | ({"prompts": ""} if given.options.prompts else {}))
    prompts = given.options.prompts
    check_values(found | ({"prompts": prompts} if ":/" in prompts else {}), package)
    return found


def package_name(given: Given) -> str:
    """Which pipeline a command line asks for: one that deploys the model, unless there is an endpoint."""
    return "batch_client" if "url" in given else "batch_inference"


def _policy_flags() -> Iterable[str]:
    """Names of the flags that become `options`."""
    parser = argparse.ArgumentParser(add_help=False)
    add_policy_arguments(parser)
    return vars(parser.parse_args([]))


def _run_options(given: Given) -> dict[str, Any]:
    """The flags that become the parameter `options`, in its words."""
    options = given.options
    found = run_options(argparse.Namespace(**{**vars(options), "lengths_from": ""})).to_json()
    found.pop("max_error_rate", None)  # a parameter of its own
    if options.lengths_from:
        found["lengths_from"] = options.lengths_from
    if "metrics_port" in given and "metrics_host" not in given:
        found["metrics_host"] = "0.0.0.0"  # noqa: S104  (a pod's own network; Prometheus is another pod)
    return found | {flag: True for flag in _STATE_FLAGS if flag in given}


def _check(given: Given) -> None:
    options = given.options
    for flag, least in (("shards", 1), ("concurrency", 0), ("server_wait", 0)):
        if (value := getattr(options, flag)) < least:
            raise SettingsError(f"--{flag.replace('_', '-')} must be at least {least}, found {value}")
    if not 0 <= options.max_error_rate <= 1:
        raise SettingsError(f"--max-error-rate must be between 0 and 1, found {options.max_error_rate:g}")
    for flag in ("output", "state", "lengths_from"):
        value = getattr(options, flag)
        if value and not is_uri(value) and not value.startswith("/"):
            word = flag.replace("_", "-")
            raise SettingsError(
                f"--{word} {value}: pods cannot see this machine's folders. Give an address such as s3://bucket/{word}"
                ", or a path in a volume: --volume CLAIM:FOLDER"
            )
    for flag in _STATE_FLAGS:
        if flag in given and options.state:
            raise SettingsError(
                f"--{flag} is about the state that Kubeflow keeps by itself; with --state, give another folder instead"
            )
    if "url" in given and (host := own_machine(options.url)):
        raise SettingsError(
            f"--url {options.url}: {host} is each pod itself there. Give the endpoint's name in the cluster"
        )
