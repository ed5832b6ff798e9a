"""The one place that talks HTTP to the model server while a batch runs: aiohttp, one session, split timeouts."""

import asyncio
import dataclasses
import email.utils
import time
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from clients.batch.retry import is_retryable_status
from clients.errors import ChatError, OverloadedError, RejectedError, TransientError, UnreachableError

#: vLLM closes an idle connection after 5 s; one closed just as it is used again would cost an attempt.
_KEEPALIVE_S = 4.0


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
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
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

    async def complete(self, body: dict[str, Any]) -> Any:
        """Send one request and return the answer's JSON.

        Raises:
            RejectedError: the request can never work.
            OverloadedError: the server asks for less.
            UnreachableError: no connection could be made.
            TransientError: anything else that another attempt may heal.
        """
        if self._session is None:
            raise RuntimeError("ChatClient is used outside its context")
        try:
            async with self._session.post(self._url, data=orjson.dumps(body), allow_redirects=False) as response:
                data = await response.read()
        except TimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise UnreachableError(
                    "connect_timeout", f"no connection within {self._timeouts.connect:g} s"
                ) from error
            raise TransientError("timeout", f"no complete answer within {self._timeouts.total:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise UnreachableError("unreachable", f"cannot connect: {error.os_error.strerror or error}") from error
        except (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError) as error:
            raise TransientError("connection", f"the connection broke: {str(error) or type(error).__name__}") from error
        return _decode(response, data)


def _decode(response: aiohttp.ClientResponse, data: bytes) -> Any:
    if response.status != 200:
        raise _status_error(response, data)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise TransientError("bad_json", f"the answer is not JSON: {error.msg}") from error


def _status_error(response: aiohttp.ClientResponse, data: bytes) -> ChatError:
    code, message = f"http_{response.status}", _server_message(data) or response.reason or "no reason given"
    if response.status in (429, 503):
        return OverloadedError(code, message, _retry_after_s(response.headers.get("Retry-After")))
    return (TransientError if is_retryable_status(response.status) else RejectedError)(code, message)


def _server_message(data: bytes) -> str:
    """The reason in an error body: OpenAI's `error.message`, FastAPI's `detail`, else the text, clipped."""
    try:
        found: Any = orjson.loads(data)
    except orjson.JSONDecodeError:
        return " ".join(data[:2000].decode("utf-8", "replace").split())[:500]
    if isinstance(found, dict):
        found = found.get("error", found.get("detail", found.get("message", found)))
    if isinstance(found, dict):
        found = found.get("message", found)
    return (found if isinstance(found, str) else orjson.dumps(found).decode())[:500]


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, given as a number or as a date; None when there is none or it is unreadable."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        parsed = email.utils.parsedate_tz(value)
    return None if parsed is None else max(0.0, email.utils.mktime_tz(parsed) - time.time())
