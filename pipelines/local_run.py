"""Run a compiled pipeline on this machine, follow its events, and stop it cleanly."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from clients import events
from pipelines.local_runner import STOP_PATIENCE_S

#: Kubeflow's local runner works on two iterations of a ParallelFor at a time, whatever it is told.
SHARDS_AT_A_TIME = 2

_POLL_S = 0.2


class LocalRun:
    """One run of a compiled pipeline by Kubeflow's local runner, as a process group. A context manager.

    Leaving it stops whatever still runs: tasks get SIGTERM and commit what is finished.

    Args:
        pipeline: Compiled YAML.
        arguments: Pipeline parameters.
        scratch: Folder on the disk of the results, for artifacts and temporary files; emptied at the end.
        log: Where the runner's and the tasks' output goes.
    """

    def __init__(self, pipeline: Path, arguments: dict[str, Any], *, scratch: Path, log: Path) -> None:
        self._pipeline, self._scratch = pipeline.resolve(), scratch.resolve()  # the runner has a folder of its own
        self._arguments, self._log = arguments, log
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._scratch.mkdir(parents=True, exist_ok=True)
        root = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(dir=self._scratch, ignore_cleanup_errors=True))
        )
        (root / "arguments.json").write_text(json.dumps(self._arguments), encoding="utf-8")
        log = self._stack.enter_context(self._log.open("wb"))
        command = [sys.executable, "-m", "pipelines.local_runner"]
        paths = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [*command, str(self._pipeline), str(root / "arguments.json"), str(root / "artifacts")],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=root,
            env={
                **os.environ,
                "TMPDIR": str(root),
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "PYTHONUNBUFFERED": "1",
            },
            start_new_session=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._stop()
        finally:
            self._stack.close()

    def events(self) -> Iterator[dict[str, Any] | None]:
        """Events of the steps as they come, with None several times a second in between, until the run has ended."""
        with self._log.open(encoding="utf-8", errors="replace") as log:
            while (process := self._process) is not None and process.poll() is None:
                yield from _parsed(log)
                yield None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
            yield from _parsed(log)

    def succeeded(self) -> bool:
        """Tell whether the pipeline ended well; call it after the last event."""
        return self._process is not None and self._process.wait() == 0

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()  # tells the runner to end its tasks and itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_PATIENCE_S + 5)
        for signum in (signal.SIGTERM, signal.SIGKILL):  # only for tasks that a runner which crashed left behind
            if not _end_group(process.pid, signum):
                break
        process.wait()


def _end_group(group: int, signum: int) -> bool:
    """Send a signal to a process group; True while, five seconds later, somebody is still there."""
    deadline = time.monotonic() + 5
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signum)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            os.killpg(group, 0)
        return True
    return False


def _parsed(log: TextIO) -> Iterator[dict[str, Any]]:
    """Events on the complete lines that were added to a log."""
    while True:
        at = log.tell()
        line = log.readline()
        if not line.endswith("\n"):
            log.seek(at)
            return
        if (event := events.parse(line)) is not None:
            yield event
