"""Faults that a test asks the server to play on the next requests that match."""

import re
import threading
from dataclasses import dataclass


@dataclass(kw_only=True)
class Fault:
    """One fault, played `times` times.

    Attributes:
        method: HTTP method, or "" for any.
        path: Pattern searched in the path with its query.
        status: HTTP status to answer; 0 answers as usual after `hang_s`.
        retry_after_s: Sent as Retry-After.
        message: Replaces the usual words.
        hang_s: Seconds to wait before anything else.
        reset: Cut the connection instead of answering.
        after: Do what was asked first, and lose only the answer.
    """

    times: int = 1
    method: str = ""
    path: str = ""
    status: int = 0
    retry_after_s: int | None = None
    message: str = ""
    hang_s: float = 0.0
    reset: bool = False
    after: bool = False

    def fits(self, method: str, target: str) -> bool:
        return self.times > 0 and self.method in ("", method) and re.search(self.path, target) is not None


class Faults:
    """The faults still to be played, in order."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._waiting.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    def take(self, method: str, target: str) -> Fault | None:
        """The fault for a request, used up by one."""
        with self._lock:
            found = next((fault for fault in self._waiting if fault.fits(method, target)), None)
            if found is not None:
                found.times -= 1
            return found
