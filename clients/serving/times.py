"""Kubernetes' timestamps."""

import datetime as dt
from typing import Any


def now() -> dt.datetime:
    """This moment, in UTC."""
    return dt.datetime.now(dt.UTC)


def write(moment: dt.datetime) -> str:
    """A moment as Kubernetes writes it: RFC 3339, whole seconds, UTC."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(text: Any) -> dt.datetime | None:
    """A moment from an object or an annotation; None for anything that is none."""
    try:
        found = dt.datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)
