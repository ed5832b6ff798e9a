"""A file behind a web address, read from any place on: only what is asked for crosses the network."""

import contextlib
import email.utils
import http.client
import io
import ipaddress
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any, BinaryIO, cast
from urllib.parse import quote, urlsplit

from clients.errors import PromptsError
from clients.storage.addresses import shown
from clients.storage.seekable import SeekableFile

#: Seconds before each further try: a server that is restarted, or says 503, is back by then.
_PATIENCE_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)

#: Seconds without a byte. With every try in vain a server that says nothing costs about two minutes.
_TIMEOUT_S = 15.0

#: What may stand in an address as it is; anything else, such as a blank, is written as `%20` and the like.
_PLAIN = "%/:=&?~#+!$,;'@()*[]"

#: What is read past instead of asking anew.
_SKIP_BYTES = 256 << 10

#: Hosts in a cluster or on this machine may be asked without TLS.
_INNER = (".svc", ".local", ".internal", ".localhost")

_RETRIED = (408, 425, 429, 500, 502, 503, 504)


def open_web(address: str, *, buffer_bytes: int) -> BinaryIO:
    """Open a file behind a web address; a server that knows no ranges is asked once, for all of it.

    Raises:
        PromptsError: it cannot be read, or would cross a public network without TLS.
    """
    _refuse_open_network(address)
    file = _WebFile(address)
    if file.has_ranges:
        return cast(BinaryIO, io.BufferedReader(file, buffer_size=buffer_bytes))
    return file.whole()


class _WebFile(SeekableFile):
    def __init__(self, address: str) -> None:
        self._address = address
        self._from = 0  # where the open answer is, while `_at` is where the reader is
        self._answer: Any = self._ask(0)
        super().__init__(_size(self._answer) if self._answer.status == 206 else 0)
        self.has_ranges = self._size > 0

    def readinto(self, buffer: Any) -> int:
        """Read on; a connection that breaks is made anew where it broke."""
        if self._at >= self._size:
            return 0
        for delay_s in (*_PATIENCE_S, None):
            try:
                self._go()
                data = self._answer.read(min(len(buffer), self._size - self._at))
                if data:
                    break
                raise http.client.IncompleteRead(b"")
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                if delay_s is None:
                    raise _unreadable(self._address, error) from error
                time.sleep(delay_s)
        buffer[: len(data)] = data
        self._at += len(data)
        self._from = self._at
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def whole(self) -> BinaryIO:
        """All of it, in a file that is gone when it is closed."""
        for delay_s in (*_PATIENCE_S, None):
            scratch = tempfile.TemporaryFile(prefix="kllm-prompts-")  # noqa: SIM115  (the caller closes it)
            try:
                answer = self._answer = self._answer or self._ask(0)
                shutil.copyfileobj(answer, scratch, 1 << 20)
                wanted = answer.headers.get("Content-Length")
                if wanted is not None and scratch.tell() != int(wanted):
                    raise http.client.IncompleteRead(b"")
            except (OSError, http.client.HTTPException) as error:
                scratch.close()
                self._drop()
                if delay_s is None:
                    raise _unreadable(self._address, error) from error
                time.sleep(delay_s)
            else:
                self._drop()
                scratch.seek(0)
                return cast(BinaryIO, scratch)
        raise AssertionError("the last try returns or raises")

    def _go(self) -> None:
        """Have an answer that goes on where the reader is."""
        ahead = self._at - self._from
        if self._answer is not None and 0 < ahead <= _SKIP_BYTES:
            self._from += len(self._answer.read(ahead))
        if self._answer is None or self._from != self._at:
            self._drop()
            self._answer, self._from = self._ask(self._at), self._at
            if self._answer.status != 206 or _size(self._answer) != self._size:
                self._drop()
                raise PromptsError(f"{shown(self._address)} is served otherwise than before. Run it again.")

    def _drop(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            with contextlib.suppress(OSError):
                answer.close()

    def _ask(self, start: int) -> Any:
        for delay_s in (*_PATIENCE_S, None):
            address = quote(self._address, safe=_PLAIN)
            request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"})  # noqa: S310
            try:
                answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310  (http and https only)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416 and start == 0:  # an empty file has no first byte
                    return _Empty()
                if error.code not in _RETRIED or delay_s is None:
                    raise _refused(self._address, error.code) from error
                time.sleep(max(delay_s, _wished_s(error.headers)))
            except (OSError, http.client.HTTPException) as error:
                if delay_s is None or isinstance(getattr(error, "reason", None), ValueError):
                    raise _unreadable(self._address, error) from error
                time.sleep(delay_s)
            else:
                _refuse_open_network(answer.geturl())  # where the server has sent us on to
                return answer
        raise AssertionError("the last try returns or raises")


class _Empty(io.BytesIO):
    status = 200
    headers: dict[str, str] = {}  # noqa: RUF012  (nobody writes it)


def _size(answer: Any) -> int:
    total = str(answer.headers.get("Content-Range", "")).rpartition("/")[2]
    return int(total) if total.isdecimal() else 0


def _wished_s(headers: Any) -> float:
    """Seconds the server asks us to wait, at most a minute."""
    wish = headers.get("Retry-After") or "0"
    if wish.isdecimal():
        return min(60.0, float(wish))
    moment = email.utils.parsedate_tz(wish)
    return 0.0 if moment is None else min(60.0, max(0.0, email.utils.mktime_tz(moment) - time.time()))


def _refused(address: str, status: int) -> PromptsError:
    mend = "Check the address."
    if status in (401, 403):
        mend = "It needs a signed address that has not expired, or prompts in an object store with a Secret."
    return PromptsError(f"cannot read {shown(address)}: the server says {status}. {mend}")


def _unreadable(address: str, error: Exception) -> PromptsError:
    found = shown(" ".join(str(getattr(error, "reason", None) or error).split())) or type(error).__name__
    return PromptsError(f"cannot read {shown(address)}: {found}. Check the address and run the same command again.")


def _refuse_open_network(address: str) -> None:
    parts = urlsplit(address)
    host = parts.hostname or ""
    if not host:
        raise PromptsError(f"{shown(address)} names no host. Write something like https://HOST/prompts.jsonl.")
    if parts.scheme == "https" or "." not in host or host.endswith(_INNER):
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_private:
            return
    raise PromptsError(f"{shown(address)} would be read without TLS. Write https://, or use an object store.")
