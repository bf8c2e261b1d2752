"""Figures from noised sums, against the truth that they were made from."""

import math
from itertools import pairwise
from random import Random
from statistics import NormalDist, fmean

import numpy
import pytest
from scipy import stats

from harness.noised import cell, hour
from muster_controller.core.metrics.estimates import (
    accuracy,
    accuracy_by_class,
    class_shares,
    drift_shares,
    failed_share,
    input_shares,
    latency_ms,
    mean_confidence,
)
from muster_controller.core.metrics.figures import above, e_value
from muster_controller.core.metrics.series import HOST, Group, Series, headroom
from muster_controller.core.metrics.slices import holm
from muster_controller.core.metrics.sums import MixedSum, pooled
from muster_shared.metrics import CONFIDENCE_BINS, LATENCY_BUCKETS, Kind

DEVICES = 10_000
SHARES = (0.1, 0.3, 0.05, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05)


def split(shares: tuple[float, ...], devices: int = DEVICES) -> list[float]:
    return [devices * each for each in shares]


def latencies(median_us: float, sigma: float, devices: int = DEVICES) -> list[float]:
    """Votes of log-normal latencies by bucket floor(4 log2 us)."""
    log = NormalDist(math.log(median_us), sigma)
    edges = [log.cdf(math.log(2 ** (bucket / 4))) for bucket in range(LATENCY_BUCKETS + 1)]
    return [devices * (after - before) for before, after in pairwise(edges)]


def test_a_class_of_ten_percent_is_within_two_percent_of_itself_in_an_hour_of_ten_thousand_devices() -> None:
    rng = Random(1)

    errors = [class_shares([hour(rng, Kind.CLASSES, split(SHARES), devices=DEVICES)])[0] for _ in range(200)]

    off = [abs((each.value or 0.0) - 0.1) / 0.1 for each in errors]
    assert fmean(off) < 0.02
    assert errors[0].noise == pytest.approx(0.1 * 0.019, rel=0.1)  # 19.8 devices of 1,000.


def test_intervals_of_class_shares_hold_the_truth_as_often_as_they_say() -> None:
    rng, population = Random(2), numpy.random.default_rng(2)
    held = total = 0

    for _ in range(300):
        truth = population.multinomial(DEVICES, SHARES).tolist()  # The sample: each device votes once.
        for figure, share in zip(class_shares([hour(rng, Kind.CLASSES, truth, devices=DEVICES)]), SHARES, strict=True):
            assert figure.low is not None
            assert figure.high is not None
            held += figure.low <= share <= figure.high
            total += 1

    assert 0.935 < held / total < 0.975


def test_shares_of_classes_that_nobody_saw_are_not_lifted_by_cut_off_noise() -> None:
    rng = Random(3)
    hours = [hour(rng, Kind.CLASSES, [DEVICES, *[0.0] * 9], devices=DEVICES, number=n) for n in range(240)]

    figures = class_shares(hours)

    assert max((figure.value or 0.0) for figure in figures[1:]) < 0.0005
    assert figures[0].value == pytest.approx(1.0, abs=0.001)


def test_a_share_of_thirty_devices_is_unknown_and_never_zero() -> None:
    rng = Random(4)

    figures = class_shares([hour(rng, Kind.CLASSES, [3.0] * 10, devices=30)])

    assert [figure.value for figure in figures] == [None] * 10
    assert figures[0].devices == 30
    assert figures[0].rho > 0


def test_nothing_at_all_gives_unknown_figures() -> None:
    nothing: list[MixedSum] = []

    assert accuracy(nothing).value is None
    assert mean_confidence(nothing).value is None
    assert input_shares(nothing)["plain"].value is None
    assert latency_ms(nothing)[0.95].value is None
    assert class_shares(nothing) == []


def test_what_a_figure_cost_is_that_of_its_hours_however_many_cells_there_are() -> None:
    rng = Random(5)
    classes = [cell(device_class=name) for name in ("pi5-cpu", "nuc-cpu", "jetson")]
    found = [
        hour(rng, Kind.CLASSES, split(SHARES), devices=DEVICES, number=number, of=each)
        for number in range(24)
        for each in classes
    ]

    figure = class_shares(found)[0]

    assert figure.devices == 3 * DEVICES
    assert figure.periods == 24
    assert figure.rho == pytest.approx(24 * 0.1 / 25 * 0.64)
    assert figure.eps == pytest.approx(figure.rho + 2 * math.sqrt(figure.rho * math.log(1e6)))


def test_pools_of_releases_with_other_numbers_of_classes_add_up() -> None:
    rng = Random(6)
    few = hour(rng, Kind.CLASSES, [5.0, 5.0], devices=20, of=cell(classes=2))
    many = hour(rng, Kind.CLASSES, [1.0, 2.0, 3.0], devices=20, number=1, of=cell("1.1.0", classes=3))

    pool = pooled([few, many])

    assert pool.sums == (few.sums[0] + many.sums[0], few.sums[1] + many.sums[1], many.sums[2])
    assert pool.variances == (few.variance + many.variance, few.variance + many.variance, many.variance)


def test_mean_confidence_is_that_of_the_histogram() -> None:
    rng = Random(7)
    shares = [0.0] * 16 + [0.1, 0.2, 0.3, 0.4]
    truth = sum((index + 0.5) / CONFIDENCE_BINS * share for index, share in enumerate(shares))

    figure = mean_confidence([hour(rng, Kind.CONFIDENCE, split(tuple(shares)), devices=DEVICES)])

    assert figure.value == pytest.approx(truth, abs=0.06)
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < truth < figure.high


def test_latency_quantiles_of_a_day_are_near_the_truth_and_their_intervals_hold_it() -> None:
    rng = Random(8)
    truth = NormalDist(math.log(8000.0), 0.4)
    held = 0

    for _ in range(40):
        hours = [hour(rng, Kind.LATENCY, latencies(8000.0, 0.4), devices=DEVICES, number=n) for n in range(24)]
        found = latency_ms(hours, (0.5, 0.95))
        for quantile, figure in found.items():
            wanted = math.exp(truth.inv_cdf(quantile)) / 1000
            assert figure.value is not None
            assert figure.low is not None
            assert figure.high is not None
            assert figure.value == pytest.approx(wanted, rel=0.2)
            held += figure.low <= wanted <= figure.high

    assert held >= 74  # Of 80.


def test_a_quantile_that_noise_hides_is_unknown() -> None:
    rng = Random(9)

    found = latency_ms([hour(rng, Kind.LATENCY, latencies(8000.0, 0.4, 100), devices=100)])

    assert [figure.value for figure in found.values()] == [None, None, None]


def test_failures_and_drift_are_shares_of_what_was_said() -> None:
    rng = Random(10)
    asked = hour(rng, Kind.INPUTS, split((0.7, 0.05, 0.05, 0.0, 0.05, 0.1, 0.05, 0.0)), devices=DEVICES)
    drift = hour(rng, Kind.DRIFT, split((0.6, 0.3, 0.1, 0.0)), devices=DEVICES)

    assert input_shares([asked, drift])["plain"].value == pytest.approx(0.7, abs=0.05)
    assert failed_share([asked, drift]).value == pytest.approx(0.2, abs=0.05)
    assert drift_shares([asked, drift])["drifting"].value == pytest.approx(0.3, abs=0.05)


def test_accuracy_is_known_overall_and_by_class_where_there_were_labels() -> None:
    rng = Random(11)
    wrong_right = []
    for share in (0.5, 0.49, 0.01):
        wrong_right += [DEVICES * share * 0.1, DEVICES * share * 0.9]

    found = [hour(rng, Kind.FEEDBACK, wrong_right, devices=DEVICES, of=cell(classes=3))]

    assert accuracy(found).value == pytest.approx(0.9, abs=0.03)
    assert [each.value is None for each in accuracy_by_class(found)] == [False, False, True]
    assert accuracy_by_class(found)[0].value == pytest.approx(0.9, abs=0.05)


def test_tails_and_corrections_agree_with_the_library() -> None:
    assert above(2.5) == pytest.approx(stats.norm.sf(2.5))
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02], nan_ok=True)
    assert e_value(0.5) < 1.2
    # An e-value is 1 on average where nothing is the matter.
    assert fmean(e_value((each + 0.5) / 100_000) for each in range(100_000)) == pytest.approx(1.0, abs=0.15)


def test_headroom_is_of_the_busiest_hour_of_a_class_over_all_regions() -> None:
    def point(region: str, at: float, cpu: float, requests: int) -> Series:
        return Series(
            Group(HOST, HOST, "pi5-cpu", region),
            at,
            3600,
            devices=10,
            requests=requests,
            cpu_percent_max=cpu + 5,
            cpu_percent_sum=cpu * 10,
            cpu_told=10,
        )

    hours = [
        point("north", 0.0, 20, 3600), point("south", 0.0, 40, 0),
        point("north", 3600.0, 60, 1800), point("south", 3600.0, 20, 1800 + 36),
    ]  # fmt: skip

    (found,) = headroom(hours)

    assert (found.at, found.cpu_percent, found.cpu_percent_max, found.devices) == (3600.0, 40.0, 65.0, 20)
    assert found.factor == 2.5
    assert (found.requests_peak, found.requests_peak_at) == (3636 / 3600, 3600.0)
