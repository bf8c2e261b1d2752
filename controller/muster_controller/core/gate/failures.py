"""Failures: treated devices against those held back at the same instant (F1), and against an objective (F2).

F1 asks, given a bad outcome, whose it was: nothing that befalls both arms alike moves it. F2 asks whether the share of
bad outcomes is above p0; it is for waves that have few controls. Pending devices count as good (docs/decisions/0003).
Lindon and Malek, NeurIPS 2022.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from math import log1p

from muster_controller.core.gate.mixtures import GRID, above, mixture, shares
from muster_controller.core.gate.strata import Stratum

# Beta(2, 3) over x: with ten controls for each treated device most weight is on rates three to ten times worse, so that
# 1 % -> 5 % is found almost as early as if one had known what to look for. Of 1 % -> 2 %, seven in ten are found
# within 2,020 devices; weights ~ 1 - x would find three in four, and stop later where more is at stake.
_CONTROL_WEIGHTS = shares([x * (1 - x) ** 2 for x in GRID])


def against_controls(strata: Sequence[Stratum], tolerance: float = 1.0) -> float:
    """Return F1. A stratum without controls says nothing, whatever its outcomes.

    Args:
        tolerance: The relative worsening that is accepted, >= 1 (tau).
    """
    # Strata with the same share of treated devices have the same tables, and exponents are linear in the counts.
    treated_bad: defaultdict[float, int] = defaultdict(int)
    controls_bad: defaultdict[float, int] = defaultdict(int)
    for stratum in strata:
        if stratum.controls and stratum.treated and (stratum.treated_bad or stratum.controls_bad):
            rho = stratum.treated / (stratum.treated + stratum.controls)
            treated_bad[rho] += stratum.treated_bad
            controls_bad[rho] += stratum.controls_bad
    exponents = [0.0] * len(GRID)
    for rho in sorted(treated_bad):
        ours, theirs = treated_bad[rho], controls_bad[rho]
        gains, losses = _tables(rho, tolerance)
        exponents = [
            exponent + ours * gain + theirs * loss
            for exponent, gain, loss in zip(exponents, gains, losses, strict=True)
        ]
    return mixture(exponents, _CONTROL_WEIGHTS)


def against_objective(strata: Sequence[Stratum], p0: float) -> float:
    """Return F2 on all treated devices of `strata`, 0 < p0 < 1."""
    return above(sum(stratum.treated_bad for stratum in strata), sum(stratum.treated for stratum in strata), p0)


@lru_cache(maxsize=4096)
def _tables(rho: float, tolerance: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what one bad treated device, and one bad control, add to the exponent of every alternative.

    theta = rho + (1 - rho) x is the treated arm's share of the bad outcomes; theta / rho and (1 - theta) / (1 - rho)
    are written so that a rho near 0 or 1 loses no digits.
    """
    rho = rho * tolerance / (rho * tolerance + 1 - rho)
    return tuple(log1p((1 - rho) * x / rho) for x in GRID), tuple(log1p(-x) for x in GRID)
