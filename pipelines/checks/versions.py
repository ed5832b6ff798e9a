"""Versions as people tag them."""

import re


def version(text: str) -> tuple[int, int] | None:
    """Major and minor of a version such as `v1.33.2-gke.100`, `2.17.0` or an image's tag; None for anything else."""
    found = re.match(r"v?(\d{1,4})\.(\d{1,6})(?!\d)", text)
    return (int(found[1]), int(found[2])) if found else None


def image_tag(image: str) -> str:
    """The tag of an image; "" when it has none."""
    name = image.partition("@")[0].rpartition("/")[2]
    return name.partition(":")[2]
