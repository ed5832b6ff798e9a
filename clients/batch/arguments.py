"""Flags that every command which sends requests has, in the same words."""

import argparse
import json
from pathlib import Path
from typing import Any

from clients.errors import SettingsError


def local_path(text: str) -> Path:
    """Type of a flag that takes a path on this machine, not an address."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is an address; a run on this machine reads and writes local files")
    return Path(text)


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


def check_run_arguments(options: argparse.Namespace) -> None:
    """Refuse values that `add_run_arguments` lets through.

    Raises:
        SettingsError: a number out of its range.
    """
    for flag, value, least in (("--concurrency", options.concurrency, 0), ("--server-wait", options.server_wait, 0)):
        if value and value < least:
            raise SettingsError(f"{flag} must be at least {least}, found {value}")
    if not 0 <= options.max_error_rate <= 1:
        raise SettingsError(f"--max-error-rate must be between 0 and 1, found {options.max_error_rate:g}")
