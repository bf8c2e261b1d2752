"""A review out of its facts. Pure."""

from collections.abc import Sequence
from typing import Final, TypeVar

from muster_controller.core.metrics.series import HOST, headroom
from muster_controller.core.review import regressions, suspects
from muster_controller.core.review.costs import costs
from muster_controller.core.review.facts import Facts, Review, Room

FOUND_MAX: Final = 50
"""Of each section."""
T = TypeVar("T")


def make(facts: Facts) -> Review:
    """Return the review of `facts.week`."""
    worse, odd, dear = regressions.found(facts), suspects.found(facts), costs(facts.hours)
    rooms = [
        Room(
            device_class=each.device_class,
            devices=each.devices,
            busiest_at=each.at,
            cpu_percent=each.cpu_percent,
            cpu_percent_max=each.cpu_percent_max,
            requests_per_s_peak=each.requests_peak,
            factor=each.factor,
        )
        for each in headroom([hour for hour in facts.hours if hour.group.model == HOST])
    ]
    coming = sorted(facts.coming, key=lambda each: (each.at is None, each.at or 0.0, each.kind, each.name))
    sections: tuple[Sequence[object], ...] = (worse, odd, rooms, coming, dear)
    return Review(
        week=str(facts.week),
        fleet=facts.fleet,
        begin=facts.week.begin,
        end=facts.week.end,
        devices=facts.devices,
        regressions=_first(worse),
        suspects=_first(odd),
        rooms=_first(rooms),
        coming=_first(coming),
        costs=_first(dear),
        left_out=sum(max(0, len(each) - FOUND_MAX) for each in sections),
    )


def _first(found: Sequence[T]) -> tuple[T, ...]:
    return tuple(found[:FOUND_MAX])
