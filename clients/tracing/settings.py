"""How rows are traced, read from the environment: what cannot be used costs traces, never the job."""

import dataclasses
import logging
import math
import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from clients.errors import SettingsError
from clients.events import emit

logger = logging.getLogger(__name__)

Content = Literal["full", "hash", "none"]
CONTENTS: tuple[Content, ...] = ("full", "hash", "none")

#: What Langfuse takes for the name of an environment.
_ENVIRONMENT = re.compile(r"(?!langfuse)[a-z0-9_-]{1,40}")

#: Most spans of a request.
MAX_SPANS = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """Where traces go and what is in them.

    Attributes:
        base_url: Of Langfuse, without a slash at its end.
        public_key: Of the project.
        secret_key: To it.
        environment: Name that Langfuse groups traces by; "" for its default.
        release: Version of what runs, such as the image's tag; "" for none.
        timeout_s: Seconds until a request to Langfuse is given up; it is repeated with the same ids.
        sample_rate: Share of the rows that are traced, 0 to 1; rows that went wrong always are.
        flush_at: Rows of a request, at most.
        flush_interval_s: Seconds that a row waits for others to share its request.
        content: What of prompts and answers is sent: all, their SHA-256, or nothing.
        scores: Whether outcomes are sent as scores, too.
    """

    base_url: str
    public_key: str
    secret_key: str = dataclasses.field(repr=False)
    environment: str = ""
    release: str = ""
    timeout_s: float = 30.0
    sample_rate: float = 1.0
    flush_at: int = MAX_SPANS
    flush_interval_s: float = 5.0
    content: Content = "full"
    scores: bool = False

    def __post_init__(self) -> None:
        if self.content not in CONTENTS:
            raise SettingsError(f"trace content must be one of {', '.join(CONTENTS)}, found {self.content!r}")
        if not 0 <= self.sample_rate <= 1:
            raise SettingsError(f"the share of traced rows must be from 0 to 1, found {self.sample_rate:g}")

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str],
        *,
        sample_rate: float | None = None,
        content: Content = "full",
        scores: bool = False,
    ) -> "TraceSettings | None":
        """The settings in the variables that Langfuse's own SDK reads; an empty one is not set.

        What cannot be used is told in a `tracing.setting` event and takes its default, or tracing is off.

        Args:
            environ: The environment.
            sample_rate: Stands before LANGFUSE_SAMPLE_RATE.
            content: See the class.
            scores: Likewise.

        Returns:
            None when tracing is off: no keys, LANGFUSE_TRACING_ENABLED=false, or settings that cannot be used.

        Raises:
            SettingsError: an argument (not a variable) is out of its range.
        """
        read = _Variables(environ)
        public, secret = read.text("LANGFUSE_PUBLIC_KEY"), read.text("LANGFUSE_SECRET_KEY")
        enabled = read.text("LANGFUSE_TRACING_ENABLED").lower() not in ("false", "0", "no", "off")
        if not enabled or not (public or secret):
            return None
        try:
            base_url = _base_url(read)
            _check_keys(public, secret)
        except SettingsError as error:
            emit(logger, "tracing.setting", reason=str(error), then="tracing is off")
            return None
        rate = read.number("LANGFUSE_SAMPLE_RATE", 1.0, low=0.0, high=1.0)
        return cls(
            base_url=base_url,
            public_key=public,
            secret_key=secret,
            environment=read.environment(),
            release=read.text("LANGFUSE_RELEASE")[:200],
            timeout_s=read.number("LANGFUSE_TIMEOUT", 30.0, low=0.1, high=600.0),
            sample_rate=rate if sample_rate is None else sample_rate,
            flush_at=int(read.number("LANGFUSE_FLUSH_AT", MAX_SPANS, low=1, high=MAX_SPANS)),
            flush_interval_s=read.number("LANGFUSE_FLUSH_INTERVAL", 5.0, low=0.0, high=600.0),
            content=content,
            scores=scores,
        )


class _Variables:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        found = self.text(name)
        if not found:
            return default
        try:
            value = float(found)
        except ValueError:
            value = math.nan
        if low <= value <= high:
            return value
        self._tell(name, f"must be a number from {low:g} to {high:g}, found {found!r}", f"{default:g} is used")
        return default

    def environment(self) -> str:
        found = self.text("LANGFUSE_TRACING_ENVIRONMENT")
        if not found or _ENVIRONMENT.fullmatch(found):
            return found
        rule = "must be at most 40 of a-z, 0-9, - and _ and not begin with langfuse"
        self._tell("LANGFUSE_TRACING_ENVIRONMENT", f"{rule}, found {found!r}", "Langfuse's default is used")
        return ""

    @staticmethod
    def _tell(name: str, reason: str, then: str) -> None:
        emit(logger, "tracing.setting", name=name, reason=f"{name} {reason}", then=then)


def _base_url(read: _Variables) -> str:
    name = next((name for name in ("LANGFUSE_BASE_URL", "LANGFUSE_HOST") if read.text(name)), "")
    if not name:
        raise SettingsError(
            "the Langfuse keys are set but not its address. Set LANGFUSE_BASE_URL, such as http://langfuse-web:3000, "
            "or https://cloud.langfuse.com for Langfuse Cloud"
        )
    found = read.text(name)
    shown = repr(found.rpartition("@")[2])  # what may stand before it is a password
    if "://" not in found:
        raise SettingsError(f"{name} {shown} has no scheme: write http://… or https://…")
    try:
        parts = urlsplit(found)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"{name} {shown} cannot be read ({error}): write http://HOST:PORT") from error
    odd = any(mark.isspace() or not 32 < ord(mark) < 127 for mark in found)
    if parts.scheme not in ("http", "https") or not host or odd or "@" in parts.netloc or parts.query or parts.fragment:
        raise SettingsError(f"{name} {shown} is no address of a server: write http://HOST:PORT or https://HOST")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")


def _check_keys(public: str, secret: str) -> None:
    for name, key in (("LANGFUSE_PUBLIC_KEY", public), ("LANGFUSE_SECRET_KEY", secret)):
        if not key:
            raise SettingsError(f"{name} is not set, the other key is. Set both: they are in the project's settings")
        if not (key.isascii() and key.isprintable()) or (name == "LANGFUSE_PUBLIC_KEY" and ":" in key):
            raise SettingsError(f"{name} holds characters that no key has, such as a line break. Set it anew")
