"""Ask an OpenAI-compatible endpoint which models it serves, and wait for one that is still starting."""

import contextlib
import dataclasses
import http.client
import json
import logging
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

from clients.endpoint import base_url
from clients.errors import EndpointError, SettingsError
from clients.events import emit

logger = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 10.0
_POLL_S = 1.0

_MAX_BYTES = 4 << 20

CERTIFICATE_MEND = "Name the file with the certificate authority in SSL_CERT_FILE."


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
        SettingsError: the URL or the key cannot be used.
        EndpointError: not reached in time, not an OpenAI-compatible API, wrong key, or unknown model.
    """
    base = base_url(url)
    models = [str(card["id"]) for card in _wait_for_models(base, api_key, patience_s)]
    if not models:
        if not model:
            raise EndpointError(
                f"{base}/models lists no model. Check that this is the address of an OpenAI-compatible API, "
                "or name the model to use with --model."
            )
        return Endpoint(base_url=base, model=model)
    if model and model not in models:
        shown = ", ".join(models[:10]) + (", …" if len(models) > 10 else "")
        raise EndpointError(f"{base} serves no model {model!r}. It serves: {shown}. Give one of them with --model.")
    return Endpoint(base_url=base, model=model or models[0])


def resolve_all(urls: str, *, model: str, api_key: str | None, patience_s: float) -> Endpoint:
    """Find the model to use at several endpoints that serve the same.

    Args:
        urls: Endpoints, divided by commas or blanks.
        model: As in `resolve`, like what follows.
        api_key: The same for all.
        patience_s: For each.

    Returns:
        The base URLs divided by blanks, and the model that the first one leads to.

    Raises:
        SettingsError, EndpointError: as in `resolve`.
    """
    found: list[Endpoint] = []
    for url in urls.replace(",", " ").split() or [urls]:
        found.append(
            resolve(url, model=model or (found[0].model if found else ""), api_key=api_key, patience_s=patience_s)
        )
    bases = dict.fromkeys(endpoint.base_url for endpoint in found)
    return Endpoint(base_url=" ".join(bases), model=found[0].model)


def max_model_len(base: str, *, model: str, api_key: str | None) -> int | None:
    """How many tokens, prompt and answer together, a model at a base URL takes; None when its list does not say.

    Args:
        base: Base URL, one.
        model: Name, as the endpoint lists it.
        api_key: None for none.

    Raises:
        SettingsError, EndpointError: as in `resolve`; it is asked once.
    """
    found = next((card for card in _wait_for_models(base, api_key, 0) if card["id"] == model), {})
    limit = found.get("max_model_len")
    return limit if isinstance(limit, int) and limit > 0 else None


def authorization(api_key: str | None) -> dict[str, str]:
    """The header that carries the key, if there is one.

    Raises:
        SettingsError: the key cannot stand in a header. The message does not repeat it.
    """
    key = (api_key or "").strip()  # a Secret made from a file often ends with a line break
    if not (key.isascii() and key.isprintable()):
        raise SettingsError("OPENAI_API_KEY holds characters that no key has, such as a line break. Set it anew.")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _wait_for_models(base: str, api_key: str | None, patience_s: float) -> list[dict[str, Any]]:
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


def _list_models(base: str, api_key: str | None) -> list[dict[str, Any]]:
    """The models at `/models`, each with an id; empty when the endpoint has no such list.

    The server is reached directly, as by the engine, whatever proxy is set; http.client knows none. Nor does it follow
    redirects: to another host, one would take the key there.
    """
    parts = urlsplit(base)
    scheme = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    headers = {"Accept": "application/json", "Connection": "close", **authorization(api_key)}
    try:
        with contextlib.closing(scheme(parts.hostname or "", parts.port, timeout=_REQUEST_TIMEOUT_S)) as connection:
            connection.request("GET", f"{parts.path}/models", headers=headers)
            with connection.getresponse() as response:
                if 200 <= response.status < 300:
                    return _models(base, response.read(_MAX_BYTES))
                return _refused(base, response.status, response.getheader("Location", "nowhere"))
    except UnicodeError as error:
        raise SettingsError(f"endpoint URL {base!r} cannot be used: write it in plain ASCII letters") from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, ssl.SSLCertVerificationError):
            raise EndpointError(f"{base}: TLS fails: {error.verify_message}. {CERTIFICATE_MEND}") from error
        raise _NotYetError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def _refused(base: str, status: int, location: str) -> list[dict[str, Any]]:
    if status in (401, 403):
        raise EndpointError(f"{base} refuses the key (HTTP {status}). Set OPENAI_API_KEY to a key it accepts.")
    if status in (404, 405):
        return []
    if 300 <= status < 400:
        target = " ".join(location.split())
        raise EndpointError(
            f"{base}/models redirects to {target} (HTTP {status}). Give the address that answers itself."
        )
    raise _NotYetError(f"HTTP {status} from {base}/models")


def _models(base: str, data: bytes) -> list[dict[str, Any]]:
    try:
        found: Any = json.loads(data)
        return [{**model, "id": str(model["id"])} for model in found["data"]]
    except (ValueError, KeyError, TypeError) as error:
        shown = " ".join(data[:80].decode("utf-8", "replace").split())
        raise EndpointError(
            f"{base} is not an OpenAI-compatible API: /models answered {shown!r}. Give the address that ends in /v1."
        ) from error
