"""What got worse since the week before: accuracy and failures in slices, latency by device class. Pure.

Accuracy, failures: from noised sums, tested by `metrics.slices` (one-sided, Holm over the slices of a model).
Latency: the p95 of the engine from noised histograms; worse where the two 95 % intervals do not meet. And the share of
requests slower than the objective, counted by devices: exact, so a rise by SLOW_FACTOR and SLOW_RISE is one, provided
that there were REQUESTS_MIN of them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from muster_controller.core.metrics.estimates import latency_ms
from muster_controller.core.metrics.figures import Figure
from muster_controller.core.metrics.series import HOST, Series
from muster_controller.core.metrics.slices import Slice, regressions
from muster_controller.core.metrics.sums import MixedSum, by, of
from muster_controller.core.review.facts import Facts, Regression, Span
from muster_shared.metrics import Kind

SLOW_FACTOR: Final = 1.25
SLOW_RISE: Final = 0.005
REQUESTS_MIN: Final = 1000
P95: Final = 0.95
ALL: Final = "all"


def found(facts: Facts) -> list[Regression]:
    """Return everything that got worse: what the average hides first, then by how much."""
    main = _main(facts.hours_before), _main(facts.hours)
    before, after = by(facts.days_before, _model), by(facts.days, _model)
    ours: list[Regression] = []
    for model in sorted(before.keys() & after.keys()):
        versions = main[0].get(model, ""), main[1].get(model, "")
        labels = facts.labels.get((model, versions[0]), ()), facts.labels.get((model, versions[1]), ())
        ours += [_sliced(model, versions, each) for each in regressions(before[model], after[model], labels=labels)]
        ours += _slower(model, versions, before[model], after[model])
    ours += _slow(facts, main)
    return sorted(ours, key=lambda each: (not each.hidden, -each.worse, each.model, each.measure, each.name))


def _sliced(model: str, versions: tuple[str, str], found: Slice) -> Regression:
    assert found.worse is not None, "a regression was tested"
    return Regression(
        measure=found.measure.value,
        model=model,
        dimension=found.dimension.value,
        name=found.name,
        before=span(found.before),
        after=span(found.after),
        worse=found.worse,
        p=found.p_adjusted,
        hidden=found.is_hidden,
        versions=versions,
    )


def _slower(
    model: str, versions: tuple[str, str], before: Sequence[MixedSum], after: Sequence[MixedSum]
) -> Iterator[Regression]:
    olds, news = (by(of(each, Kind.LATENCY), lambda one: one.cell.device_class) for each in (before, after))
    whole = _p95(of(before, Kind.LATENCY)), _p95(of(after, Kind.LATENCY))
    is_average_worse = None not in (whole[0].value, whole[1].value) and (whole[1].value or 0) > (whole[0].value or 0)
    for device_class in sorted(olds.keys() & news.keys()):
        old, new = _p95(olds[device_class]), _p95(news[device_class])
        if old.value and new.value and old.high is not None and new.low is not None and new.low > old.high:
            yield Regression(
                measure="latency",
                model=model,
                dimension="device_class",
                name=device_class,
                before=span(old),
                after=span(new),
                worse=new.value / old.value - 1.0,
                hidden=not is_average_worse,
                versions=versions,
            )


def _slow(facts: Facts, main: tuple[Mapping[str, str], Mapping[str, str]]) -> Iterator[Regression]:
    olds, news = _counted(facts.hours_before), _counted(facts.hours)
    for model, device_class in sorted(olds.keys() & news.keys()):
        (asked, slow), (asks, slows) = olds[model, device_class], news[model, device_class]
        if min(asked, asks) < REQUESTS_MIN:
            continue
        old, new = slow / asked, slows / asks
        if new >= old * SLOW_FACTOR and new >= old + SLOW_RISE:
            yield Regression(
                measure="slow",
                model=model,
                dimension="device_class",
                name=device_class,
                before=Span(value=old),
                after=Span(value=new),
                worse=new - old,
                versions=(main[0].get(model, ""), main[1].get(model, "")),
            )


def span(figure: Figure) -> Span:
    assert figure.value is not None, "unknown is not compared"
    return Span(value=figure.value, low=figure.low, high=figure.high)


def _p95(sums: Sequence[MixedSum]) -> Figure:
    return latency_ms(sums, (P95,))[P95]


def _counted(hours: Iterable[Series]) -> dict[tuple[str, str], tuple[int, int]]:
    """Return (requests, slow ones) by model and device class."""
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    for each in hours:
        if each.group.model != HOST:
            key = each.group.model, each.group.device_class
            asked, slow = totals.get(key, (0, 0))
            totals[key] = asked + each.requests, slow + each.slow
    return totals


def _main(hours: Iterable[Series]) -> dict[str, str]:
    """Return the version of each model that answered most requests."""
    counts: Counter[tuple[str, str]] = Counter()
    for each in hours:
        if each.group.model != HOST:
            counts[each.group.model, each.group.version] += each.requests
    return {model: version for (model, version), _ in sorted(counts.items(), key=lambda item: (item[1], item[0]))}


def _model(each: MixedSum) -> str:
    return each.cell.model
