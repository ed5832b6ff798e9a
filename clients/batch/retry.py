"""When to try again: a pure policy."""

import dataclasses
import random

from clients.errors import ChatError, OverloadedError, RejectedError, SettingsError

#: 4xx that another attempt can heal; every other 4xx is final for its row.
_RETRYABLE_4XX = frozenset({408, 409, 425, 429})


def is_retryable_status(status: int) -> bool:
    """Tell whether an HTTP status may heal by itself."""
    return status >= 500 or status in _RETRYABLE_4XX


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how long after a failure a row is sent again.

    Attributes:
        max_attempts: Requests per row that the server may have worked on.
        max_refusals: Times a row may meet a server that has no room (429, 503) while others are answered.
        first_delay_s: Longest wait before the second attempt; it doubles with every further one.
        max_delay_s: Longest wait of all, unless the server asks for more (Retry-After).
        max_refused_delay_s: The same after a refusal: there is room again as soon as another answer is done.
    """

    max_attempts: int = 6
    max_refusals: int = 12
    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    max_refused_delay_s: float = 5.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.max_refusals < 1:
            raise SettingsError(
                f"max_attempts and max_refusals must be at least 1, found {self.max_attempts} and {self.max_refusals}"
            )

    def delay_s(self, error: ChatError, attempts: int, refusals: int, rng: random.Random) -> float | None:
        """Seconds to wait before the next attempt, or None to give the row up.

        Args:
            error: What ended the last attempt.
            attempts: Attempts so far, the last included.
            refusals: Refusals so far, the last included.
            rng: Source of the jitter, which keeps many rows from coming back at once.
        """
        if isinstance(error, RejectedError) or attempts >= self.max_attempts or refusals >= self.max_refusals:
            return None
        refused = isinstance(error, OverloadedError)
        longest = self.max_refused_delay_s if refused else self.max_delay_s
        ceiling = min(longest, self.first_delay_s * 2.0 ** max(0, (refusals if refused else attempts) - 1))
        delay = ceiling * (0.5 + 0.5 * rng.random())
        asked = error.retry_after_s if isinstance(error, OverloadedError) else None
        return delay if asked is None else asked + 0.25 * delay
