"""Mixtures of likelihood ratios: the form that all of the gate's evidence has. Pure arithmetic in logarithms."""

from collections.abc import Sequence
from functools import lru_cache
from math import exp, log, log1p
from operator import mul

ALTERNATIVES = 32
GRID = tuple((j + 0.5) / ALTERNATIVES for j in range(ALTERNATIVES))
_LARGEST = 700.0  # e^709 is the largest double: evidence beyond e^700 is as good as certain.


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """Return `weights` scaled to sum to 1."""
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def mixture(exponents: Sequence[float], weights: Sequence[float]) -> float:
    """Return sum_j w_j exp(exponent_j), for weights that sum to 1; never inf."""
    if max(exponents) > _LARGEST:
        exponents = [min(exponent, _LARGEST) for exponent in exponents]
    total: float = sum(map(mul, weights, map(exp, exponents)))
    return total


# Beta(3/4, 4): a breach is mostly slight. Of the first five devices at 2 %, one bad gives 3.1 and two give 38.
_BREACH_WEIGHTS = shares([x**-0.25 * (1 - x) ** 3 for x in GRID])


def above(bad: int, number: int, p0: float) -> float:
    """Return the evidence that a share is above p0, from `bad` of `number` (F2).

    A mixture over the excess x = (p - p0) / (1 - p0).

    Args:
        p0: The objective, 0 < p0 < 1.
    """
    gains, losses = _breach_tables(p0)
    good = number - bad
    return mixture([bad * gain + good * loss for gain, loss in zip(gains, losses, strict=True)], _BREACH_WEIGHTS)


@lru_cache(maxsize=256)
def _breach_tables(p0: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(log((p0 + (1 - p0) * x) / p0) for x in GRID), tuple(log1p(-x) for x in GRID)
