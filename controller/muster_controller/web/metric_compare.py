"""Two releases of a model against each other, slice by slice, ready to be shown. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from muster_controller.core.metrics.figures import Figure
from muster_controller.core.metrics.slices import Dimension, Labelled, Measure, Slice, slices
from muster_controller.core.metrics.sums import MixedSum
from muster_controller.web.metric_charts import said

SHOWN = 12


@dataclass(frozen=True)
class SliceRow:
    name: str
    measure: Measure
    before: str
    after: str
    worse: str
    verdict: str


@dataclass(frozen=True)
class Compared:
    """What differs between `before` and `after`; `hidden`: slices that got worse behind an average that did not."""

    before: str
    after: str
    rows: tuple[SliceRow, ...]
    left: int
    hidden: tuple[str, ...]


def compared(
    before: str, after: str, old: Sequence[MixedSum], new: Sequence[MixedSum], labels: Labelled, most: int = SHOWN
) -> Compared:
    """Return the slices of `old` against those of `new`, the surest regression first."""
    found = slices(old, new, labels=labels if all(labels) else None)
    return Compared(
        before,
        after,
        tuple(_row(each) for each in found[:most]),
        max(0, len(found) - most),
        tuple(each.name for each in found if each.is_hidden),
    )


def _row(found: Slice) -> SliceRow:
    if found.p is None:
        verdict = "too little to tell"
    elif found.is_regression:
        verdict = f"worse (p = {found.p_adjusted:.2g})"
    else:
        verdict = "no worse that could be seen"
    worse = "–" if found.worse is None else f"{100 * found.worse:+.1f} points"
    name = "everything" if found.dimension is Dimension.ALL else found.name
    return SliceRow(name, found.measure, _said(found.before), _said(found.after), worse, verdict)


def _said(figure: Figure) -> str:
    return "unknown" if figure.value is None else said(figure)
