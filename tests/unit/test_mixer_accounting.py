"""What noise costs: the published figures, that rounding is never in our favour, and the tight conversion."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_controller.mixer.accounting import (
    NANO,
    budget_nano,
    eps_tight,
    noise_sigma,
    release_nano,
    rho_of,
)
from muster_shared.metrics import DELTA, RELEASES_A_DAY, RHO_DAY, Kind, eps, sigma


def test_the_published_eps_is_what_the_budget_gives() -> None:
    assert eps(RHO_DAY) == pytest.approx(2.45, abs=0.005)
    assert eps(30 * RHO_DAY) == pytest.approx(15.9, abs=0.05)


@given(rho_day=st.floats(1e-6, 0.1))
def test_a_day_of_releases_costs_no_more_than_the_day_has(rho_day: float) -> None:
    release = release_nano(rho_day)
    spent = sum((rho_of(kind, noise_sigma(kind, release)) for kind in Kind), Fraction())

    assert spent <= Fraction(release, NANO)
    assert RELEASES_A_DAY * release <= budget_nano(rho_day)
    assert spent >= Fraction(release, NANO) * Fraction(98, 100), "rounding up wastes little"


@pytest.mark.parametrize("kind", Kind)
def test_noise_is_what_the_contract_says_rounded_up(kind: Kind) -> None:
    ours = float(noise_sigma(kind, release_nano(RHO_DAY)))

    assert sigma(kind) <= ours <= sigma(kind) + 1 / 16


@given(rho=st.floats(1e-4, 20), delta=st.floats(1e-12, 1e-2))
def test_the_tight_eps_is_below_the_simple_one(rho: float, delta: float) -> None:
    assert 0 <= eps_tight(rho, delta) <= eps(rho, delta)


def test_the_tight_eps_is_that_of_the_paper() -> None:
    # Computed from corollary 13 by a grid of 10^6 alphas.
    assert eps_tight(RHO_DAY, DELTA) == pytest.approx(2.1419, abs=1e-3)
    assert eps_tight(0.0, DELTA) == 0
