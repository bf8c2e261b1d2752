"""Rules about what models saw and said, from noised sums: drift, skew, and classes that a release is worse for.

Every figure has the mixer's noise in it, so a threshold is compared with the end of an interval and never with the
figure itself. Pure.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from muster_controller.core.alerts import rules
from muster_controller.core.alerts.finding import Fact, Finding, Severity
from muster_controller.core.metrics.figures import Figure
from muster_controller.core.metrics.slices import Dimension, Measure, Slice

SHARE_MAX: Final = 0.05
"""Of devices that may drift: detectors raise one false alarm in 10^4 windows, so that many are no accident."""
LINGERS_SHARE: Final = 0.03
ALPHA: Final = 0.01
"""Of a comparison, corrected for its slices: it is made anew every few minutes, though mostly of the same sums."""
LINGERS_ALPHA: Final = 0.05
Z: Final = 3.0
"""Standard deviations of the lower end: a fleet of 100 cells looks 2,400 times a day; at 3 it is wrong thrice."""


@dataclass(frozen=True)
class Drifting:
    """What the devices' own detectors say of one release, on all classes (`device_class` empty) or one.

    Attributes:
        drifting, skewed: Shares of devices over the last `hours`.
    """

    model: str
    version: str
    device_class: str
    drifting: Figure
    skewed: Figure
    hours: int


@dataclass(frozen=True)
class Compared:
    """A release against the one before, slice by slice (`core.metrics.slices`)."""

    model: str
    before: str
    after: str
    slices: tuple[Slice, ...]


def drifting(cells: Iterable[Drifting]) -> Iterator[Finding]:
    """Yield the releases, and the classes of devices, of which too many drift or are skewed."""
    for cell in cells:
        for rule, figure, said in (
            (rules.DRIFT, cell.drifting, "see inputs that drift from the reference"),
            (rules.SKEW, cell.skewed, "prepare inputs otherwise than training did"),
        ):
            if figure.value is None:
                continue
            spread = Z * math.sqrt(figure.variance)
            lower, upper = max(0.0, figure.value - spread), min(1.0, figure.value + spread)
            if lower <= LINGERS_SHARE:
                continue
            where = f" on {cell.device_class}" if cell.device_class else ""
            yield Finding(
                rule,
                "/".join(filter(None, (cell.model, cell.version, cell.device_class))),
                Severity.TICKET,
                f"{cell.model} {cell.version}{where}: {figure.value:.0%} of devices {said} ({lower:.0%} to {upper:.0%},"
                f" {cell.hours} h).",
                {
                    "model": cell.model,
                    "version": cell.version,
                    "device_class": cell.device_class,
                    "share": round(figure.value, 4),
                    "lower": round(lower, 4),
                    "upper": round(upper, 4),
                    "threshold": SHARE_MAX,
                    "devices": figure.devices,
                    "hours": cell.hours,
                },
                lingers=lower <= SHARE_MAX,
            )


def fallen(compared: Iterable[Compared]) -> Iterator[Finding]:
    """Yield one finding for each release that is worse somewhere; the surest slice speaks, the others are counted."""
    for pair in compared:
        worse = [each for each in pair.slices if each.p_adjusted is not None and each.p_adjusted < LINGERS_ALPHA]
        if not worse:
            continue
        worst = min(worse, key=lambda each: (each.p_adjusted, each.p, each.dimension, each.name))
        sure = [each for each in worse if each.p_adjusted is not None and each.p_adjusted < ALPHA]
        overall = next((each for each in pair.slices if _is_overall(each, worst)), None)
        facts: dict[str, Fact] = {
            "model": pair.model,
            "version": pair.after,
            "before_version": pair.before,
            "measure": worst.measure.value,
            "dimension": worst.dimension.value,
            "slice": worst.name,
            "before": _rounded(worst.before.value),
            "after": _rounded(worst.after.value),
            "worse": _rounded(worst.worse),
            "worse_low": _rounded(worst.worse_low),
            "worse_high": _rounded(worst.worse_high),
            "p_adjusted": worst.p_adjusted,
            "slices_worse": len(sure),
            "hidden": worst.is_hidden,
            "overall_before": None if overall is None else _rounded(overall.before.value),
            "overall_after": None if overall is None else _rounded(overall.after.value),
        }
        yield Finding(
            rules.SLICE_REGRESSION,
            f"{pair.model}/{pair.after}",
            Severity.TICKET,
            _sentence(pair, worst, overall, max(0, len(sure) - 1)),
            facts,
            lingers=not sure,
        )


def _is_overall(each: Slice, worst: Slice) -> bool:
    return each.measure is worst.measure and each.dimension is Dimension.ALL


def _sentence(pair: Compared, worst: Slice, overall: Slice | None, others: int) -> str:
    what = "accuracy" if worst.measure is Measure.ACCURACY else "share of failed requests"
    where = {
        Dimension.ALL: "",
        Dimension.CLASS: f" on class {worst.name}",
        Dimension.DEVICE_CLASS: f" on devices of class {worst.name}",
        Dimension.REGION: f" in {worst.name}",
    }[worst.dimension]
    said = f"{pair.model} {pair.after}: {what}{where} went from {_percent(worst.before.value)} to"
    said += f" {_percent(worst.after.value)} since {pair.before}"
    if worst.dimension is not Dimension.ALL and overall is not None and overall.before.value is not None:
        link = "although the average went" if worst.is_hidden else "while the average went"
        said += f", {link} from {_percent(overall.before.value)} to {_percent(overall.after.value)}"
    return said + (f"; {others} more slices are worse." if others else ".")


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)
