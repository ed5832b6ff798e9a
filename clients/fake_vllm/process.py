"""The fake server as a process of its own, for tests and benchmarks."""

import contextlib
import http.client
import os
import selectors
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from clients.errors import LocalServerError

_ROOT = Path(__file__).resolve().parents[2]
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class FakeServer:
    """Runs `python -m clients.fake_vllm` between `with` and its end.

    Args:
        flags: As on the command line.
        start_timeout_s: Seconds until the first line has to come.

    Attributes:
        url: Base URL of the first address, such as `http://127.0.0.1:40123/v1`.
    """

    def __init__(self, *flags: str, start_timeout_s: float = 20.0) -> None:
        self.url = ""
        self._flags = flags
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "clients.fake_vllm", *self._flags]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.stop)  # a Ctrl-C is one, too
            self.url = self._first_line()
            on_failure.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def host(self) -> str:
        """The first address."""
        return urllib.parse.urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port, the same on every address."""
        return urllib.parse.urlsplit(self.url).port or 0

    @property
    def pid(self) -> int:
        """Process id."""
        return self._running().pid

    def tally(self, *, rows: bool = False) -> dict[str, Any]:
        """What the server counted.

        Args:
            rows: With the counts of every text, by the 12 hex digits that its answers start with.
        """
        found: dict[str, Any] = orjson.loads(self._ask("GET", "/_tally?rows=1" if rows else "/_tally"))
        return found

    def reset(self) -> None:
        """Count anew; outages wait for the next chat request."""
        self._ask("POST", "/_reset")

    def cpu_s(self) -> float:
        """CPU seconds of the process so far, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS

    def stop(self) -> None:
        """End the process; twice does no harm."""
        process, self._process = self._process, None
        if process is None:
            return
        with process:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()

    # ------------------------------------------------------------------------ inside

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise LocalServerError("the fake server does not run; use it inside `with FakeServer(...) as server:`")
        return self._process

    def _first_line(self) -> str:
        process = self._running()
        assert process.stdout is not None  # noqa: S101 - for the type checker
        deadline = time.monotonic() + self._start_timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if selector.select(max(0.0, deadline - time.monotonic())) and (line := process.stdout.readline()):
                return line.decode().strip()
        flags = " ".join(self._flags)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        found = f"exit code {process.returncode}" if process.returncode is not None else "no line"
        raise LocalServerError(f"the fake server with the flags {flags!r} did not start: {found}; see its stderr")

    def _ask(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path)
            return connection.getresponse().read()
        finally:
            connection.close()
