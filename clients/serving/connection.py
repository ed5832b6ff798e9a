"""The connection to a Kubernetes API server: found as kubectl finds it, and patient with a server that falters.

Kubeconfig files, credential plugins, service-account tokens (read again when they rotate) and TLS are lightkube's.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import httpx2
from lightkube.config.client_adapter import Client, ConnectionParams
from lightkube.config.kubeconfig import SERVICE_ACCOUNT, KubeConfig, SingleConfig
from lightkube.core.exceptions import ConfigError

from clients.errors import SettingsError, UnreachableApiError

_TIMEOUT = httpx2.Timeout(20.0, connect=5.0)

#: Answers of a server that is overloaded, starting, or whose webhook is away; another try may well work.
_FALTERING = frozenset({429, 500, 502, 503, 504})

#: A 500 with these words is about the object, not the server: it comes back for ever (measured on a real server).
_PERMANENT = "failed to create typed patch object"

#: Seconds for which one request is tried again. A caller that can wait longer has a loop of its own.
PATIENCE_S = 45.0

_SLOWEST_RETRY_S = 8.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the server said.

    Attributes:
        status: HTTP status.
        text: The body.
        reason: Words for what went wrong on the way when the last try got no answer; then the status is 0.
    """

    status: int
    text: str
    reason: str = ""


class Connection:
    """Requests to one API server.

    Args:
        config: Where it is and who we are.
        in_cluster: Whether this runs in a pod, where no proxy can help.
        patience_s: Seconds for which a faltering server is tried again.

    Raises:
        SettingsError: the credentials cannot be used.
    """

    def __init__(self, config: SingleConfig, *, in_cluster: bool = False, patience_s: float = PATIENCE_S) -> None:
        self.server = str(config.cluster.server)
        self._patience_s = patience_s
        try:
            self._client = Client(config, ConnectionParams(timeout=_TIMEOUT, trust_env=not in_cluster))
        except (ConfigError, OSError, ValueError, AssertionError) as error:
            raise SettingsError(
                f"the credentials for {self.server} cannot be used ({error}): mend the kubeconfig"
            ) from error

    def close(self) -> None:
        """Close what is open."""
        self._client.close()

    def send(
        self, method: str, path: str, *, params: dict[str, str], body: bytes | None = None, content_type: str = ""
    ) -> Answer:
        """Send one request, again and again while the server falters.

        Args:
            method: Of HTTP.
            path: Below the server's address.
            params: The query.
            body: What is sent; None for nothing.
            content_type: Of the body.

        Raises:
            UnreachableApiError: no answer in time.
            SettingsError: the credentials cannot be made, such as a login that has run out.
        """
        headers = {"Content-Type": content_type} if content_type else {}
        deadline, pause = time.monotonic() + self._patience_s, 0.25
        while True:
            answer, asked_s = self._try(method, path, params, body, headers)
            wait_s = max(pause, asked_s)
            if not _is_faltering(answer) or time.monotonic() + wait_s > deadline:
                break
            time.sleep(wait_s)
            pause = min(2 * pause, _SLOWEST_RETRY_S)
        if answer.status == 0:
            raise UnreachableApiError(
                f"the Kubernetes API server {self.server} does not answer ({answer.reason}). "
                "Check the network, the VPN and the kubeconfig."
            )
        return answer

    def _try(
        self, method: str, path: str, params: dict[str, str], body: bytes | None, headers: dict[str, str]
    ) -> tuple[Answer, float]:
        """One request; the answer, and how many seconds the server asks us to wait before the next."""
        try:
            found = self._client.request(method, path, params=params, content=body, headers=headers)
        except httpx2.TransportError as error:
            return Answer(0, "", str(error) or type(error).__name__), 0.0
        except (ConfigError, OSError, KeyError, ValueError) as error:
            raise SettingsError(
                f"the kubeconfig's login for {self.server} fails ({error}): log in again, then try kubectl get pods"
            ) from error
        asked = found.headers.get("Retry-After", "")
        return Answer(found.status_code, found.text), float(asked) if asked.isdecimal() else 0.0


def _is_faltering(answer: Answer) -> bool:
    return answer.status == 0 or (answer.status in _FALTERING and _PERMANENT not in answer.text)


def find_config(kubeconfig: str, context: str) -> tuple[SingleConfig, bool]:
    """The cluster to talk to, and whether this runs inside it.

    Args:
        kubeconfig: What KUBECONFIG says; "" takes the pod's service account, or `~/.kube/config`.
        context: Context of the kubeconfig; "" for its current one.

    Raises:
        SettingsError: there is none, or it cannot be read.
    """
    in_cluster = not kubeconfig and not context and (Path(SERVICE_ACCOUNT) / "token").is_file()
    files = [Path(name).expanduser() for name in (kubeconfig or "~/.kube/config").split(":") if name]
    found = next((path for path in files if path.is_file()), None)
    if found is None and not in_cluster:
        raise SettingsError(
            f"no Kubernetes cluster is known here: neither a service account nor {files[0]}. "
            "Set KUBECONFIG to the file that kubectl uses."
        )
    try:
        if found is None or in_cluster:
            return _current(KubeConfig.from_service_account(), ""), True
        return _current(KubeConfig.from_file(found), context), False
    except Exception as error:  # a kubeconfig is a user's file: whatever is wrong in it is named
        raise SettingsError(
            f"the kubeconfig {found} cannot be used ({type(error).__name__}: {error}): see kubectl config view"
        ) from error


def _current(config: KubeConfig, context: str) -> SingleConfig:
    found: Any = config.get(context or None)
    if found.user is not None and found.user.exec is not None and found.user.exec.apiVersion.endswith("/v1"):
        found.user.exec.apiVersion += "beta1"  # the library knows the older name only; a token comes in the same form
    return found  # type: ignore[no-any-return]
