"""Requests to a Kubeflow Pipelines API: JSON in and out, with what a person has to mend in one line.

Kubeflow's own client is not used. It takes the HTML of a login page for an answer whose every field is None, waits
without a limit, prints and warns, keeps settings in the home folder, and refuses state words that it does not know.
What is sent is the same; a test sends both to one server and compares.
"""

import json
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from clients.errors import LLMInferenceError, SettingsError
from pipelines.settings import Access

_TIMEOUT = urllib3.Timeout(connect=10, read=60)

#: Nothing is tried again and no redirect followed in there: both are decided here.
_ONCE = urllib3.Retry(total=0, redirect=0, raise_on_redirect=False, raise_on_status=False)

#: Answers after which the same request may work a moment later.
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})

#: Pauses before a request that failed so is sent again, in seconds.
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)

#: A log is read up to here; what a step says of itself is far shorter.
_MAX_TEXT_BYTES = 16 << 20


class RemoteError(LLMInferenceError):
    """The Kubeflow Pipelines API refused a request, or did not answer.

    Attributes:
        status: HTTP status, or 0 when no answer came.
        transient: Whether the same request may work later.
    """

    def __init__(self, message: str, *, status: int = 0, transient: bool = False) -> None:
        super().__init__(message)
        self.status, self.transient = status, transient


class AccessError(RemoteError, SettingsError):
    """The API cannot be used with what was given: address, login, token, certificate, namespace."""

    exit_code = 2


class Api:
    """One API server, as one person sees it.

    Args:
        access: Address and credentials.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self._pool = urllib3.PoolManager(retries=_ONCE, timeout=_TIMEOUT, ssl_context=_certificates(access))

    def get(self, path: str, query: Mapping[str, Any] | None = None, *, patient: bool = True) -> dict[str, Any]:
        """Read an object or a list.

        Args:
            path: Below the host, such as /apis/v2beta1/runs.
            query: Parameters of the address; empty ones are left out.
            patient: Whether to try again a few times after a passing fault.

        Raises:
            RemoteError: the server refused or did not answer.
        """
        pauses = _PAUSES_S if patient else ()
        return self._repeated("GET", path, query, None, pauses)

    def post(self, path: str, body: Any = None) -> dict[str, Any]:
        """Create something, or ask for an action. Sent once: only the caller knows whether it may be repeated.

        Raises:
            RemoteError: the server refused or did not answer; then it may have done it all the same.
        """
        return self._once("POST", path, None, b"" if body is None else json.dumps(body).encode())

    def act(self, path: str) -> None:
        """Ask for an action that may be repeated, such as pausing a schedule.

        Raises:
            RemoteError: the server refused or did not answer.
        """
        self._repeated("POST", path, None, b"", _PAUSES_S)

    def delete(self, path: str) -> None:
        """Delete an object; it may be gone already.

        Raises:
            RemoteError: the server refused or did not answer.
        """
        try:
            self._repeated("DELETE", path, None, None, _PAUSES_S)
        except RemoteError as error:
            if error.status != 404:
                raise

    def upload(self, path: str, query: Mapping[str, Any], *, name: str, data: bytes) -> dict[str, Any]:
        """Send a file as a form, in the field that the server reads pipelines from.

        Args:
            path: Of the API, from the host on.
            query: Parameters of the address.
            name: Of the file.
            data: What is in it.

        Raises:
            RemoteError: the server refused or did not answer.
        """
        body, kind = urllib3.encode_multipart_formdata({"uploadfile": (name, data, "application/octet-stream")})
        return self._once("POST", path, query, body, content_type=kind)

    def text(self, path: str, query: Mapping[str, Any] | None = None) -> str | None:
        """Read plain text, such as a pod's log; None when the server has none there or may not show it."""
        try:
            response = self._send("GET", path, query, None, preload=False)
            try:
                kind = response.headers.get("Content-Type", "")
                if response.status != 200 or not kind.startswith("text/plain"):
                    return None
                data = response.read(_MAX_TEXT_BYTES, decode_content=True)
                if len(data) == _MAX_TEXT_BYTES:
                    response.close()  # rather than read the rest
                return data.decode("utf-8", "replace")
            finally:
                response.release_conn()
        except (RemoteError, urllib3.exceptions.HTTPError):
            return None

    def is_page(self, path: str) -> bool:
        """Tell whether a browser would find a page there."""
        try:
            response = self._send("GET", path, None, None)
        except RemoteError:
            return False
        return response.status == 200 and "text/html" in response.headers.get("Content-Type", "")

    def _repeated(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: bytes | None, pauses: tuple[float, ...]
    ) -> dict[str, Any]:
        for pause in pauses:
            try:
                return self._once(method, path, query, body)
            except RemoteError as error:
                if not error.transient:
                    raise
            time.sleep(pause)
        return self._once(method, path, query, body)

    def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: bytes | None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        response = self._send(method, path, query, body, content_type=content_type)
        if response.status != 200:
            raise self._refusal(response, path)
        try:
            found = json.loads(response.data or b"{}")
        except ValueError:
            raise self._not_json(response) from None
        return found if isinstance(found, dict) else {}

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: bytes | None,
        *,
        content_type: str = "application/json",
        preload: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        given = {name: value for name, value in (query or {}).items() if value not in ("", None)}
        address = f"{self.access.host}{path}" + (f"?{urlencode(given)}" if given else "")
        headers = {"Accept": "application/json, text/plain", "Content-Type": content_type, **self._credentials()}
        try:
            return self._pool.request(method, address, body=body, headers=headers, preload_content=preload)
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from error

    def _credentials(self) -> dict[str, str]:
        found = {"Cookie": self.access.cookie} if self.access.cookie else {}
        token = self.access.token
        if (path := self.access.token_file) is not None:
            try:
                token = path.read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                raise AccessError(f"cannot read the token in {path}: {error}. Check --token-file.") from error
        return found | ({"Authorization": f"Bearer {token}"} if token else {})

    def _unreachable(self, error: urllib3.exceptions.HTTPError) -> RemoteError:
        host = self.access.host
        cause = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason else error
        if isinstance(cause, urllib3.exceptions.SSLError):
            if "WRONG_VERSION_NUMBER" in str(cause) or "RECORD_LAYER_FAILURE" in str(cause):
                return AccessError(f"{host} speaks no TLS. Write --host http{host.removeprefix('https')}")
            return AccessError(
                f"the certificate of {host} is not trusted ({_short(cause)}). Give the file of the authority that "
                "signed it: --ca-file ca.crt"
            )
        if isinstance(cause, urllib3.exceptions.NameResolutionError):
            return AccessError(f"no such host: {host}. Check --host.", transient=True)
        if isinstance(cause, urllib3.exceptions.NewConnectionError):
            port = urlsplit(host).port or (443 if host.startswith("https") else 80)
            mend = "Is the address right, and the service up?"
            if urlsplit(host).hostname in ("localhost", "127.0.0.1", "::1"):
                mend = f"Is the port forwarded? kubectl port-forward -n kubeflow svc/ml-pipeline-ui {port}:80"
            return RemoteError(f"nothing answers at {host} (connection refused). {mend}", transient=True)
        if isinstance(cause, urllib3.exceptions.LocationValueError):
            return AccessError(f"--host {host!r} is no address. Give one such as http://localhost:8080")
        return RemoteError(f"{host} did not answer: {_short(cause)}", transient=True)

    def _refusal(self, response: urllib3.BaseHTTPResponse, path: str) -> RemoteError:
        status, host, said = response.status, self.access.host, _message(response.data)
        if 300 <= status < 400:
            return self._redirected(response)
        if status == 401 or "user identity" in said or "Unauthenticated" in said:
            return AccessError(f"{host} does not accept the login (HTTP {status}). {self._login_mend()}", status=status)
        if status == 403 or "PermissionDenied" in said or "permission to create" in said:
            where = f"in namespace {self.access.namespace}" if self.access.namespace else "without --namespace"
            return AccessError(
                f"{host} refuses this {where} (HTTP {status}): {said or 'forbidden'}. Check --namespace, and that the "
                "account is a contributor of it.",
                status=status,
            )
        if status == 404 and not said.startswith("{"):
            what = f"has nothing at {path} (HTTP 404){f': {said}' if said else ''}"
            return RemoteError(f"{host} {what}", status=404)
        transient = status in _TRANSIENT
        return RemoteError(f"{host} refused the request (HTTP {status}): {said}", status=status, transient=transient)

    def _redirected(self, response: urllib3.BaseHTTPResponse) -> RemoteError:
        target = response.headers.get("Location", "")
        own, other = urlsplit(self.access.host), urlsplit(target)
        if other.hostname == own.hostname and other.scheme == "https" != own.scheme and response.status in (301, 308):
            return AccessError(
                f"{self.access.host} sends everybody to https. Give --host https://{own.netloc}{own.path}",
                status=response.status,
            )
        return AccessError(f"this host asks for a login: {self._login_mend()}", status=response.status)

    def _not_json(self, response: urllib3.BaseHTTPResponse) -> RemoteError:
        if "html" in response.headers.get("Content-Type", "") or response.data.lstrip()[:1] == b"<":
            page = response.data[:20_000].lower()
            if b"login" in page or b"log in" in page or b"sign in" in page or b"dex" in page:
                return AccessError(f"this host asks for a login: {self._login_mend()}", status=response.status)
            return AccessError(
                f"{self.access.host} answers with a web page, not with the API. On a whole Kubeflow the address ends "
                f"with /pipeline: --host {self.access.host}/pipeline",
                status=response.status,
            )
        return RemoteError(f"{self.access.host} answered with something that is no JSON", transient=True)

    def _login_mend(self) -> str:
        access = self.access
        if access.token_from:
            return f"The token of {access.token_from} is expired or not for this host (audience pipelines.kubeflow.org)"
        if access.cookie:
            return "The session in KFP_COOKIE has ended. Log in with a browser and copy its cookie anew"
        return (
            "give a token (--token-file FILE, or KFP_TOKEN in the environment), or the cookie of a session that you "
            "logged in to with a browser (KFP_COOKIE)"
        )


def _certificates(access: Access) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(access.ca_file) if access.ca_file else None)
    except (ssl.SSLError, OSError) as error:
        raise SettingsError(
            f"--ca-file {access.ca_file}: {_short(error)}. It must hold certificates in PEM form."
        ) from error


def _message(data: bytes) -> str:
    """What an error answer says, on one line, without the server's stack of prefixes."""
    try:
        found = json.loads(data)
    except ValueError:
        text = data.decode("utf-8", "replace")
        return "" if text.lstrip().startswith("<") else _one_line(text)
    if not isinstance(found, dict):
        return _one_line(str(found))
    return _one_line(str(found.get("message") or found.get("error_message") or found.get("error") or found))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 600 else f"{line[:600]}…"


def _short(error: Exception) -> str:
    """The words of an error, without the objects' names that urllib3 puts before them."""
    text = " ".join(str(error.args[-1] if error.args else error).split())
    return text.rpartition("] ")[2].partition(" (_ssl.c")[0] or type(error).__name__
