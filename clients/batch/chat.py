"""What a chat completion request is on the wire, and what each reply and each failure of one means."""

import dataclasses
import email.utils
import math
import ssl
import time
import urllib.parse
import weakref
from typing import Any

import orjson

from clients.batch import stream
from clients.batch.connection import Connection, Reply, connect
from clients.batch.retry import is_retryable_status
from clients.errors import (
    EndpointError,
    LLMInferenceError,
    OverloadedError,
    RejectedError,
    TransientError,
)
from clients.models import CERTIFICATE_MEND, authorization

#: A server may ask for patience, but not for a day of it.
_MAX_RETRY_AFTER_S = 600.0

_MAX_MESSAGE = 500

_PORTS = {"http": 80, "https": 443}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Seconds after which a request is given up.

    Attributes:
        connect: For TCP and TLS.
        first_byte: Until the first byte of the answer, which comes only when the answer is complete.
        idle: Between two parts of an answer that has begun.
        total: For the whole answer. An answer of a thinking model may take twenty minutes.
    """

    connect: float = 10.0
    first_byte: float = 1800.0
    idle: float = 15.0
    total: float = 1800.0


class ChatEndpoint:
    """One base URL: how requests to it are written and its replies are read.

    Args:
        base_url: Such as `http://host:8000/v1`.
        api_key: Sent as a bearer token; None sends none.
        timeouts: See Timeouts.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, timeouts: Timeouts | None = None) -> None:
        self.base_url = base_url
        self.timeouts = timeouts or Timeouts()
        self._url = f"{base_url}/chat/completions"
        self._api_key = (api_key or "").strip()
        parts = urllib.parse.urlsplit(base_url)
        self.host = parts.hostname or ""
        self.port = parts.port or _PORTS.get(parts.scheme, 80)
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.root = parts.path.removesuffix("/v1").rstrip("/")
        headers = {
            "Host": parts.netloc.rpartition("@")[2],
            "Accept": "application/json",
            "User-Agent": "kubeflow-llm-inference",
            **authorization(api_key),
        }
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._post = (
            f"POST {urllib.parse.urlsplit(self._url).path} HTTP/1.1\r\n{self._head}"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode("latin-1", "replace")

    def request(self, payload: bytes) -> bytes:
        """The bytes of a chat completion request."""
        return b"%b%d\r\n\r\n%b" % (self._post, len(payload), payload)

    def get(self, path: str) -> bytes:
        """The bytes of a GET beside the API, such as `/metrics`."""
        return f"GET {self.root}{path} HTTP/1.1\r\n{self._head}\r\n".encode("latin-1", "replace")

    async def connect(self, address: str) -> Connection:
        """Open a connection to one of the endpoint's addresses.

        Raises:
            UnreachableError: no connection could be made.
            EndpointError: TLS fails in a way that no further try heals.
        """
        try:
            return await connect(
                address,
                self.port,
                tls=self.tls,
                server_name=self.host,
                timeout_s=self.timeouts.connect,
                made=self._connections.add,
            )
        except ssl.SSLCertVerificationError as error:
            raise EndpointError(f"{self.base_url}: TLS fails: {_one_line(str(error))}. {CERTIFICATE_MEND}") from error

    def close(self) -> None:
        """Cut every connection that is still open."""
        for connection in list(self._connections):
            connection.close()

    def answer(self, reply: Reply) -> Any:
        """The JSON of a chat completion.

        Raises:
            RejectedError: the request can never work.
            OverloadedError: the server asks for less.
            TransientError: anything else that another attempt may heal.
            EndpointError: the endpoint redirects.
        """
        if reply.status != 200:
            raise self._status_error(reply)
        if reply.headers.get(b"content-type", b"").startswith(stream.CONTENT_TYPE):
            return stream.assembled(reply.body)
        try:
            return orjson.loads(reply.body)
        except orjson.JSONDecodeError as error:
            raise TransientError("bad_json", f"the answer is not JSON: {error.msg}") from error

    def _status_error(self, reply: Reply) -> LLMInferenceError:
        if 300 <= reply.status < 400:
            target = _one_line(_header(reply, b"location") or "nowhere")
            return EndpointError(
                f"{self._url} redirects to {target} (HTTP {reply.status}). Give the address that answers itself."
            )
        text = _one_line(_server_message(reply.body)) or _one_line(reply.reason) or "no reason given"
        if self._api_key:  # some servers repeat the key they refuse
            text = text.replace(self._api_key, "***")
        code, message = f"http_{reply.status}", text[:_MAX_MESSAGE]
        if reply.status in (429, 503):
            return OverloadedError(code, message, _retry_after_s(reply))
        return (TransientError if is_retryable_status(reply.status) else RejectedError)(code, message)


def _server_message(data: bytes) -> str:
    """The reason in an error body: OpenAI's `error.message`, FastAPI's `detail`, else the text."""
    try:
        found: Any = orjson.loads(data)
    except orjson.JSONDecodeError:
        return data[:4096].decode("utf-8", "replace")
    if isinstance(found, dict):
        found = found.get("error", found.get("detail", found.get("message", found)))
    if isinstance(found, dict):
        found = found.get("message", found)
    return found if isinstance(found, str) else data[:4096].decode("utf-8", "replace")


def _one_line(text: str) -> str:
    """Foreign text as one line that any file can hold: headers may bring bytes that are no UTF-8."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _header(reply: Reply, name: bytes) -> str:
    return reply.headers.get(name, b"").decode("utf-8", "replace")


def _retry_after_s(reply: Reply) -> float | None:
    """Seconds of a Retry-After header, a number or a date by the server's own clock; None if it says nothing usable."""
    value = _header(reply, b"retry-after")
    try:
        seconds = float(value)
    except ValueError:
        until = _timestamp(value)
        if until is None:
            return None
        seconds = until - (_timestamp(_header(reply, b"date")) or time.time())
    return min(max(0.0, seconds), _MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None


def _timestamp(date: str) -> float | None:
    parsed = email.utils.parsedate_tz(date)
    try:
        return None if parsed is None else email.utils.mktime_tz(parsed)
    except (ValueError, OverflowError):
        return None
