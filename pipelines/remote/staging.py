"""A file of this machine, made readable for pods: inside the arguments when it is small, else in an object store."""

import base64
import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

from clients.errors import SettingsError
from clients.prompts.lines import read_lines
from clients.steps.store_access import reach_stores
from clients.storage import Folder, is_uri, open_input
from pipelines.remote.parameters import Package

#: Without this, gzip of a large file is tried in vain: text rarely packs to less than a twentieth.
_MAX_WORTH_PACKING = 4 << 20

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


def staged(prompts: str, staging: str, package: Package, *, say: Callable[[str], None], upload: bool = True) -> str:
    """What the pipeline's parameter `prompts` is to be for a file or an address.

    Args:
        prompts: Path on this machine, or an address that the pods can read.
        staging: Address of a folder for files that are too large to travel inline; "" for none.
        package: The pipeline; says how long a file that travels inline may be, and which paths are in its volumes.
        say: Told what is uploaded.
        upload: False leaves a file where it is that would be uploaded, for a look at what would be sent.

    Raises:
        PromptsError: the file cannot be read, or is no file of prompts.
        SettingsError: it is too large to travel inline, and there is no staging.
        StorageError: the staging folder refuses it.
    """
    in_volume = any(volume.holds(prompts) for volume in package.volumes)
    if is_uri(prompts) or prompts.startswith("inline:") or in_volume:
        return prompts
    path = Path(prompts)
    if not path.exists():
        raise SettingsError(
            f"no such file: {prompts}. Give a file of this machine, an address such as s3://bucket/prompts.jsonl, or a "
            f"path in a volume of the cluster: --volume CLAIM:{Path(prompts).absolute().parent}"
        )
    if not path.is_file() and not path.is_dir():
        raise SettingsError(f"{prompts} is no file. Save the prompts in one first")
    with open_input(prompts):
        next(read_lines(prompts), None)  # what is visibly no file of prompts is known before a pod starts
    if (text := inline(path, package.most_inline)) is not None:
        return text
    if not staging:
        raise SettingsError(
            f"{prompts} ({path.stat().st_size:,} bytes) is too large to travel inside the run. Give --staging "
            "s3://bucket/folder, which this machine can write and the pods can read, or upload it yourself and give "
            "its address: --prompts s3://bucket/prompts.jsonl"
        )
    if not is_uri(staging):
        raise SettingsError(f"--staging {staging}: pods cannot read this machine's folders. Give s3://bucket/folder")
    return _uploaded(path, staging, say) if upload else f"{staging.rstrip('/')}/…/{path.name}"


def inline(path: Path, most: int) -> str | None:
    """The file as text of at most so many characters, the same for the same content; None when it is too large."""
    if path.stat().st_size > _MAX_WORTH_PACKING:
        return None
    kind = _FORMATS.get(_suffix(path))
    packed = base64.b64encode(gzip.compress(path.read_bytes(), 9, mtime=0)).decode()
    text = f"inline:{kind}:{packed}" if kind else f"inline:{packed}"
    return text if len(text) <= most else None


def described(prompts: str) -> str:
    """The parameter as a person wants to read it: an inline file by its size."""
    return f"inline, {len(prompts):,} characters" if prompts.startswith("inline:") else prompts


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for packed in (".gz", ".zst", ".zstd"):
        name = name.removesuffix(packed)
    return Path(name).suffix


def _uploaded(path: Path, staging: str, say: Callable[[str], None]) -> str:
    """Put the file below a name made of its content, so that the same file is uploaded once."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    reach_stores("")
    folder = Folder(staging) / digest
    address = f"{folder.location}/{path.name}"
    if path.name in folder.names():
        say(f"{address} is there already")
    else:
        say(f"Uploading {path} to {address}")
        folder.put(path.name, path)
    return address
