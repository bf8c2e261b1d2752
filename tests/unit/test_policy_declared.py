"""What a release declares of its latency, set against the policy."""

import pytest

from muster_controller.core.policy import Policy, PolicyInvalid, Weights, check, with_declared_latency


@pytest.mark.parametrize(("before", "after"), [(None, 9.0), (5.0, 5.0), (5.0, 4.0), (5.0, 5.2)])
def test_a_release_that_declares_nothing_new_is_judged_as_written(before: float | None, after: float) -> None:
    assert with_declared_latency(Policy(), before, after) == (Policy(), "")


def test_a_release_that_declares_to_be_somewhat_slower_is_judged_by_what_comes_on_top() -> None:
    policy, said = with_declared_latency(Policy(), 10.0, 11.5)

    assert policy.latency_tolerance == pytest.approx(0.15)
    assert "tolerates 15%" in said
    check(policy)


def test_a_release_that_declares_to_be_much_slower_is_judged_by_its_objective_on_each_device() -> None:
    policy, said = with_declared_latency(Policy(), 5.0, 20.0)

    assert policy.weights == Weights(latency=0.0)
    assert "each device judges" in said
    check(policy)


def test_a_policy_of_latency_alone_falls_back_to_failures() -> None:
    only = Policy(weights=Weights(failures=0.0, latency=1.0, agreement=0.0))

    policy, _ = with_declared_latency(only, 5.0, 20.0)

    check(policy)
    assert policy.weights.failures == 1.0


def test_a_policy_that_does_not_judge_latency_stays_as_written() -> None:
    policy = Policy(weights=Weights(latency=0.0))

    assert with_declared_latency(policy, 5.0, 20.0) == (policy, "")


def test_what_nobody_would_measure_cannot_be_required() -> None:
    with pytest.raises(PolicyInvalid, match="no wave could ever pass"):
        check(Policy(metrics_required=("latency",), controls_per_device=0))
    with pytest.raises(PolicyInvalid, match="metrics_required names agreement"):
        check(Policy(metrics_required=("agreement",)))
    check(Policy(metrics_required=("latency",)))
