"""What a run may spend: errors, time, tokens. A run that reaches a limit ends in good order with what it has."""

import dataclasses
import time
from collections import Counter

from clients.errors import SettingsError
from clients.records import ERROR_OUTCOMES

#: When all of so many first rows went wrong, the rest will too: a wrong model or parameter must not cost a night.
_FIRST_ROWS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budgets:
    """Limits of a run.

    Attributes:
        max_error_rate: Share of the rows, 0 to 1, that may go wrong; the run stops when it cannot be kept any more.
        deadline: Unix time at which it must have ended; None for no limit.
        max_output_tokens: Completion tokens of all rows together; None for no limit.
    """

    max_error_rate: float = 1.0
    deadline: float | None = None
    max_output_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_error_rate <= 1:
            raise SettingsError(f"max_error_rate must be between 0 and 1, found {self.max_error_rate:g}")
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise SettingsError(f"max_output_tokens must be at least 1, found {self.max_output_tokens}")

    def exceeded(
        self, *, outcomes: Counter[str], rows: int, output_tokens: int, last_error: str, answer_s: float
    ) -> str | None:
        """Why no further row should be sent, or None.

        Args:
            outcomes: Rows of this run by outcome.
            rows: Rows that the run has to do.
            output_tokens: Completion tokens so far.
            last_error: Reason of the last row that went wrong.
            answer_s: Seconds that an answer usually takes; a request sent later than that before the deadline is lost.
        """
        done, errors = outcomes.total(), sum(outcomes[outcome] for outcome in ERROR_OUTCOMES)
        if self.max_error_rate < 1 and errors:
            if errors == done >= _FIRST_ROWS:
                return f"all of the first {done} rows went wrong; the last: {last_error.rstrip('.')}"
            if errors > max(_FIRST_ROWS, self.max_error_rate * rows):
                return f"{errors} of {rows} rows went wrong, more than max_error_rate {self.max_error_rate:g} allows"
        if self.max_output_tokens is not None and output_tokens >= self.max_output_tokens:
            return f"{output_tokens} output tokens reached the limit of {self.max_output_tokens}"
        if self.deadline is not None and time.time() > self.deadline - answer_s:
            return "the deadline is near"
        return None
