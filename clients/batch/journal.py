"""Answers that no segment holds yet, each in a file as soon as it comes: a process that is killed loses none of them.

Between two commits the answers of a second would be lost. Appending them to a file costs some 4 us each, and the kernel
has what was written, whatever becomes of the process. A machine that loses its power loses them: only segments are
synced.
"""

import datetime as dt
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from clients.records import ChatResult, Outcome

#: Of the files' names; the dot hides them from everyone who reads the folder as one Parquet dataset.
PREFIX = ".journal-"


class Journal:
    """Writes a shard's journal: one file after the other, each for the answers of one segment to come.

    Args:
        folder: Of the shard's segments.
    """

    def __init__(self, folder: Path) -> None:
        self._stem = folder / f"{PREFIX}{secrets.token_hex(4)}"
        self._files: dict[int, Path] = {}  # by number, those that are there
        self._count = 0
        self._descriptor: int | None = None

    def write(self, results: Iterable[ChatResult]) -> None:
        """Append answers. A disk that refuses is no trouble here: the next commit tells of it."""
        try:
            if self._descriptor is None:
                path = self._stem.with_name(f"{self._stem.name}-{self._count:06d}")
                self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                self._files[self._count] = path
                self._count += 1
            # A line break on both sides: a write that was cut short spoils no other.
            os.write(self._descriptor, b"\n%b\n" % b"\n".join(map(orjson.dumps, results)))
        except (OSError, orjson.JSONEncodeError):
            return

    def turn(self) -> int:
        """Go on in a new file.

        Returns:
            How many files there have been: what they hold is about to be committed.
        """
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        return self._count

    def drop(self, files: int) -> None:
        """Remove the first files: what they hold is committed."""
        for number in list(self._files):  # a copy, made at once: another thread may add a file
            if number < files:
                self._files.pop(number).unlink(missing_ok=True)


def journals(folder: Path) -> list[Path]:
    """The journals below a folder, those of one shard in the order in which they were written."""
    return sorted(folder.rglob(f"{PREFIX}*"))


def read_journal(path: Path) -> Iterator[ChatResult]:
    """The answers in a journal; what was cut short is left out."""
    with path.open("rb") as lines:
        for line in lines:
            if (result := _result(line)) is not None:
                yield result


def _result(line: bytes) -> ChatResult | None:
    try:
        fields: dict[str, Any] = orjson.loads(line)
        started_at = fields.pop("started_at")
        return ChatResult(
            **{**fields, "outcome": Outcome(fields["outcome"])},
            started_at=None if started_at is None else dt.datetime.fromisoformat(started_at),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
