"""Flags whose value is JSON: labels of nodes, tolerations."""

import argparse
import json
from typing import Any


def json_object(text: str) -> dict[str, Any]:
    """A flag's value that is a JSON object, for argparse's `type`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found: dict[str, Any] = _json(text, dict)
    return found


def json_list(text: str) -> list[Any]:
    """A flag's value that is a JSON list, for argparse's `type`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found: list[Any] = _json(text, list)
    return found


def _json(text: str, kind: type) -> Any:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(found, kind):
        raise argparse.ArgumentTypeError(f"must be a JSON {'object' if kind is dict else 'list'}")
    return found
