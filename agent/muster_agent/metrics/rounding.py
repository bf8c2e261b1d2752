"""Sharing out units: whole numbers that add up, each of them exactly right on average.

Systematic rounding: the exact shares are laid end to end on a line of `units`, and each gets as many of the whole
numbers, moved by one random offset, as lie on its stretch. A share of 2.3 becomes 2 or 3, and 2.3 in the mean over
offsets: floor(x + r / d), r uniform in 0..d-1, has the mean x for every x = n / d (Hermite's identity).

Pure: the offset is drawn by the caller's source. Integers throughout, so there is no rounding before the rounding.
"""

import math
from collections.abc import Sequence
from random import Random


def share_out(groups: Sequence[Sequence[int]], units: int, random: Random) -> list[list[int]]:
    """Return how many of `units` each place of each group gets, in the shape of `groups`.

    Groups share equally, places of a group in proportion to their weights.

    Args:
        groups: Weights >= 0; a group with nothing in it takes no part.
    """
    denominator, _ = _line(groups)
    return share_out_at(groups, units, random.randrange(denominator))


def share_out_at(groups: Sequence[Sequence[int]], units: int, offset: int) -> list[list[int]]:
    """Return the shares at one offset, 0 <= offset < offsets(groups)."""
    denominator, steps = _line(groups)
    shared: list[list[int]] = []
    position = before = 0
    for group, step in zip(groups, steps, strict=True):
        row = []
        for weight in group:
            position += units * weight * step
            after = (position + offset) // denominator
            row.append(after - before)
            before = after
        shared.append(row)
    return shared


def offsets(groups: Sequence[Sequence[int]]) -> int:
    """Return how many offsets there are; each is as likely as any other."""
    return _line(groups)[0]


def _line(groups: Sequence[Sequence[int]]) -> tuple[int, list[int]]:
    """Return d, and how many d-ths of the whole one unit of weight is worth in each group."""
    totals = [sum(group) for group in groups]
    present = sum(1 for total in totals if total)
    if not present:
        return 1, [0] * len(totals)
    denominator = present * math.lcm(*(total for total in totals if total))
    return denominator, [denominator // (present * total) if total else 0 for total in totals]
