"""Questions: which sums an answer is made of, and the answer: figures over all of it, and step by step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from muster_controller.core.metrics import estimates
from muster_controller.core.metrics.figures import Figure
from muster_controller.core.metrics.sums import MixedSum, of, pooled
from muster_shared.metrics import CONFIDENCE_BINS, DAY_S, HOUR_S, Kind

SHOWN: Final = 12
"""Figures of each step; the answer over all of it has every one."""


class Step(StrEnum):
    HOUR = "hour"
    DAY = "day"

    @property
    def seconds(self) -> int:
        return HOUR_S if self is Step.HOUR else DAY_S


STEPS_MAX: Final[Mapping[Step, int]] = {Step.HOUR: 14 * 24, Step.DAY: 366}
"""Of one answer."""
STEPS: Final[Mapping[Step, int]] = {Step.HOUR: 24, Step.DAY: 30}
"""Where nobody says since when."""


@dataclass(frozen=True)
class Asked:
    """What is asked about. Times are Unix seconds, at the beginning of a step; None: all of them."""

    model: str
    since: float
    until: float
    step: Step = Step.HOUR
    version: str | None = None
    device_class: str | None = None
    region: str | None = None


@dataclass(frozen=True)
class Answer:
    """Figures by name over all that was asked about, and those of each step that there is (SHOWN of them at most)."""

    figures: Mapping[str, Figure]
    points: Sequence[tuple[float, Mapping[str, Figure]]]


class Sums(Protocol):
    """Where sums are kept: `db.metrics_store`, which only a controller needs."""

    def mixed(
        self,
        model: str,
        kind: Kind | None,
        period_s: int | None,
        since: float,
        until: float,
        version: str | None = None,
        device_class: str | None = None,
        region: str | None = None,
    ) -> list[MixedSum]: ...


Figures = Callable[[Sequence[MixedSum]], Mapping[str, Figure]]


def classes(labels: Sequence[str]) -> Figures:
    """Return how shares of classes are made, by label; by index where there is none."""

    def figures(found: Sequence[MixedSum]) -> Mapping[str, Figure]:
        return _labelled(estimates.class_shares(found), labels)

    return figures


def accuracy(labels: Sequence[str]) -> Figures:
    """Return how accuracy is made: `all`, and by true class."""

    def figures(found: Sequence[MixedSum]) -> Mapping[str, Figure]:
        return {"all": estimates.accuracy(found), **_labelled(estimates.accuracy_by_class(found), labels)}

    return figures


def confidence(found: Sequence[MixedSum]) -> Mapping[str, Figure]:
    """Return `mean`, and the share of each step from 0 to 1."""
    width = 1 / CONFIDENCE_BINS
    shares = estimates.shares(pooled(of(found, Kind.CONFIDENCE)))
    steps = {f"{index * width:.2f}-{(index + 1) * width:.2f}": figure for index, figure in enumerate(shares)}
    return {"mean": estimates.mean_confidence(found), **steps}


def latency(found: Sequence[MixedSum]) -> Mapping[str, Figure]:
    """Return `p50`, `p95` and `p99`, in milliseconds."""
    return {f"p{quantile * 100:g}": figure for quantile, figure in estimates.latency_ms(found).items()}


def inputs(found: Sequence[MixedSum]) -> Mapping[str, Figure]:
    """Return the share of each kind of input, and `not_answered`."""
    return {**estimates.input_shares(found), "not_answered": estimates.failed_share(found)}


def drift(found: Sequence[MixedSum]) -> Mapping[str, Figure]:
    return estimates.drift_shares(found)


def answer(store: Sums, asked: Asked, kind: Kind, figures: Figures) -> Answer:
    """Answer `asked` of one kind. Raises TooMuchAsked, LedgerUnavailable."""
    found = store.mixed(
        asked.model,
        kind,
        asked.step.seconds,
        asked.since,
        asked.until,
        asked.version,
        asked.device_class,
        asked.region,
    )
    total = figures(found)
    shown = _shown(total)
    steps: dict[float, list[MixedSum]] = {}
    for each in found:
        steps.setdefault(each.period_start, []).append(each)
    points = [(at, figures(some)) for at, some in sorted(steps.items())]
    return Answer(total, [(at, {name: some[name] for name in shown if name in some}) for at, some in points])


def sums(store: Sums, asked: Asked, version: str) -> list[MixedSum]:
    """Return every kind of one release, of all steps that are asked about. Raises TooMuchAsked."""
    return store.mixed(
        asked.model,
        None,
        None,
        asked.since,
        asked.until,
        version,
        asked.device_class,
        asked.region,
    )


def _shown(total: Mapping[str, Figure]) -> list[str]:
    """Return the largest, in the order that they have; the first always."""
    names = list(total)
    ranked = sorted(names[1:], key=lambda name: -(total[name].value or 0.0))[: SHOWN - 1]
    return [name for name in names if name in {*names[:1], *ranked}]


def _labelled(figures: Sequence[Figure], labels: Sequence[str]) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for index, figure in enumerate(figures):
        label = labels[index] if index < len(labels) else str(index)
        found[label if label not in found else f"{label} ({index})"] = figure
    return found
