"""Figures with intervals as what is drawn: a line within a band over time, and bars with whiskers in tables. Pure.

What is unknown is a gap, never a zero: line and band break there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from muster_controller.core.metrics.figures import Figure
from muster_controller.web.plots import Plot, Series

BAR_WIDTH = 320.0
HEIGHT = 160  # Pixels of a timeline: four of them fit a screen.


@dataclass(frozen=True)
class Whisker:
    """One bar: all in user units from the left."""

    label: str
    figure: Figure
    value_x: float
    low_x: float
    high_x: float
    words: str


def timeline(id: str, title: str, found: Sequence[tuple[float, Figure]], *, is_share: bool = True) -> Plot:
    """Return the plot of (Unix seconds, figure) in time order, with its 95 % band.

    Shares are drawn in percent and within 0 to 100; other figures are milliseconds, from 0.
    """
    scale = 100.0 if is_share else 1.0
    known = [figure for _, figure in found if figure.value is not None]
    points = [(at, None if figure.value is None else figure.value * scale) for at, figure in found]
    bands = [(at, *_ends(figure, scale)) for at, figure in found]
    return Plot(
        id=id,
        title=title,
        words=_words(title, known, len(found), is_share),
        series=(Series(title, points if known else (), bands if known else ()),),
        unit=" %" if is_share else " ms",
        low=None if is_share else 0.0,
        height=HEIGHT,
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


def _words(title: str, known: Sequence[Figure], periods: int, is_share: bool) -> str:
    if not known:
        return f"{title}: nothing is known of this time."
    words = f"{title}: first {said(known[0], is_share=is_share)}, last {said(known[-1], is_share=is_share)}"
    unknown = periods - len(known)
    return words + (f"; {unknown} of {periods} periods are unknown, and gaps in the line." if unknown else ".")


def _ends(figure: Figure, scale: float) -> tuple[float | None, float | None]:
    """Return both ends of a band; a side that is open ends at the value."""
    if figure.value is None:
        return None, None
    return _or(figure.low, figure.value) * scale, _or(figure.high, figure.value) * scale


def _end(value: float | None, is_share: bool) -> str:
    return "any" if value is None else _number(value, is_share)


def _number(value: float, is_share: bool) -> str:
    return f"{100 * value:.1f}" if is_share else f"{value:.3g}"


def _or(value: float | None, otherwise: float | None) -> float:
    return value if value is not None else (otherwise or 0.0)
