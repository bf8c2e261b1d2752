"""The verdict on a trial: what a candidate may do otherwise, worse or slower on live inputs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from muster_agent.core.trial import LATENCIES_MIN, Passing, TrialReading, judge
from muster_shared.assignment import Trial

SHADOW = Trial(requests_min=50, seconds_max=600.0, disagreement_max=0.02, latency_ratio_max=1.5)
CANARY = changed(SHADOW, mode="canary", share=0.1)
AGREES = TrialReading(
    60.0, compared=100, answered=100, latency_ms_p95=1.0, serving_answered=100, serving_latency_ms_p95=1.0
)


def passing(trial: Trial, reading: TrialReading) -> Passing:
    return judge(trial, reading).passing


def test_it_is_undecided_until_there_are_enough_inputs_or_the_time_is_over() -> None:
    few = replace(AGREES, compared=49)

    assert passing(SHADOW, few) is Passing.UNDECIDED
    assert passing(SHADOW, replace(few, seconds=600.0)) is Passing.PASSES
    assert passing(changed(SHADOW, required=True), replace(few, seconds=600.0)) is Passing.FAILS


@pytest.mark.parametrize(("disagreed", "verdict"), [(2, Passing.PASSES), (3, Passing.FAILS)])
def test_a_candidate_may_answer_otherwise_as_often_as_is_allowed(disagreed: int, verdict: Passing) -> None:
    assert passing(SHADOW, replace(AGREES, disagreed=disagreed)) is verdict


def test_an_input_on_which_a_shadow_fails_is_answered_otherwise() -> None:
    found = judge(SHADOW, replace(AGREES, errors=4))

    assert found.passing is Passing.FAILS
    assert "4 of 104 live inputs answered otherwise, 4 of them not at all; 2.00% are allowed" in found.detail


def test_a_shadow_that_only_fails_is_not_taken_for_one_that_was_not_asked() -> None:
    broken = TrialReading(600.0, errors=10, serving_answered=10)

    assert passing(SHADOW, broken) is Passing.FAILS


def test_with_few_inputs_only_what_chance_does_not_explain_fails_a_trial_that_is_not_required() -> None:
    assert passing(SHADOW, TrialReading(600.0, compared=10, disagreed=1)) is Passing.PASSES
    assert passing(SHADOW, TrialReading(600.0, compared=10, disagreed=5)) is Passing.FAILS


def test_a_canary_is_compared_with_the_failures_of_what_serves() -> None:
    reading = TrialReading(60.0, answered=90, errors=10, serving_answered=900, serving_errors=100)

    assert passing(CANARY, reading) is Passing.PASSES
    assert passing(CANARY, replace(reading, serving_errors=0, serving_answered=1000)) is Passing.FAILS


def test_one_failure_of_a_canary_is_no_evidence() -> None:
    assert passing(CANARY, TrialReading(60.0, answered=99, errors=1, serving_answered=900)) is Passing.PASSES


def test_a_candidate_that_is_too_slow_fails() -> None:
    slow = replace(AGREES, latency_ms_p95=1.6)

    assert passing(SHADOW, slow) is Passing.FAILS
    assert passing(CANARY, slow) is Passing.FAILS
    assert passing(SHADOW, replace(slow, latency_ms_p95=1.5)) is Passing.PASSES


def test_a_p95_of_few_requests_says_nothing() -> None:
    slow = replace(AGREES, latency_ms_p95=9.0, answered=LATENCIES_MIN - 1)

    assert passing(SHADOW, slow) is Passing.PASSES


@given(
    trial=st.sampled_from([SHADOW, CANARY, changed(SHADOW, required=True), changed(CANARY, required=True)]),
    reading=st.builds(
        TrialReading,
        seconds=st.just(600.0),
        compared=st.integers(0, 200),
        disagreed=st.integers(0, 200),
        answered=st.integers(0, 200),
        errors=st.integers(0, 200),
        latency_ms_p95=st.one_of(st.none(), st.floats(0.001, 1e4)),
        serving_answered=st.integers(0, 2000),
        serving_errors=st.integers(0, 200),
        serving_latency_ms_p95=st.one_of(st.none(), st.floats(0.001, 1e4)),
    ),
)
def test_when_the_time_is_over_every_trial_is_decided(trial: Trial, reading: TrialReading) -> None:
    found = judge(trial, reading)

    assert found.passing is not Passing.UNDECIDED
    assert found.detail
