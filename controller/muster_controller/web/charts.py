"""Geometry of shares as bars inside text; what has axes is drawn by `plots`. Pure; units are SVG user units."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 640.0


@dataclass(frozen=True)
class Segment:
    label: str
    count: int
    share: float
    x: float
    width: float


def segments(counts: Sequence[tuple[str, int]], width: float = WIDTH, gap: float = 2.0) -> tuple[Segment, ...]:
    """Return a stacked bar; counts of zero have no segment."""
    total = sum(count for _, count in counts)
    found: list[Segment] = []
    x = 0.0
    for label, count in counts:
        if count:
            whole = width * count / total
            found.append(Segment(label, count, count / total, round(x, 1), round(max(whole - gap, 1.0), 1)))
            x += whole
    return tuple(found)
