"""Events: one JSON object a line on the log, which people grep, pods keep and `pipelines.run` follows."""

import json
import logging
import sys
from collections.abc import Callable
from typing import Any


def emit(logger: logging.Logger, event: str, **fields: Any) -> None:
    """Log one event with its facts. Never pass prompts, answers or secrets."""
    logger.info("%s", json.dumps({"event": event, **fields}, ensure_ascii=False, default=str))


def parse(line: str) -> dict[str, Any] | None:
    """Read an event back from a log line, whatever a log collector indented it with; None for any other line."""
    text = line.strip()
    if not text.startswith('{"event"'):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def log_to_stderr() -> None:
    """Send this package's events to stderr, a line each; entry points call it once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _handle_with(handler)


def follow(see: Callable[[dict[str, Any]], None]) -> None:
    """Hand this package's events to `see` as they are emitted, instead of writing them anywhere."""

    class Follower(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (event := parse(record.getMessage())) is not None:
                see(event)

    _handle_with(Follower())


def _handle_with(handler: logging.Handler) -> None:
    logger = logging.getLogger("clients")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
