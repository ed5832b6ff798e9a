"""Checks of the services beside the cluster: Langfuse, and the API of Kubeflow Pipelines."""

import dataclasses
import json
from typing import Any
from urllib.parse import urlsplit

import httpx2

from clients.serving.evidence import quoted, text
from pipelines.checks.verdict import Verdict, failed, ok, unknown, warning
from pipelines.checks.versions import version

#: Where Langfuse's SDK sends traces when no host is named.
LANGFUSE_CLOUD = "https://cloud.langfuse.com"

#: The first Langfuse with the OpenTelemetry route that the SDK sends traces to (2.95 has none).
_LEAST_LANGFUSE = (3, 0)

#: The oldest Kubeflow Pipelines whose API takes our compiled pipelines.
_LEAST_PIPELINES = (2, 14)

_TIMEOUT = httpx2.Timeout(5.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Langfuse:
    """Where traces go. "" for what is not set."""

    host: str = ""
    public_key: str = ""
    secret_key: str = dataclasses.field(default="", repr=False)


@dataclasses.dataclass(frozen=True)
class _Answer:
    """An answer; with status 0, `said` tells why there is none."""

    status: int
    body: Any = None
    said: str = ""


def langfuse(settings: Langfuse) -> Verdict:
    """Whether Langfuse answers and takes our keys."""
    keys = bool(settings.public_key), bool(settings.secret_key)
    if not any(keys) and not settings.host:
        return ok("off: LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY are not set")
    host = _address(settings.host or LANGFUSE_CLOUD)
    health = _get(f"{host}/api/public/health")
    if health.status == 0:
        return _away(host, health, "LANGFUSE_HOST", port=3000)
    told = text(health.body, "version")
    about = f"{told or 'Langfuse'} at {quoted(host)}"
    if health.status != 200 or not isinstance(health.body, dict):
        found = f"{quoted(host)} answers HTTP {health.status} to /api/public/health"
        return failed(found, "see that LANGFUSE_HOST is Langfuse's address without a path, and what its log says")
    if (known := version(told)) is not None and known < _LEAST_LANGFUSE:
        return failed(f"{about} takes no traces by OpenTelemetry", "upgrade Langfuse to 4, or at least to 3")
    if not all(keys):
        missing = "LANGFUSE_SECRET_KEY" if keys[0] else "LANGFUSE_PUBLIC_KEY"
        both = "LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY" if not any(keys) else missing
        return warning(
            f"{about}, but {both} not set, so tracing is off", "set them; Langfuse shows them in its settings"
        )
    return _keys(settings, host, about)


def _keys(settings: Langfuse, host: str, about: str) -> Verdict:
    """Whether the keys are a project's."""
    answer = _get(f"{host}/api/public/projects", auth=(settings.public_key, settings.secret_key))
    if answer.status in (401, 403):
        return failed(
            f"{about} does not know the keys (HTTP {answer.status})",
            "take both of one project from its settings, API keys; a key of another Langfuse will not do",
        )
    if answer.status != 200:
        return unknown(f"{about} answers HTTP {answer.status} when asked for the keys' project", "see its log")
    projects = answer.body.get("data") if isinstance(answer.body, dict) else None
    names = [text(each, "name") for each in projects or []]
    return ok(f"{about}, project {quoted(names[0], 60)}" if names else f"{about}, keys accepted")


def pipelines_api(host: str, *, token: str = "") -> Verdict:
    """Whether the API of Kubeflow Pipelines answers, in a version that takes our pipelines.

    Args:
        host: As `kfp.Client` takes it; without a scheme that means https.
        token: For the header; "" for none.
    """
    address = _address(host if "://" in host else f"https://{host}")
    answer = _get(f"{address}/apis/v2beta1/healthz", token=token)
    shown = quoted(address)
    if answer.status == 0:
        return _away(address, answer, "--host", port=8080)
    if answer.status in (301, 302, 303, 307, 308, 401, 403):
        return unknown(
            f"{shown} asks for a login (HTTP {answer.status})",
            "see it past the login with --host http://localhost:8080 and",
            _FORWARD,
        )
    if answer.status != 200 or not isinstance(answer.body, dict):
        return failed(
            f"{shown} answers HTTP {answer.status} to /apis/v2beta1/healthz, as no Kubeflow Pipelines 2 does",
            "behind Kubeflow's dashboard add /pipeline to --host; otherwise use --host http://localhost:8080 and",
            _FORWARD,
        )
    tag = text(answer.body, "tag_name") or text(answer.body, "apiServerTagName")
    if answer.body.get("apiServerReady") is False:
        return failed(f"the API server behind {shown} is not ready", "see why", "kubectl -n kubeflow get pods")
    known = version(tag)
    if known is None:
        return warning(f"{shown} does not tell its version", "see that it is 2.14 or newer", _IMAGE)
    if known < _LEAST_PIPELINES:
        return failed(f"{tag} at {shown}, too old", "upgrade Kubeflow Pipelines to 2.14 or newer")
    return ok(f"{tag} at {shown}")


_FORWARD = "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80"


_IMAGE = "kubectl -n kubeflow get deployment ml-pipeline -o jsonpath='{..image}'"


def _away(host: str, answer: _Answer, setting: str, *, port: int) -> Verdict:
    """No answer: what that means depends on where the address is meant for."""
    parts = urlsplit(host)
    names = (parts.hostname or "").split(".")
    inside = len(names) > 1 and "svc" in names[2:3]
    found = f"{quoted(host)} does not answer ({quoted(answer.said, 90)})"
    if inside:
        forward = f"kubectl -n {names[1]} port-forward svc/{names[0]} {port}:{parts.port or 80}"
        mend = f"it is an address of the cluster; from here look with {setting} http://localhost:{port} and"
        return unknown(found, mend.replace(" http", "=http") if setting.isupper() else mend, forward)
    if setting == "--host" and parts.hostname in ("localhost", "127.0.0.1", "::1"):
        return failed(found, "correct --host, or forward its port:", _FORWARD)
    return failed(found, f"correct {setting}, or start it")


def _address(host: str) -> str:
    return host.strip().rstrip("/")


def _get(url: str, *, auth: tuple[str, str] | None = None, token: str = "") -> _Answer:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx2.Client(timeout=_TIMEOUT, auth=auth) as client:
            found = client.get(url, headers=headers)
    except (httpx2.TransportError, httpx2.InvalidURL, ValueError) as error:
        return _Answer(0, said=str(error) or type(error).__name__)
    try:
        return _Answer(found.status_code, json.loads(found.text))
    except ValueError:
        return _Answer(found.status_code)
