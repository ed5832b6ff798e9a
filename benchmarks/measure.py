"""Run a client as a process of its own, and what that took. Linux only: peak memory and ticks are read as there."""

import contextlib
import dataclasses
import functools
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from benchmarks.inputs import write_prompts
from clients.fake_vllm.process import FakeServer

ROOT = Path(__file__).resolve().parents[1]
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

#: Seconds between two looks at a process that runs.
_LOOK_S = 0.1


class BenchmarkError(Exception):
    """Something could not be measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Client:
    """A command that answers a file of prompts.

    Attributes:
        name: As in the tables.
        module: Run with `python -m`.
        file: What it writes in its output folder; "" for a command that takes the folder itself.
        flags: Beyond prompts, address and output.
        environment: Variables beyond ours, and their values.
    """

    name: str
    module: str
    file: str = ""
    flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def told(self, *flags: str) -> "Client":
        """The same with more flags."""
        return dataclasses.replace(self, flags=(*self.flags, *flags))

    def command(self, prompts: Path, url: str, folder: Path) -> list[str]:
        """The whole command line."""
        place = folder / self.file if self.file else folder
        named = ["--prompts", str(prompts), "--url", url, "--output", str(place)]
        return [sys.executable, "-m", self.module, *named, *self.flags]

    def results(self, folder: Path) -> Path:
        """The file with the answers."""
        return folder / (self.file or "results.parquet")


OURS = Client(name="ours", module="clients.batch")
OPENAI_LOOP = Client(name="openai_loop", module="benchmarks.clients.openai_loop", file="answers.jsonl")
OPENAI_POOL = Client(name="openai_pool", module="benchmarks.clients.openai_pool", file="answers.jsonl")
AIOHTTP_POOL = Client(name="aiohttp_pool", module="benchmarks.clients.aiohttp_pool", file="answers.jsonl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """What a finished process took.

    Attributes:
        exit_code: Negative for a signal.
        cpu_s: User and system, threads and waited-for children included.
        peak_mb: Largest resident set, in 10^6 bytes.
    """

    exit_code: int
    cpu_s: float
    peak_mb: float


def _environment() -> dict[str, str]:
    """With bytecode, as whoever installs a package has it; else our modules alone would be compiled at each start."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class ClientProcess:
    """A running client; killed at the end of `with` if it still runs.

    Args:
        command: Its command line.
        log: File for what it prints.
        environment: Variables beyond ours.
    """

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        self._name = command[2]
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**_environment(), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._pidfd = os.pidfd_open(self._process.pid)
        self._peak_seen_mb = 0.0
        self._usage: Usage | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._usage is None:
            self.kill()
        os.close(self._pidfd)

    def ended(self, within_s: float = 0.0) -> bool:
        """Whether it has ended, waiting for that so long at most."""
        return self._usage is not None or bool(select.select([self._pidfd], [], [], within_s)[0])

    def cpu_s(self) -> float:
        """CPU seconds so far, user and system, in ticks of 10 ms."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS

    def wait(self, timeout_s: float) -> Usage:
        """Wait for its end.

        Raises:
            BenchmarkError: it took too long, and was killed.
        """
        deadline = time.monotonic() + timeout_s
        while not self.ended(_LOOK_S) and time.monotonic() < deadline:
            self._look_at_peak()
        if not self.ended():
            self.kill()
            raise BenchmarkError(f"{self._name} was not done after {timeout_s:.0f} s. It said: {self._last_words()}")
        return self._reap()

    def wait_for_success(self, timeout_s: float) -> Usage:
        """Wait for its end.

        Raises:
            BenchmarkError: it took too long or failed.
        """
        usage = self.wait(timeout_s)
        if usage.exit_code:
            raise BenchmarkError(f"{self._name} ended with {usage.exit_code}. It said: {self._last_words()}")
        return usage

    def kill(self) -> Usage:
        """SIGKILL if it still runs, and wait."""
        if self._usage is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        return self._reap()

    # ------------------------------------------------------------------------ inside

    def _look_at_peak(self) -> None:
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii", errors="replace")
        if (found := re.search(r"VmHWM:\s+(\d+) kB", status)) is not None:
            self._peak_seen_mb = int(found[1]) * 1024 / 1e6

    def _reap(self) -> Usage:
        if self._usage is None:
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            peak_mb = usage.ru_maxrss * 1024 / 1e6
            if self._peak_seen_mb and usage.ru_maxrss <= 1.01 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
                peak_mb = self._peak_seen_mb  # the system counts from the fork on: that was our own size
            self._usage = Usage(
                exit_code=self._process.returncode,
                cpu_s=usage.ru_utime + usage.ru_stime,
                peak_mb=peak_mb,
            )
        return self._usage

    def _last_words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a client.

    Attributes:
        usage: What it took.
        tally: What the server counted.
        folder: Where its output lies.
        results: The file with the answers.
    """

    usage: Usage
    tally: dict[str, Any]
    folder: Path
    results: Path

    @functools.cached_property
    def answered(self) -> int:
        """Rows that have their own answer in the results."""
        return rows_answered(self.results)


class Bench:
    """Where a benchmark runs.

    Args:
        folder: For inputs and outputs; emptied by whoever made it.
        quick: Whether the small version is wanted.
    """

    def __init__(self, folder: Path, *, quick: bool = False) -> None:
        self.quick = quick
        self._folder = folder
        self._runs = 0

    def prompts(self, rows: int) -> Path:
        """A file of so many prompts."""
        path = self._folder / f"prompts-{rows}.jsonl"
        if not path.exists():
            write_prompts(path, rows)
        return path

    def new_folder(self) -> Path:
        """An empty folder for the output of a run."""
        self._runs += 1
        folder = self._folder / f"run-{self._runs}"
        folder.mkdir()
        return folder

    def start(self, client: Client, rows: int, server: FakeServer, folder: Path) -> ClientProcess:
        """Start a client."""
        command = client.command(self.prompts(rows), server.url, folder)
        return ClientProcess(command, folder.with_suffix(".log"), dict(client.environment))

    def run(self, client: Client, rows: int, server: FakeServer, *, timeout_s: float) -> Run:
        """Run a client to its end, with the server counting anew.

        Raises:
            BenchmarkError: it took too long or failed.
        """
        folder = self.new_folder()
        self.prompts(rows)
        server.reset()
        with self.start(client, rows, server, folder) as process:
            usage = process.wait_for_success(timeout_s)
        return Run(usage=usage, tally=server.tally(), folder=folder, results=client.results(folder))

    def discard(self, done: Run) -> None:
        """Remove what a run wrote."""
        shutil.rmtree(done.folder)


def wait_until_idle(server: FakeServer, *, timeout_s: float = 10.0) -> dict[str, Any]:
    """Wait until the server works on nothing; returns its tally."""
    deadline = time.monotonic() + timeout_s
    while (tally := server.tally())["in_flight"] and time.monotonic() < deadline:
        time.sleep(0.02)
    return tally


def rows_answered(path: Path) -> int:
    """How many rows have their own answer in a file or a folder, read by a process of its own.

    Raises:
        BenchmarkError: it cannot be read.
    """
    command = [sys.executable, "-m", "benchmarks.reading", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=False)
    if done.returncode:
        raise BenchmarkError(f"{path.name} cannot be read: {done.stderr.decode()[-2000:]}")
    return int(orjson.loads(done.stdout)["answered"])
