"""Sends the traces that runs have kept in files because Langfuse did not take them."""

import sys
import time

from clients.errors import SettingsError
from clients.storage import Folder
from clients.tracing.exporter import Exporter
from clients.tracing.settings import TraceSettings
from clients.tracing.spans import Origin, SpanWriter
from clients.tracing.spool import Spool, rows_in
from clients.tracing.tracer import TraceCounts

#: Seconds between two lines of progress.
_TELL_S = 2.0


def replay(location: str, settings: TraceSettings | None, *, time_limit_s: float) -> int:
    """Send every file with traces in a folder or below it; what is accepted is removed.

    What a run has sent already is not in these files; what may have arrived twice replaces itself in Langfuse.

    Args:
        location: Folder or URI, such as a run's state folder.
        settings: Where to.
        time_limit_s: Seconds after which what is left stays where it is.

    Returns:
        The exit code: 0 when nothing is left, else 1.

    Raises:
        SettingsError: tracing is off.
        StorageError: the folder cannot be read.
    """
    if settings is None:
        raise SettingsError(
            "tracing is off: set LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY and LANGFUSE_BASE_URL (docs/tracing.md)"
        )
    spool = Spool(Folder(location))
    names = spool.names()
    rows = sum(map(rows_in, names))
    if not names:
        _say(f"no traces are kept below {location}")
        return 0
    _say(f"{rows} rows in {len(names)} files for {settings.base_url}")
    exporter = Exporter(settings, SpanWriter(Origin(run="replay", shard=0), settings), spool)
    until, told = time.monotonic() + time_limit_s, time.monotonic()
    while exporter.has_more(until):
        time.sleep(0.05)
        if time.monotonic() - told >= _TELL_S:
            told = time.monotonic()
            _say(f"{exporter.replayed} of {rows} rows sent")
    counts = exporter.close(1.0, _no_summary)
    left = spool.names()
    kept = sum(map(rows_in, left))
    _say(f"sent {counts.replayed}, dropped {rows - counts.replayed - kept}, left {kept} rows in {len(left)} files")
    return 0 if not left and counts.replayed == rows else 1


def _no_summary(_counts: TraceCounts) -> None:
    return None


def _say(text: str) -> None:
    print(f"replay: {text}", file=sys.stderr, flush=True)
