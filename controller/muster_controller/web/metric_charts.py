"""Geometry of figures with intervals: a line within a band over time, and bars with whiskers. Pure; SVG user units.

What is unknown is a gap, never a zero: the line breaks there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from muster_controller.core.metrics.figures import Figure
from muster_controller.web.charts import Tick

WIDTH, HEIGHT = 640.0, 168.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 12.0, 10.0, 24.0
BAR_WIDTH = 320.0
TICKS = 4


@dataclass(frozen=True)
class BandChart:
    """A line within its 95 % band; `bands` and `lines` are SVG paths, one for each stretch that is known."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    bands: tuple[str, ...]
    lines: tuple[str, ...]
    points: tuple[tuple[float, float, str], ...]
    """(x, y, what it says) of each known figure."""
    ticks: tuple[Tick, ...]
    begin: float
    end: float
    unknown: int
    """Periods of which nothing can be said."""


@dataclass(frozen=True)
class Whisker:
    """One bar: all in user units from the left."""

    label: str
    figure: Figure
    value_x: float
    low_x: float
    high_x: float
    words: str


def band_chart(found: Sequence[tuple[float, Figure]], *, is_share: bool = True) -> BandChart | None:
    """Return the chart of (time, figure) in time order; None where nothing is known."""
    known = [(at, figure) for at, figure in found if figure.value is not None]
    if not known:
        return None
    begin, end = found[0][0], found[-1][0]
    span = max(end - begin, 1e-9)
    lows = [_or(figure.low, figure.value) for _, figure in known]
    highs = [_or(figure.high, figure.value) for _, figure in known]
    low, high = (max(0.0, min(lows)), min(1.0, max(highs))) if is_share else (0.0, max(highs))
    room = max(high - low, 0.02 if is_share else 1e-9) * 0.08
    low, high = max(0.0, low - room), (min(1.0, high + room) if is_share else high + room)

    def x(at: float) -> float:
        middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (at - begin) / span if end > begin else middle, 1)

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)

    bands: list[str] = []
    lines: list[str] = []
    for stretch in _stretches(found):
        upper = [(x(at), y(_or(figure.high, figure.value))) for at, figure in stretch]
        lower = [(x(at), y(_or(figure.low, figure.value))) for at, figure in reversed(stretch)]
        if len(stretch) == 1:  # A stretch of one has no width of its own.
            (at_x, top), (_, bottom) = upper[0], lower[0]
            upper, lower = [(at_x - 2, top), (at_x + 2, top)], [(at_x + 2, bottom), (at_x - 2, bottom)]
        bands.append("M" + "L".join(f"{px:g},{py:g}" for px, py in (*upper, *lower)) + "Z")
        lines.append("M" + "L".join(f"{x(at):g},{y(_or(figure.value, 0.0)):g}" for at, figure in stretch))
    return BandChart(
        WIDTH,
        HEIGHT,
        LEFT,
        WIDTH - RIGHT,
        TOP,
        HEIGHT - BOTTOM,
        tuple(bands),
        tuple(lines),
        tuple((x(at), y(_or(figure.value, 0.0)), said(figure, is_share=is_share)) for at, figure in known),
        tuple(
            Tick(y(value), _number(value, is_share))
            for value in (low + (high - low) * step / (TICKS - 1) for step in range(TICKS))
        ),
        begin,
        end,
        len(found) - len(known),
    )


def whiskers(found: Sequence[tuple[str, Figure]]) -> tuple[Whisker, ...]:
    """Return bars of shares on one scale, from 0 to the largest of all."""
    most = max((_or(figure.high, figure.value) for _, figure in found if figure.value is not None), default=1.0)
    scale = BAR_WIDTH / max(most, 1e-9)
    return tuple(
        Whisker(
            label,
            figure,
            round(_or(figure.value, 0.0) * scale, 1),
            round(_or(figure.low, 0.0) * scale, 1),
            round(_or(figure.high, 0.0) * scale, 1),
            said(figure),
        )
        for label, figure in found
    )


def said(figure: Figure, *, is_share: bool = True) -> str:
    """Return a figure in words: `12.3 % (11.9 to 12.7)`, or that it is not known."""
    if figure.value is None:
        return "unknown: too few devices, or too little time"
    ends = (
        ""
        if figure.low is None and figure.high is None
        else f" ({_end(figure.low, is_share)} to {_end(figure.high, is_share)})"
    )
    return _number(figure.value, is_share) + (" %" if is_share else " ms") + ends


def _end(value: float | None, is_share: bool) -> str:
    return "any" if value is None else _number(value, is_share)


def _number(value: float, is_share: bool) -> str:
    return f"{100 * value:.1f}" if is_share else f"{value:.3g}"


def _or(value: float | None, otherwise: float | None) -> float:
    return value if value is not None else (otherwise or 0.0)


def _stretches(found: Sequence[tuple[float, Figure]]) -> list[list[tuple[float, Figure]]]:
    stretches: list[list[tuple[float, Figure]]] = [[]]
    for at, figure in found:
        if figure.value is not None:
            stretches[-1].append((at, figure))
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]
