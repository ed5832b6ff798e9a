"""Ask an OpenAI-compatible endpoint which models it serves, and wait for one that is still starting."""

import dataclasses
import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from typing import Any

from clients.endpoint import base_url
from clients.errors import EndpointError
from clients.events import emit

logger = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 10.0
_POLL_S = 1.0

#: A server in the cluster or on this machine is reached directly, as the engine does, whatever proxy is set.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a model answers.

    Attributes:
        base_url: Such as `http://host:8000/v1`.
        model: The name to ask for.
    """

    base_url: str
    model: str


class _NotYetError(Exception):
    """Internal: the endpoint does not answer now but may soon."""


def resolve(url: str, *, model: str, api_key: str | None, patience_s: float) -> Endpoint:
    """Find the model to use at an endpoint.

    Args:
        url: The endpoint as a user writes it, see `clients.endpoint.base_url`.
        model: The wanted model, or "" for the only one (the first one) the endpoint lists.
        api_key: Sent as a bearer token; None sends none.
        patience_s: Seconds to wait for an endpoint that cannot be reached or is still loading.

    Raises:
        SettingsError: the URL cannot be used.
        EndpointError: not reached in time, not an OpenAI-compatible API, wrong key, or unknown model.
    """
    base = base_url(url)
    models = _wait_for_models(base, api_key, patience_s)
    if not models:
        if not model:
            raise EndpointError(f"{base}/models lists no model. Name the one to use with --model.")
        return Endpoint(base_url=base, model=model)
    if model and model not in models:
        shown = ", ".join(models[:10]) + (", …" if len(models) > 10 else "")
        raise EndpointError(f"{base} serves no model {model!r}. It serves: {shown}. Give one of them with --model.")
    return Endpoint(base_url=base, model=model or models[0])


def _wait_for_models(base: str, api_key: str | None, patience_s: float) -> list[str]:
    deadline = time.monotonic() + patience_s
    told = False
    while True:
        try:
            return _list_models(base, api_key)
        except _NotYetError as error:
            if time.monotonic() >= deadline:
                raise EndpointError(
                    f"cannot reach {base} ({error}), tried for {patience_s:g} s. "
                    "Start the model server, or correct --url; --server-wait waits longer."
                ) from error
            if not told:
                emit(logger, "endpoint.waiting", base_url=base, reason=str(error), patience_s=patience_s)
                told = True
        time.sleep(_POLL_S)


def _list_models(base: str, api_key: str | None) -> list[str]:
    """The ids at `/models`; empty when the endpoint has no such list."""
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    request = urllib.request.Request(f"{base}/models", headers=headers)  # noqa: S310  (base_url allows only http and https)
    try:
        with _DIRECT.open(request, timeout=_REQUEST_TIMEOUT_S) as response:
            return _model_ids(base, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return _refused(base, error.code)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _NotYetError(getattr(reason, "strerror", None) or str(reason) or type(error).__name__) from error


def _refused(base: str, status: int) -> list[str]:
    if status in (401, 403):
        raise EndpointError(f"{base} refuses the key (HTTP {status}). Set OPENAI_API_KEY to a key it accepts.")
    if status in (404, 405):
        return []
    raise _NotYetError(f"HTTP {status} from {base}/models")


def _model_ids(base: str, data: bytes) -> list[str]:
    try:
        found: Any = json.loads(data)
        return [str(model["id"]) for model in found["data"]]
    except (ValueError, KeyError, TypeError) as error:
        shown = " ".join(data[:80].decode("utf-8", "replace").split())
        raise EndpointError(
            f"{base} is not an OpenAI-compatible API: /models answered {shown!r}. Give the address that ends in /v1."
        ) from error
