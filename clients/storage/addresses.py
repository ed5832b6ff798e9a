"""What an address is, and how it is shown: the part of a web address behind the `?` may be a key to the file."""

import re

#: Addresses as they are shown, to what stands for them; see `remember`.
_FULL: dict[str, str] = {}

_QUERY = re.compile(r"(https?://[^\s?#'\"]+)[?#][^\s'\"]*")
_PASSWORD = re.compile(r"(://)[^/\s@'\"]+@")


def is_uri(location: str) -> bool:
    """Tell an address such as `s3://bucket/key` from a path on this machine."""
    return "://" in location


def shown(text: str) -> str:
    """A location, or a text that names some, without what may be a secret; inline prompts by their kind alone."""
    if text.startswith("inline:"):
        return text[: text.rfind(":", 0, 32)]
    return _PASSWORD.sub(r"\1", _QUERY.sub(r"\1", text))


def remember(address: str) -> str:
    """The form of an address under which everything may speak of it; this process can still open it."""
    short = shown(address)
    if short != address:
        _FULL[short] = address
    return short


def in_full(address: str) -> str:
    """The address that `remember` was given."""
    return _FULL.get(address, address)
