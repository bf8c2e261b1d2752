"""Two releases side by side, and the slices in which the newer one is worse although the average may be better.

A slice is one true class, one device class or one region. Each is tested one-sided (was the newer at least as good?),
and p-values are corrected for how many were looked at (Holm 1979): the chance that any slice of a release that is
nowhere worse is named stays below `alpha`. Slices with too little in them to say anything are not tested, and told.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from muster_controller.core.metrics.estimates import (
    ANSWERED,
    accuracy,
    class_shares,
    failed_share,
    latency_ms,
    mean_confidence,
    part,
    sample_variance,
    share_of,
)
from muster_controller.core.metrics.figures import Figure, Z, above, e_value
from muster_controller.core.metrics.sums import MixedSum, Pool, by, of, pooled
from muster_shared.metrics import INPUTS, Kind

ALPHA = 0.05


class Measure(StrEnum):
    """What a slice is judged by."""

    ACCURACY = "accuracy"
    FAILURES = "failures"
    """The share of requests that were not answered; higher is worse."""


class Dimension(StrEnum):
    ALL = "all"
    CLASS = "class"
    """True class, from feedback."""
    DEVICE_CLASS = "device_class"
    REGION = "region"


@dataclass(frozen=True)
class Difference:
    """After minus before.

    Attributes:
        value, low, high: with its 95 % interval; None: one side is unknown.
        p: two-sided, that nothing differs, by the normal approximation; None with `value`.
        e: what `p` is worth as evidence: e-values of several looks may be averaged.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    e: float | None = None


@dataclass(frozen=True)
class Slice:
    """One slice of a release against the same slice of the release before.

    Attributes:
        name: of the device class or region; of a true class its label where labels are given, else its index.
        worse: by how much it got worse, with a 95 % interval (`worse_low`, `worse_high`): positive is worse.
        p: one-sided, that it did not get worse; None: not tested, there is too little in it.
        p_adjusted: for all that were tested (Holm).
        is_regression: `p_adjusted` is below alpha.
        overall_worse: the same figure over everything; None: unknown.
    """

    measure: Measure
    dimension: Dimension
    name: str
    before: Figure
    after: Figure
    worse: float | None = None
    worse_low: float | None = None
    worse_high: float | None = None
    p: float | None = None
    e: float | None = None
    p_adjusted: float | None = None
    is_regression: bool = False
    overall_worse: float | None = None

    @property
    def is_hidden(self) -> bool:
        """Whether the average got better, or at least not worse, while this slice got worse."""
        return self.is_regression and self.overall_worse is not None and self.overall_worse <= 0


@dataclass(frozen=True)
class Comparison:
    """Everything about two releases, or two parts of a fleet, side by side."""

    accuracy: tuple[Figure, Figure, Difference]
    confidence: tuple[Figure, Figure, Difference]
    failures: tuple[Figure, Figure, Difference]
    latency_ms: Mapping[float, tuple[Figure, Figure]]
    """By quantile. Two intervals that do not meet differ."""
    classes: tuple[tuple[str, Figure, Figure, Difference], ...]
    """By class: label or index, shares before and after. p is corrected for their number (Holm)."""


Labels = Sequence[str]
Labelled = tuple[Labels, Labels]
"""What the classes of the release before, and of the one after, are called, by index."""


def difference(before: Figure, after: Figure) -> Difference:
    """Return after minus before of two figures of different periods or devices."""
    if before.value is None or after.value is None:
        return Difference()
    spread = math.sqrt(before.variance + after.variance)
    value = after.value - before.value
    p = 1.0 if spread == 0 else min(1.0, 2 * above(abs(value) / spread))
    return Difference(value, value - Z * spread, value + Z * spread, p, e_value(p))


def compare(before: Sequence[MixedSum], after: Sequence[MixedSum], labels: Labelled | None = None) -> Comparison:
    """Return two sets of sums side by side: of two releases, two device classes or two regions."""

    def pair(of_sums: Callable[[Iterable[MixedSum]], Figure]) -> tuple[Figure, Figure, Difference]:
        old, new = of_sums(before), of_sums(after)
        return old, new, difference(old, new)

    old_ms, new_ms = latency_ms(before), latency_ms(after)
    olds, news = class_shares(before), class_shares(after)
    classes = []
    for name, old_index, new_index in _matched(len(olds), len(news), labels):
        old, new = olds[old_index], news[new_index]
        classes.append((name, old, new, difference(old, new)))
    adjusted = holm([found.p for *_, found in classes])
    return Comparison(
        accuracy=pair(accuracy),
        confidence=pair(mean_confidence),
        failures=pair(failed_share),
        latency_ms={quantile: (old_ms[quantile], new_ms[quantile]) for quantile in old_ms},
        classes=tuple(
            (name, old, new, replace(found, p=p, e=None if p is None else found.e))
            for (name, old, new, found), p in zip(classes, adjusted, strict=True)
        ),
    )


def regressions(
    before: Sequence[MixedSum], after: Sequence[MixedSum], *, alpha: float = ALPHA, labels: Labelled | None = None
) -> list[Slice]:
    """Return the slices in which `after` is worse, the surest first. `slices` returns all of them."""
    return [each for each in slices(before, after, alpha=alpha, labels=labels) if each.is_regression]


def slices(
    before: Sequence[MixedSum], after: Sequence[MixedSum], *, alpha: float = ALPHA, labels: Labelled | None = None
) -> list[Slice]:
    """Return every slice that both have, tested or not: the worst first, those with too little in them last.

    Args:
        before, after: sums of any kinds; FEEDBACK and INPUTS are looked at.
        labels: where two releases number their classes differently, or one has more; None: by index.
    """
    found: list[Slice] = []
    right = _accuracies(of(before, Kind.FEEDBACK), of(after, Kind.FEEDBACK), labels)
    failed = _parts(Measure.FAILURES, of(before, Kind.INPUTS), of(after, Kind.INPUTS), _failed)
    for group in (right, failed):
        overall = next((each.worse for each in group if each.dimension is Dimension.ALL), None)
        found += [replace(each, overall_worse=overall) for each in group]
    adjusted = holm([each.p for each in found])
    found = [
        replace(each, p_adjusted=p, is_regression=p is not None and p < alpha)
        for each, p in zip(found, adjusted, strict=True)
    ]
    return sorted(found, key=lambda each: (2.0 if each.p is None else each.p, each.dimension, each.name))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for how many there are (Holm 1979); None, not tested, does not count."""
    order = sorted((p, index) for index, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class _Counted:
    """What a slice is a share of: some numbers of `pool`, those of `good` (or bad) among them."""

    pool: Pool
    ones: tuple[int, ...]

    @property
    def figure(self) -> Figure:
        return share_of(self.pool, self.ones)


def _accuracies(before: Sequence[MixedSum], after: Sequence[MixedSum], labels: Labelled | None) -> list[Slice]:
    def right(some: Sequence[MixedSum]) -> _Counted:
        pool = pooled(some)
        return _Counted(pool, tuple(range(1, len(pool.sums), 2)))

    found = _parts(Measure.ACCURACY, before, after, right)
    old, new = pooled(before), pooled(after)
    for name, old_index, new_index in _matched(len(old.sums) // 2, len(new.sums) // 2, labels):
        one = _Counted(part(old, (2 * old_index, 2 * old_index + 1)), (1,))
        other = _Counted(part(new, (2 * new_index, 2 * new_index + 1)), (1,))
        found.append(_tested(Measure.ACCURACY, Dimension.CLASS, name, one, other))
    return found


def _failed(some: Sequence[MixedSum]) -> _Counted:
    return _Counted(pooled(some), tuple(index for index, name in enumerate(INPUTS) if name not in ANSWERED))


def _parts(
    measure: Measure,
    before: Sequence[MixedSum],
    after: Sequence[MixedSum],
    counted: Callable[[Sequence[MixedSum]], _Counted],
) -> list[Slice]:
    """Return the slice of everything, and those of device classes and regions where there is more than one."""
    if not before or not after:
        return []
    found = [_tested(measure, Dimension.ALL, "all", counted(before), counted(after))]
    keys: tuple[tuple[Dimension, Callable[[MixedSum], str]], ...] = (
        (Dimension.DEVICE_CLASS, lambda each: each.cell.device_class),
        (Dimension.REGION, lambda each: each.cell.region),
    )
    for dimension, key in keys:
        old, new = by(before, key), by(after, key)
        names = sorted(old.keys() & new.keys())
        if len(old.keys() | new.keys()) > 1:
            found += [_tested(measure, dimension, name, counted(old[name]), counted(new[name])) for name in names]
    return found


def _tested(measure: Measure, dimension: Dimension, name: str, old: _Counted, new: _Counted) -> Slice:
    """Return a slice with its one-sided test, at the share that both would have if nothing had changed."""
    before, after = old.figure, new.figure
    plain = Slice(measure, dimension, name, before, after)
    if before.value is None or after.value is None:
        return plain
    sign = -1.0 if measure is Measure.ACCURACY else 1.0
    worse = sign * (_ratio(new) - _ratio(old))
    spread = math.sqrt(before.variance + after.variance)
    votes = old.pool.votes, new.pool.votes
    common = (before.value * votes[0] + after.value * votes[1]) / sum(votes)
    null = math.sqrt(sum(_variance_at(common, each) for each in (old, new)))
    p = above(worse / null)
    return replace(plain, worse=worse, worse_low=worse - Z * spread, worse_high=worse + Z * spread, p=p, e=e_value(p))


def _ratio(counted: _Counted) -> float:
    """Return the share as it is, noise and all: cut to 0..1 a difference would be biased."""
    return sum(counted.pool.sums[index] for index in counted.ones) / sum(counted.pool.sums)


def _variance_at(value: float, counted: _Counted) -> float:
    pool = counted.pool
    ours = sum(pool.variances[index] for index in counted.ones)
    others = sum(pool.variances) - ours
    noise = ((1 - value) ** 2 * ours + value**2 * others) / sum(pool.sums) ** 2
    return noise + sample_variance(value, pool)


def _matched(before: int, after: int, labels: Labelled | None) -> list[tuple[str, int, int]]:
    """Return (name, index before, index after) of the classes that both have."""
    if labels is None or not (labels[0] and labels[1]):
        return [(str(index), index, index) for index in range(min(before, after))]
    news = {name: index for index, name in enumerate(labels[1][:after])}
    return [(name, index, news[name]) for index, name in enumerate(labels[0][:before]) if name in news]
