"""What the page of a model's anonymous metrics shows, ready to be shown: figures, timelines, classes. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from muster_controller.core.metrics import estimates
from muster_controller.core.metrics.figures import Figure
from muster_controller.core.metrics.sums import MixedSum
from muster_controller.web.metric_charts import Whisker, said, timeline, whiskers
from muster_controller.web.plots import Plot
from muster_shared.metrics import HOUR_S

CLASSES_SHOWN = 24
STEPS_MAX = 200
TREND = 0.95
"""The quantile of latency that is drawn."""


@dataclass(frozen=True)
class FigureTile:
    label: str
    words: str
    hint: str
    figure: Figure


@dataclass(frozen=True)
class ModelPanel:
    tiles: tuple[FigureTile, ...]
    classes: tuple[Whisker, ...]
    classes_left: int
    inputs: tuple[Whisker, ...]
    timelines: tuple[Plot, ...]
    devices: int
    eps: float
    """What all of the figures together cost a device in the periods shown, at DELTA."""


def model_panel(
    found: Sequence[MixedSum], drawn: Sequence[MixedSum], labels: Sequence[str], begin: float, end: float
) -> ModelPanel:
    """Return what is shown of a model's sums between `begin` and `end`, Unix seconds.

    Args:
        found: all of them, nothing twice.
        drawn: those that the timelines are made of: hours, or days.
    """
    accuracy, confidence = estimates.accuracy(found), estimates.mean_confidence(found)
    drift, failed = estimates.drift_shares(found), estimates.failed_share(found)
    latency = estimates.latency_ms(found)
    tiles = (
        _tile("Right answers", accuracy, "of those that somebody labelled"),
        _tile("Confidence", confidence, "mean of the chosen class"),
        _tile("Devices that see drift", drift.get("drifting", Figure(None)), "by their own detectors"),
        _tile("Not answered", failed, "refused, failed, timed out or turned away"),
        _tile("Latency p95", latency[TREND], "of the engine", is_share=False),
    )
    shares = estimates.class_shares(found)
    named = [(_name(labels, index), figure) for index, figure in enumerate(shares)]
    named.sort(key=lambda each: -(each[1].value or 0.0))
    step = _step(begin, end)
    paid = {figure.rho: figure for figure in (accuracy, confidence, failed, latency[TREND]) if figure.rho}
    return ModelPanel(
        tiles,
        whiskers(named[:CLASSES_SHOWN]),
        max(0, len(named) - CLASSES_SHOWN),
        whiskers(list(estimates.input_shares(found).items())),
        (
            _timeline("right", "Right answers", drawn, estimates.accuracy, begin, end, step),
            _timeline("confidence", "Mean confidence", drawn, estimates.mean_confidence, begin, end, step),
            _timeline("drift", "Devices that see drift", drawn, _drifting, begin, end, step),
            _timeline("latency", "Latency p95", drawn, _p95, begin, end, step, is_share=False),
        ),
        max((figure.devices for figure in (accuracy, confidence, failed)), default=0),
        max((figure.eps for figure in paid.values()), default=0.0),
    )


def steps(found: Sequence[MixedSum], begin: float, end: float, step: float) -> list[tuple[float, list[MixedSum]]]:
    """Return what begins in each step of the time from `begin` to `end`; steps without anything are there, empty."""
    first = begin // step * step
    count = min(STEPS_MAX, max(1, round((end - first) / step)))
    slots: list[tuple[float, list[MixedSum]]] = [(first + step * number, []) for number in range(count)]
    for each in found:
        number = int((each.period_start - first) // step)
        if 0 <= number < count:
            slots[number][1].append(each)
    return slots


def _timeline(
    name: str,
    title: str,
    found: Sequence[MixedSum],
    estimate: Callable[[Sequence[MixedSum]], Figure],
    begin: float,
    end: float,
    step: float,
    *,
    is_share: bool = True,
) -> Plot:
    points = [(at, estimate(some)) for at, some in steps(found, begin, end, step)]
    return timeline(f"timeline-{name}", title, points, is_share=is_share)


def _tile(label: str, figure: Figure, hint: str, *, is_share: bool = True) -> FigureTile:
    return FigureTile(label, said(figure, is_share=is_share), hint, figure)


def _drifting(found: Sequence[MixedSum]) -> Figure:
    return estimates.drift_shares(found).get("drifting", Figure(None))


def _p95(found: Sequence[MixedSum]) -> Figure:
    return estimates.latency_ms(found, (TREND,))[TREND]


def _step(begin: float, end: float) -> float:
    """Return a step of whole hours that gives at most about fifty points."""
    hours = max(1.0, (end - begin) / HOUR_S / 48)
    return HOUR_S * next((each for each in (1, 3, 6, 24) if each >= hours), 24 * 7)


def _name(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else f"class {index}"
