"""One bit from one probation window: the exact tail, and what it makes of the counts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom  # type: ignore[import-untyped]  # SciPy ships no type information.

from muster_agent.core.health import TAIL, Health, binomial_at_least, judge
from muster_shared.bundle import Slo
from muster_shared.messages import WindowReport

SLO = Slo(latency_ms_p95=10.0, error_rate=0.01, accuracy=0.96)


@given(
    trials=st.integers(1, 2000), share=st.floats(0, 1), p=st.one_of(st.floats(1e-6, 1 - 1e-6), st.sampled_from([0, 1]))
)
@settings(max_examples=300, deadline=None)
def test_the_tail_is_the_binomial_one(trials: int, share: float, p: float) -> None:
    hits = round(share * trials)

    tail = binomial_at_least(hits, trials, p)

    assert tail == pytest.approx(float(binom.sf(hits - 1, trials, p)), abs=1e-9)


def test_a_large_window_is_judged_like_a_scaled_one() -> None:
    assert binomial_at_least(0, 1_000_000, 0.01) == 1.0
    assert binomial_at_least(10_000, 1_000_000, 0.01) > TAIL
    assert binomial_at_least(30_000, 1_000_000, 0.01) < TAIL


def test_one_wrong_of_three_is_no_evidence_and_ten_of_sixty_are() -> None:
    few = judge(WindowReport(seconds=60, requests=100, labelled=3, right=2), SLO, 10)
    many = judge(WindowReport(seconds=60, requests=100, labelled=60, right=50), SLO, 10)

    assert few.health is Health.GOOD
    assert many.health is Health.BAD


def test_an_error_against_a_claim_of_none_is_bad_even_in_a_short_window() -> None:
    verdict = judge(WindowReport(seconds=60, requests=0, errors=1), Slo(error_rate=0.0), 10)

    assert verdict.health is Health.BAD


def test_an_error_within_the_claim_is_not_bad() -> None:
    verdict = judge(WindowReport(seconds=60, requests=199, errors=1, latency_ms_p95=1.0), SLO, 10)

    assert verdict.health is Health.GOOD


def test_a_slow_window_is_bad_once_there_is_enough_traffic() -> None:
    too_few = judge(WindowReport(seconds=60, requests=9, latency_ms_p95=99.0), SLO, 10)
    enough = judge(WindowReport(seconds=60, requests=10, latency_ms_p95=99.0), SLO, 10)

    assert too_few.health is Health.TOO_LITTLE
    assert enough.health is Health.BAD


def test_a_window_without_labels_is_not_judged_by_accuracy() -> None:
    verdict = judge(WindowReport(seconds=60, requests=10, labelled=0, latency_ms_p95=1.0), SLO, 10)

    assert verdict.health is Health.GOOD


@given(requests=st.integers(20, 400))
@settings(max_examples=50, deadline=None)
def test_a_device_that_runs_as_claimed_is_rarely_called_bad(requests: int) -> None:
    # P(bad) <= TAIL by construction: the count that is called bad has a tail below TAIL under the claim itself.
    errors = next(k for k in range(requests + 1) if binomial_at_least(k, requests, SLO.error_rate) < TAIL)

    assert float(binom.sf(errors - 1, requests, SLO.error_rate)) < TAIL
    assert judge(WindowReport(seconds=60, requests=requests - errors, errors=errors), SLO, 1).health is Health.BAD
    assert (
        judge(
            WindowReport(seconds=60, requests=requests - errors + 1, errors=errors - 1, latency_ms_p95=1.0), SLO, 1
        ).health
        is Health.GOOD
    )
