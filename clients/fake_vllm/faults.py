"""Which fault a request meets: a pure function of the seed, the request's text and how often it has come before."""

import dataclasses
import itertools
from bisect import bisect_right

from clients.errors import SettingsError
from clients.fake_vllm.draws import uniform

#: Every kind and what it does.
KINDS = {
    "http_500": "HTTP 500 at once",
    "http_502": "HTTP 502 at once, in a proxy's HTML",
    "http_503": "HTTP 503 at once, without Retry-After",
    "http_504": "HTTP 504 at once, in a proxy's HTML",
    "http_429": "HTTP 429 at once, with Retry-After: 1",
    "reset": "the whole generation, half of the answer, then RST",
    "slow_reset": "half of the generation, then RST before any byte",
    "truncated": "Content-Length promises more than comes, then FIN",
    "hang": "never answers, and holds no slot",
    "stall": "half of the answer, then silence on an open connection",
    "bad_json": "a complete answer that is not JSON",
    "no_choices": "a complete answer with choices: []",
    "idle_close": "a good answer, then the connection closes unannounced",
    "reject": "HTTP 400 for this text, for ever",
}

#: Kinds that are nothing but a status.
STATUSES = {"http_500": 500, "http_502": 502, "http_503": 503, "http_504": 504, "http_429": 429}

_REJECT = "reject"


@dataclasses.dataclass(frozen=True, slots=True)
class FaultPlan:
    """Faults by chance.

    Attributes:
        seed: Another seed, other victims.
        shares: Probability of each kind, for one request.
        attempts: Only so many first requests for a text can meet a fault, so that every row is answered in the end;
            `reject` alone does not heed it.
    """

    seed: int
    shares: dict[str, float] = dataclasses.field(default_factory=dict)
    attempts: int = 2
    _kinds: tuple[str, ...] = dataclasses.field(init=False, default=())
    _bounds: tuple[float, ...] = dataclasses.field(init=False, default=())

    def __post_init__(self) -> None:
        kinds = tuple(kind for kind in self.shares if kind != _REJECT)
        object.__setattr__(self, "_kinds", kinds)
        object.__setattr__(self, "_bounds", tuple(itertools.accumulate(self.shares[kind] for kind in kinds)))

    def fault_of(self, mark: bytes, earlier: int) -> str | None:
        """The kind that a request meets, or None.

        Args:
            mark: Digest of the request's text.
            earlier: How many requests with this text were considered before.
        """
        if _REJECT in self.shares and uniform(self.seed, b"reject", mark) < self.shares[_REJECT]:
            return _REJECT
        if not self._kinds or earlier >= self.attempts:
            return None
        place = bisect_right(self._bounds, uniform(self.seed, b"fault", mark, earlier))
        return self._kinds[place] if place < len(self._kinds) else None


def parse_faults(text: str) -> dict[str, float]:
    """Read `kind:share,kind:share`; `all:share` stands for every kind with that share each.

    Raises:
        SettingsError: an unknown kind, or a share that is no probability.
    """
    shares: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, _, number = part.partition(":")
        if kind != "all" and kind not in KINDS:
            raise SettingsError(f"--faults {part!r}: no such kind; known are all, {', '.join(KINDS)}")
        try:
            share = float(number)
        except ValueError:
            raise SettingsError(f"--faults {part!r}: expected KIND:SHARE, such as {kind}:0.02") from None
        if not 0 <= share <= 1:
            raise SettingsError(f"--faults {part!r}: a share lies between 0 and 1")
        shares |= dict.fromkeys(KINDS, share) if kind == "all" else {kind: share}
    if (total := sum(share for kind, share in shares.items() if kind != _REJECT)) > 1 + 1e-9:
        raise SettingsError(
            f"--faults: the shares add up to {total:g}; a request meets one fault at most, so 1 is the end"
        )
    return shares
