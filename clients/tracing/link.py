"""One connection to Langfuse: what is posted there, and what its answers ask for."""

import base64
import contextlib
import email.utils
import enum
import http.client
import json
import math
import re
import socket
import ssl
import time
from typing import Any
from urllib.parse import quote, urlsplit

from clients.tracing.settings import TraceSettings

TRACES, SCORES, _PROJECTS = "/api/public/otel/v1/traces", "/api/public/scores", "/api/public/projects"

#: A 200 whose body says so: some spans were left out.
_REJECTED = re.compile(rb'"rejected(?:Spans)?"\s*:\s*"?[1-9]')

_MAX_ANSWER, _MAX_RETRY_AFTER_S = 1 << 20, 600.0


class Wants(enum.Enum):
    """What an answer asks for."""

    NOTHING = "accepted"
    AGAIN = "again"  # later
    LESS = "less"  # something in it is too large
    OTHERS = "others"  # something in it is malformed
    PEACE = "peace"  # nothing that is sent to this address with these keys can be accepted


class Reply:
    """What came of a request.

    Attributes:
        status: HTTP status; 0 when no answer came, and nobody knows whether it was worked on.
        reason: For people, on one line.
        retry_after_s: What the server asks us to wait, or None.
        wants: See Wants.
        body: Of the answer.
    """

    def __init__(self, status: int, reason: str, *, body: bytes = b"", retry_after_s: float | None = None) -> None:
        self.status, self.reason, self.body, self.retry_after_s = status, reason, body, retry_after_s
        self.wants = _wants(status, body)


class Link:
    """A connection that is kept, and opened anew when it was closed. For one thread, but for `cut`.

    Args:
        settings: Where to, and with which keys.
    """

    def __init__(self, settings: TraceSettings) -> None:
        self._settings = settings
        self._parts = urlsplit(settings.base_url)
        keys = base64.b64encode(f"{settings.public_key}:{settings.secret_key}".encode()).decode()
        self._headers = {
            "Authorization": f"Basic {keys}",
            "User-Agent": "kubeflow-llm-inference",
            "Accept": "application/json",
            "x-langfuse-public-key": settings.public_key,
            "x-langfuse-ingestion-version": "4",
        }
        self._connection: http.client.HTTPConnection | None = None
        self._is_cut = False

    def post(self, path: str, body: bytes, *, timeout_s: float | None = None) -> Reply:
        """Post gzipped protobuf (TRACES) or JSON (SCORES).

        Args:
            path: TRACES or SCORES.
            body: Gzipped protobuf for TRACES, JSON for SCORES.
            timeout_s: Seconds; None for the settings'.
        """
        kind = {"Content-Type": "application/json"}
        if path == TRACES:
            kind = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}
        return self._ask("POST", path, body, kind, timeout_s or self._settings.timeout_s)

    def project_id(self, timeout_s: float = 5.0) -> str | None:
        """The project that the keys belong to; None when it cannot be learned now."""
        reply = self._ask("GET", _PROJECTS, None, {}, timeout_s)
        with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
            found: Any = json.loads(reply.body)
            return quote(str(found["data"][0]["id"]), safe="")
        return None

    def cut(self) -> None:
        """End it for good, from any thread: a request under way fails at once."""
        self._is_cut = True
        connection = self._connection
        sock = None if connection is None else connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float) -> Reply:
        was_open = self._connection is not None
        try:
            return self._exchange(method, path, body, {**self._headers, **headers}, timeout_s)
        except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected) as error:
            self.close()
            if was_open and not self._is_cut:  # closed by the server while nothing was said
                return self._ask(method, path, body, headers, timeout_s)
            return Reply(0, _said(error))
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            self.close()
            return Reply(0, _said(error))

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float) -> Reply:
        if self._is_cut:
            raise OSError("the connection is cut")
        if self._connection is None:
            self._connection = self._new(timeout_s)
        connection = self._connection
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        connection.request(method, f"{self._parts.path}{path}", body=body, headers=headers)
        with connection.getresponse() as response:
            data = response.read(_MAX_ANSWER)
            whole = response.isclosed()
            reply = Reply(
                response.status,
                _told(response, data, self._settings.secret_key),
                body=data,
                retry_after_s=_retry_after_s(response),
            )
        if not whole:
            self.close()
        return reply

    def _new(self, timeout_s: float) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=timeout_s)


def _wants(status: int, body: bytes) -> Wants:
    if 200 <= status < 300:
        return Wants.LESS if _REJECTED.search(body) else Wants.NOTHING
    if status in (0, 408, 425, 429) or status >= 500:
        return Wants.AGAIN
    if status == 413:
        return Wants.LESS
    return Wants.OTHERS if status in (400, 422) else Wants.PEACE


def _retry_after_s(response: http.client.HTTPResponse) -> float | None:
    """Seconds of a Retry-After header, a number or a date; None if it says nothing usable."""
    value = response.getheader("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        parsed = email.utils.parsedate_tz(value)
        if parsed is None:
            return None
        seconds = email.utils.mktime_tz(parsed) - time.time()
    return min(max(0.0, seconds), _MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None


def _told(response: http.client.HTTPResponse, data: bytes, secret: str) -> str:
    words = data[:300].decode("utf-8", "replace")
    if 300 <= response.status < 400:
        words = f"redirects to {response.getheader('Location', 'nowhere')}"
    return " ".join(f"HTTP {response.status}: {words}".split()).replace(secret, "***")[:200]


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
