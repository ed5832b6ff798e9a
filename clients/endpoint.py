"""What a user may write as the address of a model server, and the one form in which we use it."""

from urllib.parse import SplitResult, urlsplit

from clients.errors import SettingsError

_OPERATIONS = ("/chat/completions", "/v1/completions", "/v1/models")


def base_url(url: str) -> str:
    """The base URL of an OpenAI-compatible API: scheme, host, any path prefix, and `/v1`, without a slash at the end.

    Args:
        url: With `/v1`, without it, or the full address of chat completions.

    Raises:
        SettingsError: No scheme, another scheme than http and https, no host, a bad port, blanks, a query, or
            credentials, which belong in OPENAI_API_KEY: addresses end up in logs and result files.
    """
    address = url.strip()
    parts = _split(address)
    if "@" in parts.netloc:
        raise SettingsError(
            f"endpoint URL for {parts.hostname} carries credentials: take out what stands before '@' "
            "and put the key in OPENAI_API_KEY"
        )
    if parts.query or parts.fragment:
        raise SettingsError(
            f"endpoint URL {address!r} has a query or fragment: leave out everything from '?' or '#' on"
        )
    path = parts.path.rstrip("/")
    for operation in _OPERATIONS:
        path = path.removesuffix(operation).rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path.removesuffix('/v1')}/v1"


def _split(address: str) -> SplitResult:
    if not address:
        raise SettingsError("endpoint URL is empty: write something like http://localhost:8000/v1")
    if any(mark.isspace() or not mark.isprintable() for mark in address):
        raise SettingsError(f"endpoint URL {_shown(address)!r} contains blanks or control characters: take them out")
    if "://" not in address:
        raise SettingsError(f"endpoint URL {_shown(address)!r} has no scheme: write http://{_shown(address)}")
    try:
        parts = urlsplit(address)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(
            f"endpoint URL {_shown(address)!r} cannot be read ({error}): write http://HOST:PORT"
        ) from error
    if parts.scheme not in {"http", "https"}:
        raise SettingsError(f"endpoint URL {_shown(address)!r} has the scheme {parts.scheme!r}: use http or https")
    if not host:
        raise SettingsError(f"endpoint URL {_shown(address)!r} names no host: write something like http://HOST:8000/v1")
    return parts


def _shown(address: str) -> str:
    """`address` without what may be a password."""
    return address.rpartition("@")[2]
