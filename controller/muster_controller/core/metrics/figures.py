"""Figures: a value with the interval that noise and sample leave, and with what it cost.

A figure whose interval says nothing has no value: unknown is None, never 0.
"""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final

from muster_controller.core.metrics.sums import Pool
from muster_shared.metrics import eps

CONFIDENCE: Final = 0.95
Z: Final = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
USELESS: Final = 0.5
"""An interval of a share that is wider says nothing: half of all that it could be."""
SEEN: Final = 4.0
"""Standard deviations of noise that a total must have above 0 before anything is divided by it."""
P_MIN: Final = 1e-300
"""Below it floats end, and the normal approximation long before."""
_NORMAL: Final = NormalDist()


@dataclass(frozen=True)
class Figure:
    """One number, as it is known.

    Attributes:
        value: None: unknown.
        low, high: the 95 % interval, from noise and sample; None with `value`, or where that side is open.
        devices: the most that were in it in any one period, exact.
        periods: windows of one device that may be in it.
        rho: that it cost each device at most, together with all other figures of the same kind and periods.
        noise: standard deviation from the privacy noise alone, in the figure's unit.
        sample: standard deviation from there being only so many devices, worst case: each gave all it had to one class.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    devices: int = 0
    periods: int = 0
    rho: float = 0.0
    noise: float | None = None
    sample: float | None = None

    @property
    def eps(self) -> float:
        """Of (eps, 1e-6) differential privacy, that `rho` implies."""
        return eps(self.rho) if self.rho else 0.0

    @property
    def is_known(self) -> bool:
        return self.value is not None

    @property
    def variance(self) -> float:
        """Of `value`, of noise and sample together. Infinite where it is unknown."""
        if self.noise is None or self.sample is None:
            return math.inf
        return self.noise**2 + self.sample**2


def unknown(pool: Pool) -> Figure:
    """Return what stands where nothing can be said, with what was paid for it."""
    return Figure(None, devices=pool.devices, periods=pool.periods, rho=pool.rho)


def share(value: float, noise_variance: float, sample_variance: float, pool: Pool) -> Figure:
    """Return the figure of a share 0..1; `value` may be beyond, by noise. Unknown where the interval is useless."""
    spread = Z * math.sqrt(noise_variance + sample_variance)
    if not math.isfinite(value + spread) or 2 * spread > USELESS:
        return unknown(pool)
    low, high = _cut(value - spread), _cut(value + spread)
    return replace(
        unknown(pool),
        value=_cut(value),
        low=low,
        high=high,
        noise=math.sqrt(noise_variance),
        sample=math.sqrt(sample_variance),
    )


def above(z: float) -> float:
    """Return the chance that a standard normal number is above `z`, P_MIN at least."""
    return max(_NORMAL.cdf(-z), P_MIN)


def e_value(p: float) -> float:
    """Return the evidence that a p-value is worth: integral of k p^(k-1) over k in 0..1 (Vovk and Wang 2021, eq. 2)."""
    if p <= 0:
        return math.inf
    if p >= 1:
        return 0.5  # The limit.
    logarithm = math.log(p)
    if logarithm > -1e-4:
        return 0.5
    return (1 - p + p * logarithm) / (p * logarithm * logarithm)


def _cut(number: float) -> float:
    return min(1.0, max(0.0, number))
