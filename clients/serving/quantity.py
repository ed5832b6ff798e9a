"""Quantities as Kubernetes writes them."""

from typing import Any

_SUFFIXES = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip


def number(quantity: Any) -> float:
    """A quantity such as `8`, `500m` or `3Ti` as a number in its base unit; 0 for what cannot be read."""
    text = str(quantity).strip()
    for suffix in (text[-2:], text[-1:]):
        if suffix in _SUFFIXES:
            text, factor = text.removesuffix(suffix), _SUFFIXES[suffix]
            break
    else:
        factor = 1
    try:
        return float(text) * factor
    except ValueError:
        return 0.0
