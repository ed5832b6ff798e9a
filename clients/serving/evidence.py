"""Reading objects of which any part may be missing or strange, and what is said about them by whom and when."""

import dataclasses
import datetime as dt
import re
from collections.abc import Iterable
from typing import Any

from clients.serving import times
from clients.serving.snapshot import Snapshot

Object = dict[str, Any]

#: A quotation is no longer than this; the message around it says what to do, and has to stay readable.
QUOTE = 180

_BEGINNING = dt.datetime.min.replace(tzinfo=dt.UTC)
_SECRETS = (
    (re.compile(r"\bhf_(?:(?=[a-zA-Z]*\d|[a-z\d]*[A-Z])[a-zA-Z\d]{4,}|[a-z]{13,})"), "hf_***"),
    (re.compile(r"\b(sk-|sk_|pk-lf-|ghp_|gho_|github_pat_|glpat-|nvapi-|api_org_|AKIA|eyJ)[\w.-]{6,}"), r"\1***"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE), r"\1 ***"),
    (re.compile(r"(--[\w-]*(?:key|token|secret|password)(?=[ =]))[ =]+[^\s,]+", re.IGNORECASE), r"\1 ***"),
    (
        re.compile(
            r"((?<![a-z])(?:\w{0,40}_)?(?:token|password|passwd|secret|api[_-]?key)[\"']?\s*[=:]\s*[\"']?)"
            r"(?!\*\*\*)(?:(?:bearer|basic)\s+)?[^\s\"',;]{4,}",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
    (re.compile(r"(authorization[\"']?\s*[=:]\s*[\"']?)(?=[^\s,]*\d)[^\s\"',;]{8,}", re.IGNORECASE), r"\1***"),
    (re.compile(r"(\w://)[^\s/@]+@"), r"\1***@"),
    (re.compile(r"(https?://[^\s?\"']+)\?[^\s\"']+"), r"\1?***"),
)


def quoted(words: str, limit: int = QUOTE) -> str:
    """Somebody else's words on one line: no control characters, no secrets, at most `limit` characters."""
    line = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", words[:4000])
    line = " ".join("".join(c if c.isprintable() else " " for c in line).split())
    for secret, mask in _SECRETS:
        line = secret.sub(mask, line)
    line = line.rstrip(". ")  # our own sentence goes on behind it
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def at(found: Any, *path: str) -> Any:
    """What stands at a path; None when anything on the way is missing or no object."""
    for name in path:
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    return found


def text(found: Any, *path: str) -> str:
    """The text at a path; "" for anything else."""
    value = at(found, *path)
    return value if isinstance(value, str) else ""


def whole(found: Any, *path: str) -> int:
    """The whole number at a path; 0 for anything else."""
    value = at(found, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def mapping(found: Any, *path: str) -> Object:
    """The object at a path; empty for anything else."""
    value = at(found, *path)
    return value if isinstance(value, dict) else {}


def objects(found: Any, *path: str) -> list[Object]:
    """The objects in the list at a path; empty for anything else."""
    value = at(found, *path)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list | tuple) else []


def name_of(found: Object) -> str:
    """An object's name, fit for a message."""
    return quoted(text(found, "metadata", "name"), 80) or "?"


def condition(found: Object, kind: str) -> Object:
    """The condition of a kind in an object's status; empty when there is none."""
    return next((one for one in objects(found, "status", "conditions") if one.get("type") == kind), {})


def is_ready(pod: Object) -> bool:
    """Whether a pod serves, by its own account."""
    return condition(pod, "Ready").get("status") == "True"


def main_container(pod: Object) -> str:
    """The name of the container that serves the model: KServe's by its name, else the first."""
    listed = objects(pod, "spec", "containers") or objects(pod, "status", "containerStatuses")
    names = [text(one, "name") for one in listed]
    return "kserve-container" if "kserve-container" in names else next(iter(names), "")


@dataclasses.dataclass(frozen=True)
class Said:
    """One event.

    Attributes:
        reason: The word of whoever wrote it, such as `FailedScheduling`.
        message: What it says.
        first: When it was first seen; None when it does not say.
        last: When it was last seen; the beginning of time when it does not say.
        count: How often it was seen.
    """

    reason: str
    message: str
    first: dt.datetime | None
    last: dt.datetime
    count: int


class Evidence:
    """A snapshot, to be asked about one object at a time."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._events: dict[tuple[str, str], list[Object]] = {}
        for event in objects(snapshot.events):
            about = mapping(event, "involvedObject") or mapping(event, "regarding")
            self._events.setdefault((text(about, "kind"), text(about, "name")), []).append(event)

    def age(self, *moments: Any) -> float:
        """Seconds from the first of these moments that is one to the snapshot; 0 when none is."""
        for moment in moments:
            found = moment if isinstance(moment, dt.datetime) else times.read(moment)
            if found is not None:
                return (self.snapshot.taken_at - found).total_seconds()
        return 0.0

    def about(self, kind: str, found: Object, *reasons: str) -> list[Said]:
        """The events about an object, newest first. Those about a predecessor of the same name do not count."""
        uid, born = text(found, "metadata", "uid"), times.read(at(found, "metadata", "creationTimestamp"))
        kept: list[tuple[dt.datetime, int, int, Said]] = []
        for event in self._events.get((kind, text(found, "metadata", "name")), []):
            about = mapping(event, "involvedObject") or mapping(event, "regarding")
            said = _said(event)
            other = uid and text(about, "uid") and text(about, "uid") != uid
            old = born is not None and said.last != _BEGINNING and said.last < born - dt.timedelta(seconds=1)
            if not other and not old and (not reasons or said.reason in reasons):
                version = text(event, "metadata", "resourceVersion")
                order = int(version) if version.isdecimal() and len(version) < 30 else 0
                kept.append((said.last, order, len(kept), said))
        return [one[-1] for one in sorted(kept, key=lambda one: one[:3], reverse=True)]

    def scheduled(self, pod: Object) -> float:
        """Seconds since a pod got its node."""
        placed = condition(pod, "PodScheduled")
        known = placed.get("lastTransitionTime") if placed.get("status") == "True" else None
        return self.age(known, at(pod, "status", "startTime"), at(pod, "metadata", "creationTimestamp"))

    def log(self, pod: Object, *, died: bool = False) -> list[str]:
        """The last lines of a pod's log. Progress bars write many lines over each other: each counts."""
        logs = self.snapshot.died if died else self.snapshot.logs
        found = text(dict(logs), text(pod, "metadata", "name"))
        return [line[:2000] for line in re.split(r"[\r\n]+", found[-65536:]) if line.strip()][-400:]


def _said(event: Object) -> Said:
    first = _moments(at(event, "firstTimestamp"), at(event, "eventTime"), at(event, "metadata", "creationTimestamp"))
    last = _moments(at(event, "lastTimestamp"), at(event, "series", "lastObservedTime")) + first
    return Said(
        reason=text(event, "reason"),
        message=text(event, "message") or text(event, "note"),
        first=min(first, default=None),
        last=max(last, default=_BEGINNING),
        count=max(whole(event, "count"), whole(event, "series", "count"), 1),
    )


def _moments(*found: Any) -> list[dt.datetime]:
    return [moment for moment in map(times.read, filter(None, found)) if moment is not None]


def first_seen(said: Iterable[Said]) -> dt.datetime | None:
    """When the earliest of some events was first seen."""
    return min((one.first for one in said if one.first is not None), default=None)
