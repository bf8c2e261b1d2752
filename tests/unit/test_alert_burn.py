"""Burn rates: which windows alert, what is too little to say anything, and what is left of a budget."""

from collections.abc import Callable, Mapping

import pytest

from muster_controller.core.alerts.burn import (
    BAD_MIN,
    BUDGET_S,
    PACES,
    REQUESTS_MIN,
    WINDOWS,
    Indicator,
    Objective,
    Requests,
    assess,
    judge,
    rate,
)
from muster_controller.core.alerts.finding import Severity
from muster_shared.errors import WireError

HOUR_S = 3600
THREE_NINES = Objective("digits-up", "digits", Indicator.AVAILABILITY, 0.999)


def steadily(share: float, per_s: float = 10.0) -> Callable[[int], Requests]:
    """Return a stream of requests of which always the same share is bad."""
    return lambda window_s: Requests(int(window_s * per_s), round(window_s * per_s * share))


def in_windows(counts: Mapping[int, Requests]) -> Callable[[int], Requests]:
    return lambda window_s: counts.get(window_s, Requests())


@pytest.mark.parametrize(
    ("share", "severity", "long_s"),
    [
        (0.0145, Severity.PAGE, HOUR_S),
        (0.0065, Severity.PAGE, 6 * HOUR_S),
        (0.0011, Severity.TICKET, 72 * HOUR_S),
    ],
)
def test_each_pace_alerts_from_its_factor_on(share: float, severity: Severity, long_s: int) -> None:
    found = judge(THREE_NINES, steadily(share))

    assert found is not None
    assert (found.severity, found.lingers) == (severity, False)
    assert found.facts["long_s"] in (long_s, 6 * HOUR_S if severity is Severity.PAGE else long_s)


def test_a_model_that_keeps_its_objective_raises_nothing() -> None:
    assert judge(THREE_NINES, steadily(0.0005)) is None


def test_a_fault_that_is_over_alerts_no_more_although_the_hour_was_bad() -> None:
    over = in_windows({HOUR_S: Requests(36_000, 3600), 300: Requests(3000, 0)})

    assert judge(THREE_NINES, over) is None


def test_a_short_burst_in_a_good_hour_does_not_alert() -> None:
    burst = in_windows({HOUR_S: Requests(360_000, 300), 300: Requests(3000, 300)})

    assert judge(THREE_NINES, burst) is None


def test_no_traffic_is_no_violation() -> None:
    assert judge(THREE_NINES, lambda _window_s: Requests()) is None
    assert rate(Requests(), THREE_NINES) is None
    assert assess(THREE_NINES, lambda _window_s: Requests()).left is None


@pytest.mark.parametrize("counted", [Requests(REQUESTS_MIN - 1, REQUESTS_MIN - 1), Requests(1000, BAD_MIN - 1)])
def test_too_few_requests_say_nothing(counted: Requests) -> None:
    tight = Objective("digits-up", "digits", Indicator.AVAILABILITY, 0.9999)

    assert judge(tight, lambda _window_s: counted) is None


def test_a_rate_just_below_its_factor_lets_an_alert_linger_and_begins_none() -> None:
    found = judge(THREE_NINES, in_windows({HOUR_S: Requests(100_000, 1300), 300: Requests(8000, 104)}))

    assert found is not None
    assert found.lingers


def test_slow_answers_count_among_those_that_were_answered() -> None:
    fast = Objective("digits-fast", "digits", Indicator.LATENCY, 0.95)

    burn = assess(fast, lambda _window_s: Requests(1000, errors=200, slow=80))

    assert burn.rates[HOUR_S] == pytest.approx(0.1 / 0.05)
    assert (burn.requests, burn.bad) == (800, 80)


def test_the_budget_of_28_days_is_told_and_may_be_overdrawn() -> None:
    windows = {BUDGET_S: Requests(1_000_000, 250), HOUR_S: Requests()}

    assert assess(THREE_NINES, in_windows(windows)).left == pytest.approx(0.75)
    assert assess(THREE_NINES, in_windows({BUDGET_S: Requests(1000, 3)})).left == pytest.approx(-2.0)


def test_the_windows_are_those_of_the_workbook() -> None:
    assert [(pace.factor, pace.long_s, pace.short_s) for pace in PACES] == [
        (14.4, 3600, 300),
        (6.0, 21_600, 1800),
        (1.0, 259_200, 21_600),
    ]
    assert set(WINDOWS) >= {pace.long_s for pace in PACES} | {BUDGET_S}


@pytest.mark.parametrize("target", [1.0, 0.99999, 0.4, -1.0, float("nan")])
def test_a_target_that_nobody_can_keep_or_miss_is_refused(target: float) -> None:
    with pytest.raises(WireError, match="target"):
        Objective("digits-up", "digits", Indicator.AVAILABILITY, target)
