"""The embedded model server: llama.cpp in a child process on loopback, for runs without an endpoint of their own."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from clients.errors import LocalServerError, SettingsError
from clients.local_cache import USE_URL
from clients.local_model import LocalModel, ensure_model, server_folder

__all__ = ["LocalModel", "LocalServer", "ensure_model"]

_START_S = 60.0  # the embedded model takes half a second; a laptop under load, or cold, takes its time
_DISK_BYTES_PER_S = 50_000_000  # a slow disk: what a person's own large model is granted on top
_STOP_S = 2.0  # after SIGTERM, then again after SIGKILL; the kernel needs milliseconds
_POLL_S = 0.05

#: libgomp reads these once, when it is loaded. Spinning threads on a busy two-core machine: 1.4 tokens/s, not 48.
_OPENMP = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


class LocalServer:
    """A context manager around one server process, which never outlives this one, even if this one gets SIGKILL.

    Listens on 127.0.0.1 only, at a port the kernel picks. Has a session of its own, so a terminal's Ctrl-C reaches the
    run alone, which can finish what is in flight before it stops the server. Unlike vLLM it answers any `model` name
    with 200, ignores `tools`, and queues without bound.

    Args:
        model: What `ensure_model` returned.
        slots: Requests worked on at once, at least 1; more wait in the server's queue.
        context_tokens: Prompt and answer of one request together, at least 1; a longer prompt gets a 400.
        log: File for the server's own warnings and errors, without prompts or answers; overwritten at each start.

    Attributes:
        base_url: `http://127.0.0.1:PORT/v1` while the server runs, else "".

    Raises:
        SettingsError: `slots` or `context_tokens` is below 1.
        LocalServerError: On entering: the server did not start, with the cause from its log.
    """

    def __init__(self, model: LocalModel, *, slots: int = 4, context_tokens: int = 2048, log: Path) -> None:
        for name, value in (("slots", slots), ("context_tokens", context_tokens)):
            if value < 1:
                raise SettingsError(f"The embedded server needs {name} of at least 1, got {value}.")
        self.base_url = ""
        self._model = model
        self._slots = slots
        self._context_tokens = context_tokens
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.stop)  # a Ctrl-C while the model loads is one, too
            try:
                address = self._started()
            except OSError as error:
                raise LocalServerError(f"Cannot start the embedded server: {error}. Mend that, {USE_URL}.") from error
            on_failure.pop_all()
        self.base_url = f"{address}/v1"
        return self

    def _started(self) -> str:
        """Start it, and return its address once it serves."""
        deadline = time.monotonic() + _START_S + self._model.gguf.stat().st_size / _DISK_BYTES_PER_S
        process = self._process = self._spawn()
        address = self._read_address(process, deadline)
        self._wait_until_healthy(process, int(address.rpartition(":")[2]), deadline)
        return address

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the server at once, with whatever is in flight; may be called again. Takes 4 s at the very most."""
        process, self._process, self.base_url = self._process, None, ""
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):  # closing its input alone would already end it
            if pipe is not None:
                pipe.close()
        for end in (process.terminate, process.kill):
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
                return

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = {
            "package": str(server_folder()),
            "parent": os.getpid(),
            "gguf": str(self._model.gguf),
            "alias": self._model.alias,
            "slots": self._slots,
            "context_tokens": self._context_tokens,
            "threads": max(1, _cores() // 2),
        }
        # By path and isolated: neither the current folder nor PYTHONPATH can put another module in its way.
        program = Path(__file__).with_name("local_server_process.py")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-IB", str(program), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **_OPENMP},
            )

    def _read_address(self, process: subprocess.Popen[bytes], deadline: float) -> str:
        """The URL that the child writes once the model is loaded; nothing but end of file means that it died."""
        assert process.stdout is not None  # noqa: S101 - tells mypy what PIPE above means
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise self._too_slow()
        address = process.stdout.readline().decode().strip()
        if not address:
            raise self._died(process)
        return address

    def _wait_until_healthy(self, process: subprocess.Popen[bytes], port: int, deadline: float) -> None:
        from http.client import HTTPConnection, HTTPException  # knows no proxy; late, since importing it takes a while

        while time.monotonic() < deadline:
            connection = HTTPConnection("127.0.0.1", port, timeout=2.0)
            with contextlib.closing(connection), contextlib.suppress(OSError, HTTPException):
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
                raise self._died(process)
        raise self._too_slow()

    def _too_slow(self) -> LocalServerError:
        return LocalServerError(
            f"The embedded server did not load {self._model.gguf} in time. Its last word: {self._last_word()}. "
            f"Full log: {self._log}. Use a smaller model, {USE_URL}."
        )

    def _died(self, process: subprocess.Popen[bytes]) -> LocalServerError:
        try:
            code = process.wait(_STOP_S)
        except subprocess.TimeoutExpired:  # it closed its output but lives on
            return self._too_slow()
        mend = "Check the model file"
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name
        if code == -signal.SIGILL:
            how += ": this CPU lacks an instruction that it needs"
            mend = "Use a newer machine"
        elif code == -signal.SIGKILL:
            how += ": often the system's answer to a lack of memory"
            mend = "Free memory or use a smaller model"
        return LocalServerError(
            f"The embedded server died while starting ({how}). Its last word: {self._last_word()}. "
            f"Full log: {self._log}. {mend}, {USE_URL}."
        )

    def _last_word(self) -> str:
        """The first line that llama.cpp marks as an error (those after it follow from it), else the last line."""
        lines = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        errors = [line.partition(" E ")[2] for line in lines if " E " in line]
        return " ".join([*errors[:1], *lines[-1:], "nothing"][0].split())[:300]


def _cores() -> int:
    """Cores this process may use: fewer than the machine has under taskset or a container's cpuset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
