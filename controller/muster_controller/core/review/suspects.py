"""Cells in which odd inputs and errors rise together, hour by hour. Pure.

Spearman's rank correlation of the share of odd inputs (noised sums) with the share of requests that failed (counted by
devices). Noise makes it smaller, never larger. A request that failed is not counted as odd, which makes it smaller too.
One-sided normal test, z = r sqrt(n - 1), Holm over cells. Hours are taken for independent: a long disturbance is one
finding with too small a p. It says where to look; it proves no cause.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean
from typing import Final

from muster_controller.core.metrics.estimates import input_shares
from muster_controller.core.metrics.figures import above
from muster_controller.core.metrics.series import HOST
from muster_controller.core.metrics.slices import holm
from muster_controller.core.metrics.sums import MixedSum
from muster_controller.core.review.facts import Facts, Suspect

ODD: Final = ("out_of_range", "outlier", "not_finite")
HOURS_MIN: Final = 24
ALPHA: Final = 0.01
CORRELATION_MIN: Final = 0.3

Cell = tuple[str, str, str, str]
"""Model, version, device class and region."""


def found(facts: Facts) -> list[Suspect]:
    """Return the cells, the most correlated first."""
    pairs = {cell: points for cell, points in _paired(facts).items() if len(points) >= HOURS_MIN}
    cells = sorted(pairs)
    ranks = {cell: spearman([odd for odd, _ in pairs[cell]], [bad for _, bad in pairs[cell]]) for cell in cells}
    ps = [None if (r := ranks[cell]) is None else above(r * sqrt(len(pairs[cell]) - 1)) for cell in cells]
    suspects = [
        Suspect(
            model=cell[0],
            version=cell[1],
            device_class=cell[2],
            region=cell[3],
            hours=len(pairs[cell]),
            correlation=correlation,
            p=p,
            odd_share=fmean(odd for odd, _ in pairs[cell]),
            error_share=fmean(bad for _, bad in pairs[cell]),
        )
        for cell, p in zip(cells, holm(ps), strict=True)
        if (correlation := ranks[cell]) is not None and p is not None and p < ALPHA and correlation >= CORRELATION_MIN
    ]
    return sorted(suspects, key=lambda each: (-each.correlation, each.model, each.version))


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return the rank correlation -1..1, ties at their mean rank; None: one side never changes."""
    ranked = _ranks(xs), _ranks(ys)
    means = fmean(ranked[0]), fmean(ranked[1])
    spreads = [sqrt(sum((each - mean) ** 2 for each in some)) for some, mean in zip(ranked, means, strict=True)]
    if min(spreads) == 0.0:
        return None
    together = sum((x - means[0]) * (y - means[1]) for x, y in zip(*ranked, strict=True))
    return together / (spreads[0] * spreads[1])


def _paired(facts: Facts) -> Mapping[Cell, list[tuple[float, float]]]:
    """Return (odd share, error share) of each hour that has both."""
    errors = {
        (each.group.model, each.group.version, each.group.device_class, each.group.region, each.at): (
            each.errors / each.requests
        )
        for each in facts.hours
        if each.group.model != HOST and each.requests
    }
    sums: defaultdict[tuple[Cell, float], list[MixedSum]] = defaultdict(list)
    for each in facts.inputs:
        cell = each.cell
        sums[(cell.model, cell.version, cell.device_class, cell.region), each.period_start].append(each)
    pairs: defaultdict[Cell, list[tuple[float, float]]] = defaultdict(list)
    for (cell_key, at), some in sorted(sums.items(), key=lambda item: item[0]):
        bad = errors.get((*cell_key, at))
        shares = input_shares(some)
        odd = [shares[name].value for name in ODD]
        known = [value for value in odd if value is not None]
        if bad is not None and len(known) == len(ODD):
            pairs[cell_key].append((sum(known), bad))
    return pairs


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranks = [0.0] * len(values)
    at = 0
    while at < len(order):
        end = at
        while end + 1 < len(order) and values[order[end + 1]] == values[order[at]]:
            end += 1
        for index in order[at : end + 1]:
            ranks[index] = (at + end) / 2
        at = end + 1
    return ranks
