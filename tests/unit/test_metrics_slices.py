"""Releases side by side: the slice that got worse while the average got better, found at the real noise."""

from collections.abc import Mapping, Sequence
from random import Random

import numpy
import pytest
from numpy.random import Generator

from harness.noised import cell, hour
from muster_controller.core.metrics.slices import Dimension, Measure, Slice, compare, regressions, slices
from muster_controller.core.metrics.sums import MixedSum
from muster_shared.metrics import Cell, Kind

DEVICES = 10_000
OLD, NEW = 113, 214
"""Classes of two releases of a model that tells types of files (magika's)."""
LABELS_OLD = (*(f"type-{index}" for index in range(OLD - 1)), "perl")
LABELS_NEW = ("perl", *(f"type-{index}" for index in range(NEW - 1)))
COMMON = ("type-0", "type-1", "type-2", "type-3", "type-4", "type-5", "type-6", "perl")


def feedback(
    rng: Random,
    population: Generator,
    right: Mapping[str, float],
    shares: Mapping[str, float],
    labels: Sequence[str],
    *,
    of: Cell,
    hours: range,
    devices: int = DEVICES,
) -> list[MixedSum]:
    """Return hours of feedback: each device has one labelled file an hour, the same kind of file for all of them."""
    found = []
    index = {name: at for at, name in enumerate(labels)}
    names = list(shares)
    for number in hours:
        votes = [0.0] * (2 * len(labels))
        asked = population.multinomial(devices, [shares[name] for name in names]).tolist()
        for name, count in zip(names, asked, strict=True):
            good = int(population.binomial(count, right[name]))
            votes[2 * index[name]] = count - good
            votes[2 * index[name] + 1] = good
        found.append(hour(rng, Kind.FEEDBACK, votes, devices=devices, number=number, of=of))
    return found


PERL = 25 / 900
SHARES = {**dict.fromkeys(COMMON[:-1], (1 - PERL) / 7), "perl": PERL}
OLD_RIGHT = {**dict.fromkeys(COMMON[:-1], 0.868), "perl": 1.0}
NEW_RIGHT = {**dict.fromkeys(COMMON[:-1], 0.981), "perl": 0.4}


def magika(seed: int, hours: int) -> tuple[list[MixedSum], list[MixedSum]]:
    rng, population = Random(seed), numpy.random.default_rng(seed)
    old, new = cell("0.5.1", classes=OLD), cell("1.0.3", classes=NEW)
    before = feedback(rng, population, OLD_RIGHT, SHARES, LABELS_OLD, of=old, hours=range(hours))
    after = feedback(rng, population, NEW_RIGHT, SHARES, LABELS_NEW, of=new, hours=range(24, 24 + hours))
    return before, after


def overall(found: Sequence[Slice]) -> Slice:
    return next(each for each in found if each.dimension is Dimension.ALL and each.measure is Measure.ACCURACY)


def test_perl_files_that_got_worse_are_found_although_the_average_got_better() -> None:
    before, after = magika(1, 24)

    found = regressions(before, after, labels=(LABELS_OLD, LABELS_NEW))

    (perl,) = found
    assert (perl.dimension, perl.name, perl.measure) == (Dimension.CLASS, "perl", Measure.ACCURACY)
    assert perl.is_hidden
    assert perl.worse == pytest.approx(0.6, abs=0.2)
    assert perl.p_adjusted is not None
    assert perl.p_adjusted < 0.001
    whole = overall(slices(before, after, labels=(LABELS_OLD, LABELS_NEW)))
    assert whole.worse is not None
    assert whole.worse < -0.05
    assert not whole.is_regression


def test_perl_is_found_in_most_fleets_within_six_hours() -> None:
    found = 0
    for seed in range(20):
        before, after = magika(seed, 6)
        found += any(each.name == "perl" for each in regressions(before, after, labels=(LABELS_OLD, LABELS_NEW)))

    assert found >= 18


def test_without_labels_classes_of_other_releases_are_matched_by_their_index() -> None:
    before, after = magika(2, 24)

    found = slices(before, after)

    names = [each.name for each in found if each.dimension is Dimension.CLASS]
    assert sorted(names, key=int) == [str(index) for index in range(OLD)]


def test_a_release_that_is_nowhere_worse_has_hardly_ever_a_slice_that_is_called_so() -> None:
    rng, population = Random(4), numpy.random.default_rng(4)
    right = dict.fromkeys(COMMON, 0.93)
    called = 0

    for _ in range(200):
        before = feedback(rng, population, right, SHARES, COMMON, of=cell("1.0.0", classes=8), hours=range(3))
        after = feedback(rng, population, right, SHARES, COMMON, of=cell("1.1.0", classes=8), hours=range(3, 6))
        called += bool(regressions(before, after))

    assert called <= 18  # 10 are expected at alpha 0.05; more than 18 of 200 would be one in 200 such tests.


def test_a_device_class_that_got_worse_is_named_and_one_with_too_little_in_it_is_not_tested() -> None:
    rng, population = Random(5), numpy.random.default_rng(5)
    after, before = [], []
    for device_class, now, devices in (("nuc-cpu", 0.97, DEVICES), ("pi5-cpu", 0.8, 4000), ("jetson", 0.2, 40)):
        for found, version, right, begin in ((before, "1.0.0", 0.9, 0), (after, "1.1.0", now, 6)):
            found += feedback(
                rng, population, dict.fromkeys(COMMON, right), SHARES, COMMON,
                of=cell(version, device_class, classes=8), hours=range(begin, begin + 6), devices=devices,
            )  # fmt: skip

    found = slices(before, after)

    of_class = {each.name: each for each in found if each.dimension is Dimension.DEVICE_CLASS}
    assert of_class["pi5-cpu"].is_regression
    assert of_class["pi5-cpu"].is_hidden
    assert not of_class["nuc-cpu"].is_regression
    assert of_class["jetson"].p is None
    assert not any(each.dimension is Dimension.REGION for each in found)


def test_more_requests_that_fail_in_a_region_are_a_regression() -> None:
    rng = Random(6)
    good, bad = [9500.0, 0, 0, 0, 0, 500.0, 0, 0], [8500.0, 0, 0, 0, 0, 1500.0, 0, 0]
    before = [hour(rng, Kind.INPUTS, good, devices=DEVICES, of=cell("1.0.0", region=name)) for name in ("n", "s")]
    after = [
        hour(rng, Kind.INPUTS, votes, devices=DEVICES, of=cell("1.1.0", region=name), number=1)
        for name, votes in (("n", good), ("s", bad))
    ]

    found = regressions(before, after)

    assert (Dimension.REGION, "s") in {(each.dimension, each.name) for each in found}
    assert (Dimension.REGION, "n") not in {(each.dimension, each.name) for each in found}
    assert {each.measure for each in found} == {Measure.FAILURES}


def test_a_comparison_tells_the_difference_with_its_interval_and_what_it_is_worth() -> None:
    before, after = magika(7, 24)

    found = compare(before, after, labels=(LABELS_OLD, LABELS_NEW))

    _, _, accuracy = found.accuracy
    assert accuracy.value == pytest.approx(0.093, abs=0.03)
    assert accuracy.low is not None
    assert accuracy.low > 0
    assert accuracy.p is not None
    assert accuracy.e is not None
    assert accuracy.p < 0.001
    assert accuracy.e > 50
    assert found.confidence[2].value is None
    assert found.classes == ()
