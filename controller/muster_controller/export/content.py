"""From noised sums and series to what the metric families say of each release and device class. Pure."""

from collections.abc import Callable, Iterable, Sequence

from muster_controller.core.metrics.estimates import accuracy, class_shares, drift_shares, input_shares
from muster_controller.core.metrics.series import HOST, Series
from muster_controller.core.metrics.sums import MixedSum
from muster_controller.export.gathering import Busy, Content

Names = Callable[[str, str], Sequence[str]]
"""Of a model and version, what its classes are called; empty: nobody says."""


def newest(found: Iterable[MixedSum], names: Names) -> list[Content]:
    """Return the newest period of each release and device class, over regions and late batches; sorted by name.

    Args:
        found: Of one length of period, in the order of time.
    """
    cells: dict[tuple[str, str, str], list[MixedSum]] = {}
    for each in found:
        key = each.cell.model, each.cell.version, each.cell.device_class
        known = cells.setdefault(key, [])
        if known and known[0].period_start < each.period_start:
            known.clear()
        known.append(each)
    return [_content(*key, sums, names(key[0], key[1])) for key, sums in sorted(cells.items())]


def busiest(found: Iterable[Series]) -> list[Busy]:
    """Return how busy hosts were in the newest period of each device class, over regions; sorted by name.

    Args:
        found: Any series, in the order of time; those of whole devices count.
    """
    classes: dict[str, list[Series]] = {}
    for each in found:
        if each.group.model == HOST:
            known = classes.setdefault(each.group.device_class, [])
            if known and known[0].at < each.at:
                known.clear()
            known.append(each)
    return [_busy(name, points) for name, points in sorted(classes.items())]


def _content(model: str, version: str, device_class: str, sums: Sequence[MixedSum], labels: Sequence[str]) -> Content:
    most: dict[str, int] = {}
    for each in sums:  # Windows of different kinds are the same devices.
        most[each.kind] = most.get(each.kind, 0) + each.devices
    return Content(
        model=model,
        version=version,
        device_class=device_class,
        period_start=sums[0].period_start,
        devices=max(most.values()),
        classes=[
            (labels[index] if index < len(labels) else str(index), figure)
            for index, figure in enumerate(class_shares(sums))
        ],
        inputs=input_shares(sums),
        drift=drift_shares(sums),
        accuracy=accuracy(sums),
    )


def _busy(device_class: str, points: Sequence[Series]) -> Busy:
    told = sum(each.cpu_told for each in points)
    return Busy(
        device_class=device_class,
        cpu_percent_max=max(
            (each.cpu_percent_max for each in points if each.cpu_percent_max is not None), default=None
        ),
        cpu_percent_mean=sum(each.cpu_percent_sum for each in points) / told if told else None,
    )
