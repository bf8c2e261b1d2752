"""The ramp: bounds that hold at every look, and waves that never risk more than they may."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_controller.core.gate.ramp import failure_lower, failure_upper, next_wave

ALPHA = 0.05


def test_nothing_seen_bounds_nothing() -> None:
    assert failure_upper(0, 0, ALPHA) == 1.0
    assert failure_lower(0, 0, ALPHA) == 0.0


@given(st.integers(1, 3000), st.integers(0, 3000))
def test_bounds_enclose_what_was_seen_and_mirror_each_other(number: int, bad: int) -> None:
    bad = min(bad, number)

    low, high = failure_lower(bad, number, ALPHA), failure_upper(bad, number, ALPHA)

    assert 0 <= low <= bad / number + 1e-6
    assert bad / number - 1e-6 <= high <= 1
    assert low == pytest.approx(1 - failure_upper(number - bad, number, ALPHA))


@given(st.integers(1, 500), st.integers(0, 499))
def test_one_more_failure_raises_both_bounds(number: int, bad: int) -> None:
    bad = min(bad, number - 1)

    assert failure_upper(bad + 1, number, ALPHA) >= failure_upper(bad, number, ALPHA) - 1e-6
    assert failure_lower(bad + 1, number, ALPHA) >= failure_lower(bad, number, ALPHA) - 1e-6


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_looked_at_after_every_device_the_bounds_are_ever_wrong_with_a_chance_of_alpha_at_most(rate: float) -> None:
    alive = {0: 1.0}  # Failures so far -> chance of having come here with every bound right. Exact, no simulation.
    for number in range(1, 121):
        following: dict[int, float] = {}
        for bad, chance in alive.items():
            following[bad] = following.get(bad, 0.0) + chance * (1 - rate)
            following[bad + 1] = following.get(bad + 1, 0.0) + chance * rate
        alive = {
            bad: chance
            for bad, chance in following.items()
            if failure_lower(bad, number, ALPHA) <= rate <= failure_upper(bad, number, ALPHA)
        }

    assert sum(alive.values()) >= 1 - ALPHA


def test_a_quiet_first_wave_grows_as_far_as_its_few_devices_allow() -> None:
    assert next_wave(5, 0, 5, 0, 50) == 17  # Three and a half times: U is .58 after five devices.
    assert next_wave(20, 0, 2000, 20, 20_000) == 80  # Much is known: only the factor limits.


def test_failures_make_the_next_wave_smaller() -> None:
    well = next_wave(100, 1, 130, 13, 1300)
    ill = next_wave(100, 8, 130, 13, 1300)

    assert ill < well


def test_failures_that_controls_have_too_do_not_hold_the_ramp_back() -> None:
    alone = next_wave(400, 40, 800, 80, 8000)
    worse = next_wave(400, 40, 800, 8, 8000)

    assert alone > worse


def test_odds_against_the_release_shrink_the_wave_down_to_the_smallest() -> None:
    even = next_wave(100, 4, 130, 13, 1300, e=0.3)
    doubtful = next_wave(100, 4, 130, 13, 1300, e=4.0)
    hopeless = next_wave(100, 4, 130, 13, 1300, e=19.0)

    assert even == next_wave(100, 4, 130, 13, 1300)
    assert doubtful == even // 4
    assert hopeless == 5


@given(
    st.integers(1, 5000),
    st.integers(0, 5000),
    st.integers(0, 5000),
    st.integers(0, 5000),
    st.integers(0, 5000),
    st.floats(0.01, 1e6),
)
def test_a_wave_has_a_device_and_never_more_than_its_growth_and_its_harm_allow(
    before: int, bad: int, treated: int, controls_bad: int, controls: int, e: float
) -> None:
    bad, controls_bad = min(bad, treated), min(controls_bad, controls)

    size = next_wave(before, bad, treated, controls_bad, controls, factor=4.0, harm_max=10.0, e=e)

    excess = failure_upper(bad, treated, ALPHA) - failure_lower(controls_bad, controls, ALPHA)
    assert 1 <= size <= 4 * before
    assert size * excess <= 10.0 + 1e-6
    assert size >= min(4 * before, 5) or ceil(10 / excess) < 5
