"""SIGTERM and SIGINT end a run in good order, wherever it is: the one place that catches them."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from clients.errors import LLMInferenceError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRunError(LLMInferenceError):
    """SIGTERM or SIGINT ended the run; what was answered is committed.

    Attributes:
        exit_code: 128 + the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__("interrupted; finished rows are kept, the same command goes on from there")
        self.exit_code = 128 + signum


class _SignalledError(BaseException):
    """Internal: no `except Exception` on the way, such as logging's own, may swallow a signal."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal end the block.

    Raises:
        InterruptedRunError: a signal came.
    """

    def end(signum: int) -> None:
        raise _SignalledError(signum)

    try:
        with _on_signal(end):
            yield
    except _SignalledError as error:
        raise InterruptedRunError(error.args[0]) from None


@contextlib.contextmanager
def stopping(stop: Callable[[], object]) -> Iterator[None]:
    """Let a signal call `stop`, which has the block end in its own good time.

    Raises:
        InterruptedRunError: a signal came, and the block ended without an error or with its own cancellation.
    """
    received: list[int] = []

    def begin(signum: int) -> None:
        received.append(signum)
        stop()

    try:
        with _on_signal(begin):
            yield
    except asyncio.CancelledError:
        if not received:
            raise
    if received:
        raise InterruptedRunError(received[0])


@contextlib.contextmanager
def _on_signal(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of the first signal that comes within the block.

    From then on the process ignores both signals for good: it is on its way out, and what it still writes must not be
    cut off by an impatient second one. In a thread other than the main one, which never gets signals, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, _: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        act(signum)

    before = {signum: signal.signal(signum, handle) for signum in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            if signal.getsignal(signum) is handle:  # else a signal came, here or in a block within
                signal.signal(signum, handler)
