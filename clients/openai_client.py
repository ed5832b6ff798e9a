"""The openai package with our errors: for single questions from a terminal, where its cost per request is no matter."""

import contextlib
import importlib
import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import openai

from clients.errors import ChatError, EndpointError, LLMInferenceError, RejectedError, SettingsError

# Its HTTP library, whose errors it lets through while it streams: httpx, and httpx2 since openai 3.
_HTTP: Any = importlib.import_module(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
_CONNECT_TIMEOUT_S = 10.0  # an address that nobody answers is known long before an answer of minutes is due
_LONGEST_QUOTE = 300


def connect(url: str, timeout_s: float) -> openai.OpenAI:
    """A client for the API at `url` that tries once; the key is OPENAI_API_KEY, or EMPTY when that is not set.

    Args:
        url: Base URL as `clients.endpoint.base_url` returns it.
        timeout_s: Longest silence of the server.

    Raises:
        SettingsError: the key cannot stand in a header, or the shell's proxy or certificate settings cannot be used.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip() or "EMPTY"
    if not (key.isascii() and key.isprintable()):
        raise SettingsError("OPENAI_API_KEY contains characters that no key has: set it again")
    timeout = openai.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S))
    try:
        http = openai.DefaultHttpxClient(timeout=timeout, trust_env=not _is_loopback(url))
    except (ImportError, OSError, ValueError) as error:
        raise SettingsError(
            f"the proxy or certificate settings of this shell cannot be used ({error}): "
            "mend or unset HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE"
        ) from error
    return openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=0, http_client=http)


def model_names(client: openai.OpenAI) -> list[str]:
    """The models that the endpoint lists, in its order.

    Raises:
        EndpointError: the endpoint has no list, or cannot be used.
        ChatError: it refuses just now.
    """
    with _translated(client):
        return _listed(client)


def ask(client: openai.OpenAI, request: dict[str, Any]) -> dict[str, Any]:
    """The JSON that chat completions answers to `request`, with every field the server sent.

    Raises:
        EndpointError: the endpoint as a whole cannot be used.
        ChatError: this request did not yield an answer.
    """
    with _translated(client, request["model"]):
        answer = client.chat.completions.with_raw_response.create(**request).http_response
        return _object(answer.text, str(answer.url), "choices")


def stream(client: openai.OpenAI, request: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The answer to `request` piece by piece as it arrives.

    Args:
        client: See `connect`.
        request: Fields of the request, `model` among them.

    Yields:
        Pairs of a kind and a text: `reasoning`, `content`, and at the end once `finish` with the finish_reason.

    Raises:
        EndpointError: the endpoint as a whole cannot be used, or does not stream.
        ChatError: this request did not yield a whole answer; pieces may have come.
    """
    finish = None
    with _translated(client, request["model"]), client.chat.completions.create(stream=True, **request) as chunks:
        _check_streams(chunks.response)
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            extra = choice.delta.model_extra or {}
            if thought := extra.get("reasoning") or extra.get("reasoning_content"):
                yield "reasoning", str(thought)
            if said := choice.delta.content or choice.delta.refusal:
                yield "content", said
            finish = choice.finish_reason or finish
    if finish is None:
        raise ChatError("incomplete", f"{client.base_url} ended the stream before the answer: see the server's log")
    yield "finish", finish


def _check_streams(answer: Any) -> None:
    if "text/event-stream" in answer.headers.get("content-type", ""):
        return
    _object(answer.read().decode(errors="replace"), str(answer.url), "choices")
    raise EndpointError(f"{answer.url} does not stream: leave out --stream")


def _listed(client: openai.OpenAI) -> list[str]:
    answer = client.models.with_raw_response.list().http_response
    cards = _object(answer.text, str(answer.url), "data")["data"]
    return [str(card["id"]) for card in cards if isinstance(card, dict) and "id" in card]


def _object(text: str, where: str, needed: str) -> dict[str, Any]:
    """The JSON object in `text`, which came from the address `where` and must have a list under `needed`."""
    try:
        found = json.loads(text)
    except ValueError as error:
        if text.lstrip().startswith("<"):
            raise EndpointError(
                f"{where} answered with a web page: is --url the address of the model server?"
            ) from error
        raise EndpointError(f"{where} answered with broken JSON ({error}): see the server's log") from error
    if not isinstance(found, dict) or not isinstance(found.get(needed), list):
        raise EndpointError(f"{where} answered JSON without a list {needed!r}: is this an OpenAI-compatible API?")
    return found


@contextlib.contextmanager
def _translated(client: openai.OpenAI, model: str | None = None) -> Iterator[None]:
    """Raise what the openai package and its HTTP library raise as errors that say what to do."""
    url = str(client.base_url).rstrip("/")
    try:
        yield
    except openai.APIStatusError as error:
        raise _status_error(error, client, model) from error
    except (openai.APIConnectionError, _HTTP.HTTPError) as error:
        raise _connection_error(error, client) from error
    except openai.APIError as error:
        raise ChatError(
            "server_error", f"{url} broke off its answer: {error.message.rstrip('.')}. See the server's log"
        ) from error
    except ValueError as error:
        raise EndpointError(f"{url} answered with broken JSON ({error}): see the server's log") from error


def _status_error(error: openai.APIStatusError, client: openai.OpenAI, model: str | None) -> LLMInferenceError:
    status, where = error.status_code, str(error.request.url)
    found = f"{where} answered {status}: {_quote(error.response.text)}"
    if status in {401, 403}:
        state = "is not the key of this endpoint" if os.environ.get("OPENAI_API_KEY", "").strip() else "is not set"
        return EndpointError(f"{found}. OPENAI_API_KEY {state}: export the right one")
    if status == 404:
        return EndpointError(f"{found}. {_after_404(client, model)}")
    if status == 407 or (status in {502, 503, 504} and _proxy_note(where)):
        return EndpointError(f"{found}.{_proxy_note(where)}")
    if status in {408, 429, 503}:
        return ChatError(f"http_{status}", f"{found}. The server is busy or starting: try again later")
    if status >= 500:
        return ChatError(f"http_{status}", f"{found}. See the server's log")
    return RejectedError(f"http_{status}", f"{found}. Change what you ask for: the prompt, --max-tokens, --temperature")


def _after_404(client: openai.OpenAI, model: str | None) -> str:
    with contextlib.suppress(openai.OpenAIError, _HTTP.HTTPError, EndpointError):
        names = _listed(client)
        if model not in names:
            return f"Pass --model with one that it serves: {', '.join(names)}"
    return "Nothing is served at this path: check --url"


def _connection_error(error: Exception, client: openai.OpenAI) -> LLMInferenceError:
    url = str(client.base_url).rstrip("/")
    cause = error if isinstance(error, _HTTP.HTTPError) else error.__cause__ or error
    if isinstance(cause, _HTTP.TimeoutException) and not isinstance(cause, _HTTP.ConnectTimeout):
        waited = client.timeout.read if isinstance(client.timeout, openai.Timeout) else client.timeout
        return ChatError("timeout", f"{url} said nothing for {waited} s: raise --timeout, or lower --max-tokens")
    reason = str(cause) or type(cause).__name__
    if isinstance(cause, _HTTP.ConnectTimeout | _HTTP.ConnectError | _HTTP.ProxyError):
        advice = f"check the address and that the server is up.{_proxy_note(url)}"
        return EndpointError(f"{url} cannot be reached ({reason}): {advice}")
    return ChatError("connection", f"{url} broke off the connection ({reason}): see the server's log and try again")


def _proxy_note(url: str) -> str:
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme) or getproxies().get("all")
    if not proxy or _is_loopback(url) or proxy_bypass(parts.hostname or ""):
        return ""
    return f" The request went through the proxy {proxy.rpartition('@')[2]}: add {parts.hostname} to NO_PROXY"


def _is_loopback(url: str) -> bool:
    """Whether `url` is on this machine, where no proxy can help."""
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _quote(text: str) -> str:
    """The server's own words out of an error's body."""
    try:
        found = json.loads(text)
    except ValueError:
        found = "a web page" if text.lstrip().startswith("<") else text
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    words = " ".join(str(found).split()) or "no words"
    return (words if len(words) <= _LONGEST_QUOTE else f"{words[:_LONGEST_QUOTE]}...").rstrip(".")
