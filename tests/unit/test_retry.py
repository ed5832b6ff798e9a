import random

import pytest

from clients.batch.retry import RetryPolicy, is_retryable_status
from clients.errors import ChatError, OverloadedError, RejectedError, SettingsError, TransientError

POLICY = RetryPolicy(max_attempts=4, max_refusals=6, first_delay_s=0.5, max_delay_s=1.5)


def delays(error: ChatError, attempts: int, refusals: int = 0) -> list[float | None]:
    return [POLICY.delay_s(error, attempts, refusals, random.Random(seed)) for seed in range(200)]


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_may_heal_by_itself_is_tried_again(status: int) -> None:
    assert is_retryable_status(status)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 451])
def test_what_the_request_itself_is_to_blame_for_is_not_tried_again(status: int) -> None:
    assert not is_retryable_status(status)


@pytest.mark.parametrize(("attempts", "ceiling"), [(1, 0.5), (2, 1.0), (3, 1.5)])
def test_the_wait_doubles_up_to_its_limit_and_is_never_less_than_half_of_it(attempts: int, ceiling: float) -> None:
    found = delays(TransientError("timeout", "late"), attempts)
    assert all(delay is not None and ceiling / 2 <= delay <= ceiling for delay in found)
    assert len(set(found)) > 100, "many rows must not come back at once"


def test_a_wait_the_server_asks_for_is_never_cut_short() -> None:
    found = delays(OverloadedError("http_429", "slow down", retry_after_s=7.0), 0, 1)
    assert all(delay is not None and 7.0 < delay <= 7.0 + 0.25 * 0.5 for delay in found)


def test_the_server_may_ask_for_no_wait_at_all() -> None:
    assert all(
        delay is not None and 0 < delay < 0.2
        for delay in delays(OverloadedError("http_503", "", retry_after_s=0), 0, 1)
    )


def test_after_the_last_attempt_the_row_is_given_up() -> None:
    assert delays(TransientError("timeout", "late"), 4)[0] is None
    assert delays(OverloadedError("http_503", "full", retry_after_s=0), 0, 6)[0] is None


def test_a_refusal_costs_no_attempt_and_its_wait_stays_short() -> None:
    found = delays(OverloadedError("http_503", "full"), 3, 5)
    assert all(delay is not None and 2.5 <= delay <= 5.0 for delay in found)


def test_a_rejected_request_is_given_up_at_once() -> None:
    assert delays(RejectedError("http_400", "bad"), 1)[0] is None


def test_a_thousandth_attempt_overflows_nothing() -> None:
    patient = RetryPolicy(max_attempts=100_000)
    assert patient.delay_s(TransientError("timeout", "late"), 900, 0, random.Random(0)) is not None


def test_no_attempt_at_all_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(SettingsError, match="must be at least 1, found 0"):
        RetryPolicy(max_attempts=0)
