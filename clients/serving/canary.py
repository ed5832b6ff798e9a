"""One real completion: the proof that a service which calls itself ready does answer."""

import contextlib
import http.client
import json
import ssl
from typing import Any
from urllib.parse import urlsplit

from clients.endpoint import base_url
from clients.models import authorization

#: A first request may wait for kernels that are compiled on demand.
_TIMEOUT_S = 180.0

_MAX_BYTES = 1 << 20


def canary(url: str, *, model: str, api_key: str | None) -> tuple[str, bool]:
    """Ask for one short completion.

    Args:
        url: Address of the service.
        model: Name that it must serve.
        api_key: Sent as a bearer token; None sends none.

    Returns:
        Why it failed, "" when it did not; and whether asking again is of no use.
    """
    base = base_url(url)
    parts = urlsplit(base)
    scheme = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"Content-Type": "application/json", "Connection": "close", **authorization(api_key)}
    asked = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Say OK."}]}
    try:
        with contextlib.closing(scheme(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)) as connection:
            connection.request("POST", f"{parts.path}/chat/completions", body=json.dumps(asked), headers=headers)
            with connection.getresponse() as response:
                return _judged(base, model, response.status, response.read(_MAX_BYTES))
    except (OSError, http.client.HTTPException, ssl.SSLError) as error:
        return f"{base} cannot be reached ({error or type(error).__name__})", False


def _judged(base: str, model: str, status: int, body: bytes) -> tuple[str, bool]:
    said = " ".join(body[:300].decode("utf-8", "replace").split())
    if status == 200:
        return (
            ("", False) if _is_completion(body) else (f"{base} answered something that is no completion: {said}", True)
        )
    if status == 403 and "RBAC" in said:
        mend = 'Give the predictor\'s pods the label and annotation sidecar.istio.io/inject: "false"'
        return f"{base} answers 403 {said}: a service mesh keeps this step out. {mend}", True
    if status in (401, 403):
        return f"{base} refuses the key (HTTP {status}): put the server's key into OPENAI_API_KEY", True
    if status == 404:
        return f"{base} serves no model {model!r} ({said}): correct the model's name", True
    return f"{base} answers HTTP {status}: {said}", status in (400, 422)


def _is_completion(body: bytes) -> bool:
    try:
        found: Any = json.loads(body)
        return bool(found["choices"])
    except (ValueError, KeyError, TypeError):
        return False
