"""The gate's statistics: evidence that a release does harm, valid however often one looks.

An e-process E starts at 1 and is a test martingale while nothing is worse, so by Ville's inequality (1939)
P(E ever >= 1/alpha) <= alpha at any number of looks; an ordinary test loses its error rate when it is looked at after
every report. Two of them are averaged (an average of e-processes is one):

    F1  treated devices against those of the same class held back at the same instant: given a bad outcome, whose is it?
    F2  treated devices against an absolute objective p <= p0, for fleets (and last waves) with few controls.

Both are mixtures over 32 alternatives. Strata (wave, device class) multiply; the pooled evidence is averaged with the
mean over classes, so that harm confined to one class is found too. Waudby-Smith and Ramdas, arXiv 2010.09686; Lindon
and Malek, NeurIPS 2022.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import exp, log, log1p

ALTERNATIVES = 32
HOLD = 3.0  # From here on nothing is promoted: E = 3 would be odds of 3 to 1 for a bettor against the release.

_GRID = [(j + 0.5) / ALTERNATIVES for j in range(ALTERNATIVES)]
_CONTROL_WEIGHTS = [1 - x for x in _GRID]  # w ~ 1 - theta, which is 1 - x in every stratum.
_SLO_WEIGHTS = [x**-0.5 * (1 - x) ** 2 for x in _GRID]  # Beta(1/2, 3): a breach of the objective is mostly slight.


class VerdictKind(Enum):
    PROMOTE = "promote"
    HOLD = "hold"
    ABORT = "abort"


@dataclass(frozen=True)
class Stratum:
    """What happened in one wave to one device class. Pending treated devices count as good: see `evidence`."""

    wave: int
    device_class: str
    treated: int
    treated_bad: int
    controls: int
    controls_bad: int


@dataclass(frozen=True)
class Evidence:
    """E and everything that it was computed from; anyone can compute it again from `strata`."""

    e: float
    e_controls: float
    """F1, pooled."""
    e_objective: float
    """F2, pooled."""
    e_classes: Mapping[str, float]
    strata: Sequence[Stratum]


def evidence(
    strata: Sequence[Stratum], *, failure_objective: float, tolerance: float = 1.0, has_controls: bool = True
) -> Evidence:
    """Return the evidence that the treated arm is worse.

    Devices that have not reported are counted as good. Failures report faster than successes, so leaving them out would
    inflate F2; counting them as good gives a lower bound of what E will be when they have reported, which is valid.

    Args:
        failure_objective: p0 of F2, 0 < p0 < 1.
        tolerance: The relative worsening that is accepted, >= 1 (tau of F1).
        has_controls: False when it was settled before the first wave that there can be none; F2 then stands alone.
    """
    classes = sorted({stratum.device_class for stratum in strata})
    by_class = {
        name: _mix(
            [stratum for stratum in strata if stratum.device_class == name], failure_objective, tolerance, has_controls
        )
        for name in classes
    }
    pooled = _mix(strata, failure_objective, tolerance, has_controls)
    mean_class = sum(by_class.values()) / len(by_class) if by_class else 1.0
    return Evidence(
        e=(pooled + mean_class) / 2,
        e_controls=against_controls(strata, tolerance),
        e_objective=against_objective(strata, failure_objective),
        e_classes=by_class,
        strata=tuple(strata),
    )


def against_controls(strata: Sequence[Stratum], tolerance: float = 1.0) -> float:
    """Return F1. A stratum without controls says nothing, whatever its outcomes."""
    exponents = [0.0] * ALTERNATIVES
    for stratum in strata:
        if not stratum.controls or not stratum.treated:
            continue
        rho = stratum.treated / (stratum.treated + stratum.controls)
        rho = rho * tolerance / (rho * tolerance + 1 - rho)
        for j, x in enumerate(_GRID):
            # theta = rho + (1 - rho) x: the treated arm's share of the bad outcomes under alternative j.
            exponents[j] += stratum.treated_bad * log(1 + (1 - rho) * x / rho)
            exponents[j] += stratum.controls_bad * log1p(-x)
    return _mixture(exponents, _CONTROL_WEIGHTS)


def against_objective(strata: Sequence[Stratum], p0: float) -> float:
    """Return F2 on all treated devices of `strata`."""
    bad = sum(stratum.treated_bad for stratum in strata)
    good = sum(stratum.treated for stratum in strata) - bad
    exponents = [bad * log((p0 + (1 - p0) * x) / p0) + good * log1p(-x) for x in _GRID]
    return _mixture(exponents, _SLO_WEIGHTS)


def _mix(strata: Sequence[Stratum], p0: float, tolerance: float, has_controls: bool) -> float:
    if not has_controls:
        return against_objective(strata, p0)
    return (against_controls(strata, tolerance) + against_objective(strata, p0)) / 2


def _mixture(exponents: Sequence[float], weights: Sequence[float]) -> float:
    return sum(weight * exp(min(exponent, 700.0)) for weight, exponent in zip(weights, exponents, strict=True)) / sum(
        weights
    )
