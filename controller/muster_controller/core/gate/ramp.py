"""The ramp: how large the next wave may be, given what is known of the failure rate (F5). Decides no verdict.

Confidence bounds on a share that hold at every look, by inverting a beta-binomial mixture with Jeffreys' prior:
`Be(1/2 + f, 1/2 + n - f) / (Be(1/2, 1/2) p^f (1 - p)^(n - f))` is a test martingale under p (Ville 1939; Howard and
Ramdas, arXiv 1810.08240), so the p at which it has never reached 1/alpha contain the truth with 1 - alpha.
"""

from math import floor, lgamma, log, log1p, pi

_PRECISION = 1e-6


def failure_upper(bad: int, number: int, alpha: float) -> float:
    """Return a bound that the failure rate is below, at every look, with probability 1 - alpha; 1 for no devices."""
    if bad >= number:
        return 1.0
    low, high = bad / number, 1.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if _evidence_against(middle, bad, number) < -log(alpha):
            low = middle
        else:
            high = middle
    return high


def failure_lower(bad: int, number: int, alpha: float) -> float:
    """Return a bound that the failure rate is above, at every look, with probability 1 - alpha; 0 for no devices."""
    return 1.0 - failure_upper(number - bad, number, alpha)


def next_wave(
    before: int,
    treated_bad: int,
    treated: int,
    controls_bad: int,
    controls: int,
    *,
    factor: float = 4.0,
    harm_max: float = 10.0,
    alpha: float = 0.05,
    e: float = 1.0,
    smallest: int = 5,
) -> int:
    """Return the number of devices of the next wave, >= 1: min(factor * before, harm_max / (U - L)) / max(1, e).

    U bounds the treated devices' failure rate from above, L that of the controls from below: at the worst rate that
    what was seen allows, a wave of this size causes `harm_max` failures more than would have happened anyway. Bounds
    alone tell a bad release late; the odds against it, where there are any, make the wave smaller at once.

    Args:
        before: Devices of the wave before, >= 1.
        factor: The growth that is allowed at most, > 0.
        harm_max: Excess failures that one is ready to cause by one wave, > 0.
        e: The evidence so far, `Evidence.e`, > 0.
        smallest: Devices that a wave has at least, as far as `factor` allows: smaller ones take long and tell little.
    """
    largest = max(1, floor(factor * before))
    excess = failure_upper(treated_bad, treated, alpha) - failure_lower(controls_bad, controls, alpha)
    allowed = largest if excess <= 0 else min(largest, harm_max / excess)
    return min(largest, max(smallest, floor(allowed / max(1.0, e))))


def _evidence_against(p: float, bad: int, number: int) -> float:
    """Return the log of the mixture's likelihood ratio to p, 0 < p < 1."""
    good = number - bad
    marginal = lgamma(bad + 0.5) + lgamma(good + 0.5) - lgamma(number + 1.0) - log(pi)  # Be(1/2, 1/2) = pi.
    return marginal - bad * log(p) - good * log1p(-p)
