"""What must not stand in a trace: secrets, wherever a request or an error message carries them."""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

#: Names of fields that hold a secret.
_NAME = re.compile(
    r"api[-_]?key|authorization|secret|passw|credential|cookie|private[-_]?key|"
    r"(access|auth|bearer|refresh|session|hf)[-_]?token|^token$",
    re.IGNORECASE,
)

#: Fields of which every value may be one.
_HEADERS = re.compile(r"headers$", re.IGNORECASE)

#: Secrets in the middle of a text.
_VALUE = re.compile(
    r"(?i:\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}|\b(?:sk|pk|rk)-[\w-]{12,}|\bhf_\w{12,}|\beyJ[\w-]{8,}\.[\w.-]+|"
    r"(?<=://)[^/\s:@\"]+:[^/\s@\"]+(?=@)"
)

#: Where none of this occurs in a request's parameters as JSON, there is nothing to mask. It is read once a row.
_SUSPECT = re.compile(
    r"key|auth|secret|passw|credential|cookie|token\"|headers\"|bearer|basic |sk-|pk-|rk-|hf_|eyj|@", re.IGNORECASE
)


def is_suspect(json_text: str) -> bool:
    """Whether `masked` may find something; cheap."""
    return _SUSPECT.search(json_text) is not None


def masked(value: Any) -> Any:
    """The value, a JSON object or a part of one, with `***` where a secret stands."""
    if isinstance(value, Mapping):
        return {name: _field(name, item) for name, item in value.items()}
    if isinstance(value, list):
        return [masked(item) for item in value]
    return masked_text(value) if isinstance(value, str) else value


def masked_text(text: str) -> str:
    """Text with `***` where it looks like a key, a token, or the credentials of an address."""
    return _VALUE.sub(MASK, text)


def _field(name: str, value: Any) -> Any:
    if _HEADERS.search(name) and isinstance(value, Mapping):
        return dict.fromkeys(value, MASK)
    if _NAME.search(name) and not isinstance(value, bool | int | float | None) and not _is_schema(value):
        return MASK
    return masked(value)


def _is_schema(value: Any) -> bool:
    """Whether it describes a field of that name (a JSON schema's property) and is not one."""
    return isinstance(value, Mapping) and ("type" in value or "$ref" in value or "anyOf" in value)
