"""Geometry of what is drawn: the evidence over time, and shares as bars. Pure; units are SVG user units."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

WIDTH = 640.0
HEIGHT = 200.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 96.0, 12.0, 24.0  # The right margin holds the names of the thresholds.
E_FLOOR = 1e-3  # Below this a line would only say "very little".


@dataclass(frozen=True)
class Tick:
    position: float
    label: str


@dataclass(frozen=True)
class EvidenceChart:
    """A step line on a logarithmic scale between two thresholds."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    line: str
    """An SVG path."""
    end_x: float
    end_y: float
    hold_y: float
    abort_y: float
    one_y: float
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Segment:
    label: str
    count: int
    share: float
    x: float
    width: float


def evidence_chart(points: Sequence[tuple[float, float]], hold: float, abort: float) -> EvidenceChart:
    """Return the chart of (time, E) points in time order; at least one."""
    values = [max(value, E_FLOOR) for _, value in points]
    low = floor(log10(min(0.1, *values)))
    high = ceil(log10(max(abort * 2, *values)))
    begin, end = points[0][0], points[-1][0]
    span = max(end - begin, 1e-9)

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (at - begin) / span

    def y(value: float) -> float:
        share = (log10(max(value, E_FLOOR)) - low) / (high - low)
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)

    steps = [f"M{x(begin):.1f},{y(values[0]):.1f}"]
    for (at, _), value in zip(points[1:], values[1:], strict=True):
        steps.append(f"H{x(at):.1f}V{y(value):.1f}")
    return EvidenceChart(
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        bottom=HEIGHT - BOTTOM,
        line="".join(steps),
        end_x=x(end) if len(points) > 1 else LEFT,
        end_y=y(values[-1]),
        hold_y=y(hold),
        abort_y=y(abort),
        one_y=y(1.0),
        ticks=tuple(Tick(y(10.0**power), _power(power)) for power in range(low, high + 1)),
    )


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


def _power(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"
