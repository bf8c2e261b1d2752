"""Training-serving skew: whether what a release sees and says is spread as it was when it was made, over a day.

    counts of each hour ── the last HOURS ── Jensen-Shannon distance to the reference, less its error
        ── beyond BOUND in LAST evaluations ──▶ SKEWED ── below RETURN_BOUND in LAST ──▶ not any more

A day, because the hours of a day differ. Hours, because what one device sees in one hour is of one piece: how much the
hours differ tells how much a day can be off by chance (the jackknife, Tukey 1958). Pure: somebody else says when an
hour is over. Drift of the answers' quality is `drift`; here nobody knows whether the answers got worse.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

HOURS: Final = 24
HOURS_MIN: Final = 3
"""Fewer do not show how much hours differ."""
BOUND: Final = 0.25
"""Of the distance, 0..1: about a quarter of all inferences lie elsewhere than in the reference."""
RETURN_BOUND: Final = 0.2
LAST: Final = 3
"""Evaluations in a row that it takes: one odd hour is none."""
_ERRORS = 2.0

Counts = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


def divergence(left: Counts, right: Counts) -> float:
    """Return the Jensen-Shannon divergence of the shares of two histograms of one length, in bits, 0..1.

    It is the square of the distance. 0 when one of them is empty. (Lin 1991.)
    """
    return float(_divergences(left[np.newaxis], right)[0])


def distance(hours: Sequence[Counts], reference: Counts) -> float:
    """Return the Jensen-Shannon distance (0..1) of the sum of `hours` to `reference`, with the error taken off.

    The error is the larger of two: that of drawing each inference by chance, and that which the hours show by how much
    the result changes without each of them. 0: no more than chance, or fewer than HOURS_MIN hours with something in.
    """
    filled = [hour for hour in hours if hour.any()]
    if len(filled) < HOURS_MIN:
        return 0.0
    whole = np.sum(filled, axis=0)
    found = divergence(whole, reference)
    # Of p and q drawn alike, 8 ln 2 n m / (n + m) JS is chi-squared with bins - 1 degrees of freedom.
    free = max(1, int(np.count_nonzero(whole + reference)) - 1)
    one = (1 / int(whole.sum()) + 1 / int(reference.sum())) / (8 * math.log(2))
    by_chance = one * (free + _ERRORS * math.sqrt(2 * free))
    without = _divergences(whole - np.stack(filled), reference)
    bias = (len(filled) - 1) * (float(without.mean()) - found)
    spread = math.sqrt((len(filled) - 1) * float(without.var()))
    return math.sqrt(max(0.0, found - max(by_chance, bias + _ERRORS * spread)))


def _divergences(rows: Counts, reference: Counts) -> _Floats:
    """Return the `divergence` of each of `rows` [n, bins]."""
    p = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    q = reference / max(int(reference.sum()), 1)
    found = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return np.where(rows.any(axis=1) & reference.any(), np.maximum(found, 0.0), 0.0)


def _entropy(shares: _Floats) -> _Floats:
    entropy: _Floats = -(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(axis=-1)
    return entropy


@dataclass(frozen=True)
class Skew:
    """What was counted, by what it was counted of: classes, and the bins of inputs."""

    hours: tuple[Mapping[str, Counts], ...] = ()
    """The last HOURS, oldest first; an hour has what was counted in it."""
    skewed: bool = False
    row: int = 0
    """Evaluations in a row that speak against `skewed` as it is."""
    known: bool = False
    """Whether there were hours enough to say anything."""
    worst: str = field(default="", compare=False)
    """What was farthest from the reference at the last evaluation,"""
    farthest: float = field(default=0.0, compare=False)
    """and how far, 0..1."""


def hour_over(skew: Skew, hour: Mapping[str, Counts], reference: Mapping[str, Counts]) -> Skew:
    """Return what is known after one more hour.

    Args:
        hour: Counts by name; a name that the reference lacks, or has at another length, is left out.
        reference: The same of the release when it was made.
    """
    fitting = {name: counts for name, counts in hour.items() if _fits(counts, reference.get(name))}
    hours = (*skew.hours, fitting)[-HOURS:]
    found = {
        name: distance([each[name] for each in hours if name in each], counts) for name, counts in reference.items()
    }
    known = sum(any(counts.any() for counts in each.values()) for each in hours) >= HOURS_MIN
    worst = max(sorted(found), key=lambda name: found[name], default="")
    farthest = found.get(worst, 0.0)
    against = farthest < RETURN_BOUND if skew.skewed else farthest > BOUND
    row = skew.row + 1 if against else 0
    turned = row >= LAST
    return Skew(hours, skew.skewed != turned, 0 if turned else row, known, worst, farthest)


def _fits(counts: Counts, reference: Counts | None) -> bool:
    return reference is not None and counts.shape == reference.shape
