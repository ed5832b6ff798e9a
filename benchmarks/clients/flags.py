"""The flags that all peers have, and how they read their prompts."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path


def parse(description: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        description: Shown by `--help`.
        arguments: Instead of the command line.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help='lines of {"prompt": "…"}')
    parser.add_argument("--url", required=True, help="base URL of the endpoint")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSONL to write")
    parser.add_argument("--model", default="fake", metavar="NAME", help="served name (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=64, metavar="N", help="in flight (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="of a request (default: %(default)s)")
    parser.add_argument("--attempts", type=int, default=3, metavar="N", help="for a row (default: %(default)s)")
    return parser.parse_args(arguments)


def read_prompts(path: Path) -> Iterator[tuple[int, str]]:
    """The prompts one after another, with their numbers."""
    with path.open(encoding="utf-8") as lines:
        for row, line in enumerate(lines):
            yield row, json.loads(line)["prompt"]
