"""Second chances, budgets and options: pure choices about rows that do not end ok."""

import json
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.batch.budgets import Budgets
from clients.batch.options import RunOptions, outcomes
from clients.batch.policies import BLANKS, Policies, first_payload
from clients.errors import SettingsError
from clients.records import ChatRequest, Outcome
from clients.tracing.settings import CONTENTS

SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


def request(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return ChatRequest(0, "row-0", "0" * 32, json.dumps(body, separators=(",", ":")).encode())


def second(policies: Policies, outcome: Outcome, **fields: Any) -> Any:
    payload = policies.second_payload(request(**fields), outcome)
    return None if payload is None else json.loads(payload)


class TestSecondChances:
    @pytest.mark.parametrize("outcome", list(Outcome))
    def test_without_a_policy_every_answer_stands(self, outcome: Outcome) -> None:
        assert second(Policies(), outcome) is None

    def test_a_row_cut_off_while_thinking_gets_more_room(self) -> None:
        again = second(Policies(reasoning_max_tokens=4096), Outcome.TRUNCATED_IN_REASONING, max_tokens=512)
        assert again["max_tokens"] == 4096

    def test_the_newer_name_of_the_limit_is_kept(self) -> None:
        policies = Policies(reasoning_max_tokens=4096)
        again = second(policies, Outcome.TRUNCATED_IN_REASONING, max_completion_tokens=512)
        assert again["max_completion_tokens"] == 4096
        assert "max_tokens" not in again

    def test_a_row_that_had_as_much_already_is_not_sent_again(self) -> None:
        assert second(Policies(reasoning_max_tokens=512), Outcome.TRUNCATED_IN_REASONING, max_tokens=512) is None

    def test_its_thinking_can_be_ended_instead(self) -> None:
        again = second(Policies(thinking_token_budget=100), Outcome.TRUNCATED_IN_REASONING, max_tokens=512)
        assert (again["thinking_token_budget"], again["max_tokens"]) == (100, 512)

    def test_only_the_outcomes_asked_for_are_sampled_again(self) -> None:
        policies = Policies(resample=frozenset({Outcome.EMPTY}))
        assert second(policies, Outcome.EMPTY) is not None
        assert second(policies, Outcome.SCHEMA_INVALID) is None

    @pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.REJECTED, Outcome.INVALID, Outcome.FILTERED])
    def test_what_another_sample_cannot_mend_is_refused(self, outcome: Outcome) -> None:
        with pytest.raises(SettingsError, match=outcome.value):
            Policies(resample=frozenset({outcome}))

    @pytest.mark.parametrize("name", ["reasoning_max_tokens", "thinking_token_budget"])
    def test_a_limit_is_at_least_one_token(self, name: str) -> None:
        with pytest.raises(SettingsError, match=name):
            Policies(**{name: 0})


class TestBlankLoops:
    def test_json_answers_are_ended_when_only_blanks_come(self) -> None:
        assert json.loads(first_payload(request(response_format=SCHEMA)))["stop"] == BLANKS

    @pytest.mark.parametrize(
        "fields", [{}, {"response_format": {"type": "text"}}, {"response_format": SCHEMA, "stop": ["x"]}]
    )
    def test_other_requests_are_sent_as_they_are(self, fields: dict[str, Any]) -> None:
        asked = request(**fields)
        assert first_payload(asked) == asked.payload


def exceeded(
    budgets: Budgets, *, rows: int = 10_000, tokens: int = 0, answer_s: float = 0.0, **counts: int
) -> str | None:
    return budgets.exceeded(
        outcomes=Counter(counts),
        rows=rows,
        output_tokens=tokens,
        last_error="http_404: no such model",
        answer_s=answer_s,
    )


class TestBudgets:
    def test_a_run_whose_first_rows_all_fail_stops_with_their_reason(self) -> None:
        reason = exceeded(Budgets(max_error_rate=0.2), failed=200)
        assert reason is not None
        assert "200" in reason
        assert "no such model" in reason

    def test_one_answer_among_them_is_enough_to_go_on(self) -> None:
        assert exceeded(Budgets(max_error_rate=0.2), failed=250, ok=1) is None

    def test_it_stops_as_soon_as_the_share_can_no_longer_be_kept(self) -> None:
        budgets = Budgets(max_error_rate=0.2)
        assert exceeded(budgets, failed=2000, ok=5000) is None
        assert "2001 of 10000" in (exceeded(budgets, failed=2001, ok=5000) or "")

    def test_a_rate_of_one_never_stops(self) -> None:
        assert exceeded(Budgets(), failed=9999) is None

    @given(st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 10_000))
    def test_truncated_answers_are_no_errors(self, ok: int, truncated: int, rows: int) -> None:
        assert exceeded(Budgets(max_error_rate=0.0), rows=rows, ok=ok, truncated=truncated) is None

    def test_tokens(self) -> None:
        assert exceeded(Budgets(max_output_tokens=100), tokens=99) is None
        assert "100" in (exceeded(Budgets(max_output_tokens=100), tokens=100) or "")

    def test_nothing_is_sent_that_could_not_be_back_before_the_deadline(self) -> None:
        soon = Budgets(deadline=time.time() + 60)
        assert exceeded(soon, answer_s=30) is None
        assert exceeded(soon, answer_s=90) == "the deadline is near"

    @pytest.mark.parametrize("wrong", [{"max_error_rate": 1.5}, {"max_error_rate": -0.1}, {"max_output_tokens": 0}])
    def test_values_out_of_range_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            Budgets(**wrong)


some_options = st.builds(
    RunOptions,
    retry=st.frozensets(st.sampled_from(list(Outcome))),
    resample=st.frozensets(st.sampled_from([Outcome.EMPTY, Outcome.TRUNCATED])),
    reasoning_max_tokens=st.none() | st.integers(1, 100_000),
    raw_response=st.booleans(),
    join_duplicates=st.booleans(),
    max_error_rate=st.floats(0, 1),
    time_limit_s=st.none() | st.floats(1, 1e6),
    max_output_tokens=st.none() | st.integers(1, 1 << 40),
    lengths_from=st.sampled_from(["", "s3://bucket/results.parquet"]),
    trace_content=st.sampled_from(CONTENTS),
    trace_sample_rate=st.none() | st.floats(0, 1),
    run_url=st.sampled_from(["", "https://kubeflow.example/_/pipeline/?ns=ml#/runs/details/{run}"]),
    metrics_port=st.none() | st.integers(0, 65535),
    pushgateway=st.sampled_from(["", "http://pushgateway:9091"]),
)


class TestOptions:
    @given(some_options)
    def test_they_travel_as_json(self, options: RunOptions) -> None:
        assert RunOptions.from_json(json.loads(json.dumps(options.to_json()))) == options

    def test_defaults_take_no_room(self) -> None:
        assert RunOptions().to_json() == {}

    def test_a_time_limit_becomes_a_deadline_when_the_run_starts(self) -> None:
        started = RunOptions(time_limit_s=60).started(1000.0)
        assert (started.deadline, started.time_limit_s) == (1060.0, None)
        assert started.started(2000.0) == started

    @pytest.mark.parametrize(
        "wrong",
        [
            {"trace_content": "some"},
            {"trace_sample_rate": 1.5},
            {"metrics_port": 65536},
            {"pushgateway": "pushgateway:9091"},
            {"pushgateway": "http://me:secret@pushgateway:9091"},
            {"run_url": "http://[broken"},
        ],
    )
    def test_what_others_see_is_checked_at_the_start(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            RunOptions.from_json(wrong)

    def test_an_unknown_name_is_told_with_the_known_ones(self) -> None:
        with pytest.raises(SettingsError, match=r"unknown option 'retrys'; known are .*retry"):
            RunOptions.from_json({"retrys": "failed"})

    def test_outcomes_are_words_divided_by_commas(self) -> None:
        assert outcomes("truncated, rejected,", "--retry") == {Outcome.TRUNCATED, Outcome.REJECTED}
        with pytest.raises(SettingsError, match="--retry: 'broken' is no outcome; outcomes are ok, truncated"):
            outcomes("broken", "--retry")

    @given(st.lists(st.integers(1, 1000), min_size=1, max_size=20), st.integers(1, 100_000))
    def test_shards_share_what_all_may_spend(self, parts: list[int], most: int) -> None:
        options = RunOptions(max_output_tokens=most)
        shares = [options.of_part(rows, sum(parts)).max_output_tokens or 0 for rows in parts]
        assert min(shares) >= 1
        assert most - len(parts) <= sum(shares) <= most + len(parts)
