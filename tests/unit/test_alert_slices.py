"""A release that is better on average and worse for one class: the magika case, from noised sums to a message."""

import random

from muster_controller.core.alerts.content import Compared, fallen
from muster_controller.core.alerts.grouping import group
from muster_controller.core.alerts.judge import Facts, judge
from muster_controller.core.alerts.machine import State, advance
from muster_controller.core.metrics.slices import slices
from muster_controller.core.metrics.sums import MixedSum
from muster_shared.ids import ModelName
from muster_shared.metrics import HOUR_S, UNITS, Cell, Kind, sigma

NOW = 1_800_000_000.0
LABELS = (*(f"kind-{index}" for index in range(213)), "perl")  # Magika tells 214 kinds of files apart.
PERL = len(LABELS) - 1
DEVICES = 10_000
HOURS = 7 * 24


def week_of(version: str, right: list[float], rng: random.Random, *, devices: int = DEVICES) -> list[MixedSum]:
    """Return the feedback of a week, an hour each, with the noise that a mixer adds. Every class is as frequent."""
    cell = Cell(model=ModelName("magika"), version=version, device_class="nuc", classes=len(LABELS))
    noise = sigma(Kind.FEEDBACK)
    units = devices * UNITS / len(LABELS)
    found = []
    for hour in range(HOURS):
        truth = [part for share in right for part in (units * (1 - share), units * share)]
        found.append(
            MixedSum(
                batch=f"{version}-{hour}",
                kind=Kind.FEEDBACK,
                mixer="one",
                cell=cell,
                period_start=NOW - (HOURS - hour) * HOUR_S,
                period_s=HOUR_S,
                devices=devices,
                sums=tuple(round(rng.gauss(number, noise)) for number in truth),
                variance=noise**2,
            )
        )
    return found


def compared(before: list[float], after: list[float], seed: int = 3) -> Compared:
    rng = random.Random(seed)
    old, new = week_of("1.0.0", before, rng), week_of("2.0.0", after, rng)
    return Compared("magika", "1.0.0", "2.0.0", tuple(slices(old, new, labels=(LABELS, LABELS))))


def test_perl_that_fell_is_told_although_the_average_improved() -> None:
    before = [0.93] * len(LABELS)
    after = [0.965] * len(LABELS)
    before[PERL], after[PERL] = 1.0, 0.4
    facts = Facts(now=NOW, compared=(compared(before, after),))

    step = advance([], judge(facts), [], NOW, ["a"])

    (alert,) = step.saved
    assert (alert.rule, alert.subject, alert.state) == ("slice-regression", "magika/2.0.0", State.FIRING)
    assert (alert.facts["slice"], alert.facts["dimension"], alert.facts["hidden"]) == ("perl", "class", True)
    assert alert.facts["overall_after"] > alert.facts["overall_before"]  # type: ignore[operator]  # Both are numbers.
    (notice,) = group(step.tellings, "lab", NOW)
    assert "accuracy on class perl" in notice.body.text
    assert "although the average went from" in notice.body.text


def test_two_releases_that_are_equally_good_raise_nothing() -> None:
    even = [0.93] * len(LABELS)

    found = [each for seed in range(5) for each in fallen([compared(even, even, seed)])]

    assert found == []


def test_a_release_that_is_worse_everywhere_is_told_once() -> None:
    found = list(fallen([compared([0.93] * len(LABELS), [0.80] * len(LABELS))]))

    assert [(each.subject, each.facts["dimension"]) for each in found] == [("magika/2.0.0", "all")]
