"""What noise costs and how much of it there is: zero-concentrated differential privacy, in integers where it is kept.

A device has RHO_DAY of rho a day. Each of RELEASES_A_DAY periods takes its part of that, each kind its part of the
period by `WEIGHTS`. Money is counted in whole coins, and so is rho here: in 10^-9, rounded so that what is charged is
never less than what the noise lets through.

Sources: Bun and Steinke 2016 (zCDP); Canonne, Kamath and Steinke, arXiv 2004.00010 (that the discrete Gaussian costs
what the continuous one does, theorem 14; the tight conversion, corollary 13). Pure.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

from muster_shared.metrics import RELEASES_A_DAY, UNITS, WEIGHTS, Kind

NANO: Final = 10**9
_SIGMA_STEPS: Final = 16  # Sigma is rounded up to a 16th of a unit: the sampler's numbers then fit a machine word.
_SENSITIVITY_SQUARED: Final = 2 * UNITS**2  # All units of a device in one place instead of another.
_PARTS: Final[Mapping[Kind, int]] = {kind: round(share * 100) for kind, share in WEIGHTS.items()}

assert sum(_PARTS.values()) == 100
assert all(math.isclose(_PARTS[kind] / 100, share) for kind, share in WEIGHTS.items()), "weights are hundredths"


def budget_nano(rho_day: float) -> int:
    """Return rho of a device and day, in 10^-9."""
    return int(Fraction(str(rho_day)) * NANO)


def release_nano(rho_day: float) -> int:
    """Return what publishing the sums of one period costs, in 10^-9; RELEASES_A_DAY times that is within the day's."""
    return budget_nano(rho_day) // RELEASES_A_DAY


def noise_sigma(kind: Kind, release: int) -> Fraction:
    """Return the standard deviation of the noise on each number of `kind`, in units, as it is drawn.

    Args:
        release: what the period costs, > 0: `release_nano`.
    """
    rho = Fraction(release * _PARTS[kind], 100 * NANO)
    variance = Fraction(_SENSITIVITY_SQUARED, 2) / rho  # rho = sensitivity^2 / (2 sigma^2)
    steps_squared = variance * _SIGMA_STEPS**2
    steps = math.isqrt(math.ceil(steps_squared))
    return Fraction(steps if steps * steps >= steps_squared else steps + 1, _SIGMA_STEPS)


def rho_of(kind: Kind, sigma: Fraction) -> Fraction:
    """Return what one release of `kind` with noise of `sigma` costs: at most what `noise_sigma` was given for it."""
    return Fraction(_SENSITIVITY_SQUARED) / (2 * sigma**2)


def eps_tight(rho: float, delta: float) -> float:
    """Return the smallest eps for which rho-zCDP is known to imply (eps, delta) (arXiv 2004.00010, corollary 13).

    Below `muster_shared.metrics.eps`, which is what is published: that one anybody can check on paper.
    """
    if rho == 0:
        return 0.0

    def at(log_a: float) -> float:  # For alpha = 1 + e^log_a; every alpha gives a valid eps.
        less = math.exp(log_a)
        alpha = 1 + less
        return alpha * rho - (math.log(delta) + math.log(alpha)) / less + math.log(less / alpha)

    low, high = math.log(1e-6), math.log(1e9)
    for _ in range(200):  # It falls, then rises.
        third = (high - low) / 3
        if at(low + third) < at(high - third):
            high -= third
        else:
            low += third
    return max(0.0, at((low + high) / 2))
