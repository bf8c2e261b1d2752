"""The decision rules of rollout gates in the field, emulated from their documentation: what ours is measured against.

Pure functions of counts and samples; none of their code. The trap tests and the rollout benchmark share them.
"""

from collections.abc import Sequence
from math import erfc, isnan, sqrt

import numpy as np
from numpy.typing import NDArray

HAWKBIT_PERCENT = 2.0
AWS_PERCENT, AWS_MINIMUM = 2.0, 50
ARGO_P = 0.01


def hawkbit_aborts(errors: int, total: int, percent: float = HAWKBIT_PERCENT) -> bool:
    """hawkBit: error condition `errors / total > N %` of a group.

    Only devices that report an error count; one that says nothing stays RUNNING for ever (its issue 693).
    """
    return total > 0 and errors / total * 100 > percent


def aws_aborts(
    failed: int, timed_out: int, executed: int, percent: float = AWS_PERCENT, minimum: int = AWS_MINIMUM
) -> bool:
    """AWS IoT Jobs: abort criteria by percent, once a minimum of devices has executed; asked after every report."""
    return executed >= minimum and (failed + timed_out) / executed * 100 > percent


def mann_whitney_p(treated: NDArray[np.float64], controls: NDArray[np.float64]) -> float:
    """Return the one-sided p-value of "treated values are larger": normal approximation, ties and continuity corrected.

    Args:
        treated: float64 [n], without nan.
        controls: float64 [m], without nan.
    """
    if not len(treated) or not len(controls):
        return 1.0
    _, places, counts = np.unique(np.concatenate((treated, controls)), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return _mann_whitney(float(ranks[places[: len(treated)]].sum()), len(treated), len(controls), counts)


def mann_whitney_p_of_counts(treated_bad: int, treated: int, controls_bad: int, controls: int) -> float:
    """Return what `mann_whitney_p` says of outcomes that are 1 (bad) or 0, from their counts."""
    if not treated or not controls:
        return 1.0
    bad = treated_bad + controls_bad
    good = treated + controls - bad
    ranks = (treated - treated_bad) * (good + 1) / 2 + treated_bad * (good + (bad + 1) / 2)
    return _mann_whitney(ranks, treated, controls, np.array([good, bad]))


def kayenta_passes(treated: Sequence[float], controls: Sequence[float], p: float = ARGO_P) -> bool:
    """Kayenta with `nanStrategy=replace`: what is missing becomes 0, then Mann-Whitney on what that gives.

    Args:
        treated: Values of the metric, nan where a device gave none; none at all is one nan.
        controls: The same of devices held back.
    """
    ours, theirs = (
        np.array([0.0 if isnan(value) else value for value in (values or [float("nan")])])
        for values in (treated, controls)
    )
    return mann_whitney_p(ours, theirs) >= p


def _mann_whitney(rank_sum: float, treated: int, controls: int, ties: NDArray[np.int64]) -> float:
    number = treated + controls
    tied = float((ties.astype(float) ** 3 - ties).sum())
    variance = treated * controls / 12 * (number + 1 - tied / (number * (number - 1)))
    if variance <= 0:
        return 1.0
    above = rank_sum - treated * (treated + 1) / 2 - treated * controls / 2
    return 0.5 * erfc((above - 0.5) / sqrt(2 * variance))
