"""What is drawn, as values: the template writes one as JSON into the page, and `plots.js` draws it with ECharts.

The same values are written as a table below the drawing, for whoever does not see it or has no JavaScript. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec


class Axis(StrEnum):
    TIME = "time"
    """x is Unix seconds."""
    NUMBER = "number"
    NAME = "name"
    """x is a position in `Plot.names`."""


class Tone(StrEnum):
    """What a colour means; the style sheet says which it is."""

    ACCENT = "accent"
    GOOD = "good"
    BAD = "bad"
    BUSY = "busy"
    WAIT = "wait"
    IDLE = "idle"
    V0 = "v0"
    V1 = "v1"
    V2 = "v2"
    V3 = "v3"
    V4 = "v4"
    V5 = "v5"


VERSION_TONES = (Tone.V1, Tone.V2, Tone.V3, Tone.V4, Tone.V0, Tone.V5)


class Shape(StrEnum):
    LINE = "line"
    STEP = "step"
    AREA = "area"
    """Stacked on the series before it."""
    BAR = "bar"
    DOTS = "dots"


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[tuple[float, float | None]]
    """(x, y) in order of x; y None: unknown, the line breaks."""
    band: Sequence[tuple[float, float | None, float | None]] = ()
    """(x, low, high): the interval that each y is known within; both None where y is: the band breaks too."""
    tone: Tone = Tone.ACCENT
    shape: Shape = Shape.LINE


@dataclass(frozen=True)
class Mark:
    """A line across, such as a limit (`y`), or a moment (`x`)."""

    name: str
    y: float | None = None
    x: float | None = None
    tone: Tone = Tone.IDLE


@dataclass(frozen=True)
class Plot:
    """One drawing. `words` say in a sentence what it shows: they are its text for screen readers."""

    id: str
    title: str
    words: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    x: Axis = Axis.TIME
    names: Sequence[str] = ()
    unit: str = ""
    """Of y, with its space: ` %`, ` ms`."""
    is_log: bool = False
    low: float | None = None
    high: float | None = None
    """Where y begins and ends; None: where the figures do."""
    height: int = 220
    """Pixels."""

    def json(self) -> str:
        """Return what `plots.js` reads; safe inside a `<script>`."""
        return msgspec.json.encode(self).decode().replace("<", "\\u003c")

    def rows(self, most: int = 200) -> list[tuple[float, list[float | None]]]:
        """Return the newest `most` rows of the table: x, and the y of each series there."""
        found: dict[float, list[float | None]] = {}
        for column, series in enumerate(self.series):
            for x, y in series.points:
                found.setdefault(x, [None] * len(self.series))[column] = y
        return sorted(found.items())[-most:]


@dataclass(frozen=True)
class Node:
    id: str
    name: str
    href: str = ""
    tone: Tone = Tone.IDLE
    column: float = 0
    row: float = 0


@dataclass(frozen=True)
class Graph:
    """Things and what leads from one to another, from left to right, such as a lineage."""

    id: str
    title: str
    words: str
    nodes: Sequence[Node]
    edges: Sequence[tuple[str, str, str]] = field(default_factory=tuple)
    """(from, to, what)."""
    height: int = 220

    def json(self) -> str:
        return msgspec.json.encode(self).decode().replace("<", "\\u003c")
