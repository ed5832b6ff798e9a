"""The one place that talks HTTP to the model server while a batch runs: aiohttp, one session, split timeouts."""

import asyncio
import dataclasses
import email.utils
import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from clients.batch.retry import is_retryable_status
from clients.errors import (
    EndpointError,
    LLMInferenceError,
    OverloadedError,
    RejectedError,
    TransientError,
    UnreachableError,
)
from clients.models import CERTIFICATE_MEND, authorization

#: vLLM closes an idle connection after 5 s; one closed just as it is used again would cost an attempt.
_KEEPALIVE_S = 4.0

#: A larger body is a broken server, not an answer, and must not end the run for want of memory.
_MAX_BODY_BYTES = 64 << 20

#: A server may ask for patience, but not for a day of it.
_MAX_RETRY_AFTER_S = 600.0

_MAX_MESSAGE = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Seconds after which a request is given up.

    Attributes:
        connect: For the TCP connection.
        total: For the whole answer. An answer of a thinking model may take twenty minutes.
    """

    connect: float = 10.0
    total: float = 1800.0


class ChatClient:
    """Sends chat completion requests to one endpoint. An async context manager.

    Args:
        base_url: The endpoint, such as `http://host:8000/v1`.
        api_key: Sent as a bearer token; None sends none.
        timeouts: See Timeouts.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, timeouts: Timeouts | None = None) -> None:
        self.base_url = base_url
        self._url = f"{base_url}/chat/completions"
        self._timeouts = timeouts or Timeouts()
        self._api_key = (api_key or "").strip()
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            **authorization(api_key),
        }
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=self._timeouts.total, sock_connect=self._timeouts.connect),
            headers=self._headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def complete(self, payload: bytes) -> Any:
        """Send one request and return the answer's JSON.

        Raises:
            RejectedError: the request can never work.
            OverloadedError: the server asks for less.
            UnreachableError: no connection could be made.
            TransientError: anything else that another attempt may heal.
            EndpointError: no request can work, whatever is in it: it redirects, or TLS fails.
        """
        if self._session is None:
            raise RuntimeError("ChatClient is used outside its context")
        try:
            async with self._session.post(self._url, data=payload, allow_redirects=False) as response:
                data = await _read(response)
        except TimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise UnreachableError(
                    "connect_timeout", f"no connection within {self._timeouts.connect:g} s"
                ) from error
            raise TransientError("timeout", f"no complete answer within {self._timeouts.total:g} s") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise EndpointError(f"{self.base_url}: TLS fails: {_one_line(str(error))}. {CERTIFICATE_MEND}") from error
        except aiohttp.ClientConnectorError as error:
            raise UnreachableError("unreachable", f"cannot connect: {error.os_error.strerror or error}") from error
        except (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError) as error:
            reason = _one_line(str(error)) or type(error).__name__
            raise TransientError("connection", f"the connection broke: {reason}") from error
        return self._decode(response, data)

    def _decode(self, response: aiohttp.ClientResponse, data: bytes) -> Any:
        if response.status != 200:
            raise self._status_error(response, data)
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise TransientError("bad_json", f"the answer is not JSON: {error.msg}") from error

    def _status_error(self, response: aiohttp.ClientResponse, data: bytes) -> LLMInferenceError:
        if 300 <= response.status < 400:
            target = _one_line(response.headers.get("Location", "nowhere"))
            return EndpointError(
                f"{self._url} redirects to {target} (HTTP {response.status}). Give the address that answers itself."
            )
        text = _one_line(_server_message(data)) or _one_line(response.reason or "") or "no reason given"
        if self._api_key:  # some servers repeat the key they refuse
            text = text.replace(self._api_key, "***")
        code, message = f"http_{response.status}", text[:_MAX_MESSAGE]
        if response.status in (429, 503):
            return OverloadedError(code, message, _retry_after_s(response.headers))
        return (TransientError if is_retryable_status(response.status) else RejectedError)(code, message)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, decompressed, unless it grows beyond all measure."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > _MAX_BODY_BYTES:
            raise TransientError("too_large", f"the answer is larger than {_MAX_BODY_BYTES >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


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


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, a number or a date by the server's own clock; None if it says nothing usable."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        until = _timestamp(value)
        if until is None:
            return None
        seconds = until - (_timestamp(headers.get("Date", "")) or time.time())
    return min(max(0.0, seconds), _MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None


def _timestamp(date: str) -> float | None:
    parsed = email.utils.parsedate_tz(date)
    try:
        return None if parsed is None else email.utils.mktime_tz(parsed)
    except (ValueError, OverflowError):
        return None
