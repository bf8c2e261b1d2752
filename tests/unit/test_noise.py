"""The exact samplers: what they draw against what they should, with seeds; and the operating system's randomness."""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction

import pytest

from muster_controller.mixer.noise import OsRandom, bernoulli_exp, discrete_gaussians, discrete_laplace

DRAWS = 40_000


def chi_squared(drawn: Mapping[int, int], weight: Callable[[int], float]) -> float:
    """How far counts are from the probabilities proportional to `weight`, in standard deviations of chi-squared.

    Places expected less than 20 times are one; Wilson and Hilferty's cube root makes it normal.
    """
    number = sum(drawn.values())
    span = range(-2000, 2001)
    total = sum(map(weight, span))
    expected = {one: number * weight(one) / total for one in span}
    often = [one for one in span if expected[one] >= 20]
    rest_expected = number - sum(expected[one] for one in often)
    rest = number - sum(drawn.get(one, 0) for one in often)
    square = sum((drawn.get(one, 0) - expected[one]) ** 2 / expected[one] for one in often)
    freedom = len(often) - 1
    if rest_expected >= 20:
        square += (rest - rest_expected) ** 2 / rest_expected
        freedom += 1
    spread = 2 / (9 * freedom)
    return float(((square / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(2), Fraction(625, 16), Fraction(40 * 40)])
def test_a_discrete_gaussian_has_the_probabilities_of_one(variance: Fraction) -> None:
    drawn = Counter(discrete_gaussians(variance, DRAWS, random.Random(7).randrange))

    assert chi_squared(drawn, lambda x: math.exp(-x * x / (2 * float(variance)))) < 4


@pytest.mark.parametrize("scale", [1, 3, 40])
def test_a_discrete_laplace_has_the_probabilities_of_one(scale: int) -> None:
    below = random.Random(7).randrange

    drawn = Counter(discrete_laplace(scale, below) for _ in range(DRAWS))

    assert chi_squared(drawn, lambda x: math.exp(-abs(x) / scale)) < 4


def test_the_test_of_probabilities_sees_noise_that_is_five_percent_too_small() -> None:
    variance = Fraction(40 * 40)

    drawn = Counter(discrete_gaussians(variance * Fraction(90, 100), DRAWS, random.Random(7).randrange))

    assert chi_squared(drawn, lambda x: math.exp(-x * x / (2 * float(variance)))) > 4


@pytest.mark.parametrize(("above", "under"), [(0, 1), (1, 7), (1, 1), (5, 2), (9, 1)])
def test_bernoulli_exp_holds_as_often_as_the_exponential_says(above: int, under: int) -> None:
    below = random.Random(3).randrange
    share = math.exp(-above / under)

    held = sum(bernoulli_exp(above, under, below) for _ in range(DRAWS))

    assert abs(held - DRAWS * share) <= 4 * math.sqrt(DRAWS * share * (1 - share)) + 1e-9


@pytest.mark.parametrize("n", [1, 2, 3, 1000, (1 << 63) + 1, 1 << 64, 3 << 70, (1 << 130) + 7])
def test_randomness_of_the_system_is_spread_evenly_below_any_number(n: int) -> None:
    below = OsRandom()

    drawn = [below(n) for _ in range(4000)]

    assert all(0 <= one < n for one in drawn)
    thirds = Counter(one * 3 // n for one in drawn)
    if n >= 3:
        assert all(abs(thirds[third] - 4000 / 3) < 6 * math.sqrt(4000 * 2 / 9) for third in range(3))


def test_randomness_of_the_system_is_used_once() -> None:
    below = OsRandom()

    drawn = [below(1 << 128) for _ in range(5000)]

    assert len(set(drawn)) == len(drawn)
