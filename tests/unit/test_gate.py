"""The gate against the figures and promises of its design: what it stops, and how often it errs."""

from dataclasses import replace
from itertools import product
from math import comb, log
from random import Random

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from muster_controller.core.gate.agreement import against_disagreement
from muster_controller.core.gate.evidence import (
    AGREEMENT,
    DEFAULT_WEIGHTS,
    FAILURES,
    HOLD,
    LATENCY,
    METRICS,
    Evidence,
    Terms,
    evidence,
    scaled,
    undecided,
    verdict,
)
from muster_controller.core.gate.failures import against_controls, against_objective
from muster_controller.core.gate.latency import against_slowdown
from muster_controller.core.gate.strata import LATENCY_CLIP, LATENCY_STEP, Stratum, VerdictKind, latency_bin

ALPHA = 0.05
LIMIT = 1 / ALPHA
ALONE = Terms(weights={FAILURES: 1.0})
LAST_BIN = 50  # LATENCY_CLIP / LATENCY_STEP


def _stratum(
    treated: int,
    bad: int,
    controls: int = 0,
    controls_bad: int = 0,
    *,
    wave: int = 0,
    name: str = "pi5",
    latency: tuple[tuple[int, int], ...] = (),
    compared: int = 0,
    disagreed: int = 0,
) -> Stratum:
    return Stratum(wave, name, treated, bad, controls, controls_bad, latency, compared, disagreed)


def _any_stratum(
    wave: int, name: str, treated: int, bad: int, controls: int, controls_bad: int, bins: dict[int, int], disagreed: int
) -> Stratum:
    return Stratum(
        wave,
        name,
        treated,
        min(bad, treated),
        controls,
        min(controls_bad, controls),
        tuple(sorted(bins.items())),
        treated,
        min(disagreed, treated),
    )


counts = st.integers(0, 40)
strata = st.lists(
    st.builds(
        _any_stratum,
        st.integers(0, 3),
        st.sampled_from(["pi5", "nuc"]),
        counts,
        counts,
        counts,
        counts,
        st.dictionaries(st.integers(-LAST_BIN, LAST_BIN), st.integers(1, 9), max_size=4),
        st.integers(0, 5),
    ),
    max_size=6,
)


def test_nothing_seen_is_no_evidence_at_all_and_leaves_every_metric_undecided() -> None:
    found = evidence([], Terms())

    assert found.e == pytest.approx(1.0)
    assert all(metric.e_classes == {} for metric in found.metrics.values())
    assert undecided(found.strata, Terms()) == METRICS


def test_one_bad_of_the_first_five_holds_and_two_abort() -> None:
    one = evidence([_stratum(5, 1, 50, 0)], Terms())
    two = evidence([_stratum(5, 2, 50, 0)], Terms())

    assert verdict(one, ALPHA) is VerdictKind.HOLD
    assert verdict(two, ALPHA) is VerdictKind.ABORT


def test_so_they_do_where_nothing_could_be_held_back() -> None:
    terms = Terms(has_controls=False)

    one, two = evidence([_stratum(5, 1)], terms), evidence([_stratum(5, 2)], terms)

    assert one.e_objective == pytest.approx(3.0, abs=0.2)
    assert two.e_objective == pytest.approx(38.0, abs=1.0)
    assert verdict(one, ALPHA) is VerdictKind.HOLD
    assert verdict(two, ALPHA) is VerdictKind.ABORT


def test_a_wave_in_which_all_do_well_speaks_for_the_release() -> None:
    seen = [_stratum(5, 0, 50, 0, latency=((0, 5),), compared=5)]

    found = evidence(seen, Terms())

    assert found.e <= 1.0
    assert verdict(found, ALPHA) is VerdictKind.PROMOTE


def test_a_metric_of_which_nothing_was_seen_is_undecided_where_it_is_in_use() -> None:
    seen = [_stratum(20, 0, 200, 2, compared=20)]

    assert undecided(seen, Terms()) == (LATENCY,)
    assert undecided(seen, ALONE) == ()


def test_a_stratum_without_controls_says_nothing_about_controls() -> None:
    found = against_controls([_stratum(5, 5), _stratum(0, 0, 5, 5)])

    assert found == pytest.approx(1.0)


def test_a_shock_that_hits_both_arms_alike_holds_and_never_aborts() -> None:
    seen = [_stratum(400, 40, 4000, 400)]

    found = evidence(seen, ALONE)

    assert found.e < 1.0
    assert found.e_objective > LIMIT
    assert verdict(found, ALPHA) is VerdictKind.HOLD


def test_a_wave_with_fewer_controls_than_treated_devices_is_judged_by_the_objective() -> None:
    before = [_stratum(25, 0, 250, 2)]
    last = _stratum(400, 24, 100, 2, wave=1)

    found = evidence([*before, last], ALONE)

    assert found.metrics[FAILURES].e_pooled == pytest.approx(
        against_controls(before) * against_objective([last], ALONE.failure_objective)
    )
    assert verdict(found, ALPHA) is VerdictKind.ABORT


def test_bricks_confined_to_one_class_are_found_although_the_fleet_as_a_whole_looks_well() -> None:
    well = [_stratum(400, 4, 4000, 40, name="nuc")]
    harmed = [*well, _stratum(8, 4, 80, 0, name="pi5")]

    found = evidence(harmed, Terms())

    assert verdict(evidence(well, ALONE), ALPHA) is VerdictKind.PROMOTE
    assert found.e >= LIMIT
    assert found.metrics[FAILURES].e_classes["pi5"] > LIMIT > found.metrics[FAILURES].e_classes["nuc"]


def test_a_tolerated_worsening_weakens_the_evidence() -> None:
    seen = [_stratum(10, 4, 100, 10)]

    assert against_controls(seen, 3.0) < against_controls(seen, 1.0)


def test_a_thousand_bad_outcomes_do_not_overflow() -> None:
    seen = [_stratum(100_000, 100_000, 1_000_000, 0, latency=((LAST_BIN, 100_000),), compared=9, disagreed=9)]

    found = evidence(seen, Terms())

    assert LIMIT < found.e < float("inf")


def test_devices_that_all_slow_down_by_a_fifth_are_stopped_within_thirty() -> None:
    d = int(log(1.2) // LATENCY_STEP)

    after_30 = evidence([_stratum(30, 0, 300, 3, latency=((d - 16, 10), (d, 10), (d + 14, 10)))], Terms())

    assert after_30.e >= LIMIT
    assert after_30.metrics[FAILURES].e < 1.0


def test_a_slowdown_within_tolerance_is_evidence_for_the_release() -> None:
    within = against_slowdown([_stratum(200, 0, latency=((9, 200),))], 0.05)  # 9 steps are 4.6 %.
    beyond = against_slowdown([_stratum(200, 0, latency=((14, 200),))], 0.05)

    assert within < 1.0
    assert beyond > LIMIT


def test_a_class_of_a_tenth_that_slows_down_by_half_is_stopped_by_its_own_evidence() -> None:
    rare = _stratum(17, 0, 170, 1, name="pi4", latency=((LAST_BIN - 1, 17),))
    rest = [_stratum(51, 0, 510, 5, name=name, latency=((-1, 51),)) for name in ("pi5", "nuc", "jetson")]

    found = evidence([rare, *rest], Terms())

    assert found.e >= LIMIT
    assert found.metrics[LATENCY].e_classes["pi4"] > LIMIT
    assert all(found.metrics[LATENCY].e_classes[stratum.device_class] < 1 for stratum in rest)


def test_disagreement_on_many_devices_stops_a_release_that_fails_nowhere() -> None:
    seen = [_stratum(20, 0, 200, 2, latency=((0, 20),), compared=20, disagreed=8)]

    found = evidence(seen, Terms())

    assert verdict(found, ALPHA) is VerdictKind.ABORT
    assert found.metrics[AGREEMENT].e == pytest.approx(against_disagreement(seen, 0.02))


def test_a_bin_is_rounded_down_so_that_evidence_only_shrinks() -> None:
    assert latency_bin(0.0149, [0.0]) == 2
    assert latency_bin(-0.0001, [0.0]) == -1


def test_each_difference_is_clipped_before_the_mean_is_taken() -> None:
    assert latency_bin(5.0, [0.0, 0.0]) == LAST_BIN
    assert latency_bin(-5.0, [0.0]) == -LAST_BIN
    assert latency_bin(0.1, [0.0, -9.0]) == int((0.1 + LATENCY_CLIP) / 2 / LATENCY_STEP)


def test_a_device_without_controls_has_no_bin() -> None:
    assert latency_bin(0.3, []) is None


@given(st.floats(-2, 2), st.lists(st.floats(-2, 2), min_size=1, max_size=10), st.floats(-3, 3))
def test_what_befalls_a_device_and_its_controls_alike_moves_no_bin(
    treated: float, controls: list[float], hour: float
) -> None:
    still = latency_bin(treated, controls)
    moved = latency_bin(treated + hour, [z + hour for z in controls])

    assert still is not None
    assert moved is not None
    assert abs(still - moved) <= 1  # Rounding alone.


def test_stopping_at_one_metrics_share_of_alpha_is_stopping_on_the_mean() -> None:
    seen = [_stratum(5, 4, 50, 0, latency=((-LAST_BIN, 5),), compared=5)]

    found = evidence(seen, Terms())

    assert found.metrics[FAILURES].e >= 1 / (ALPHA * DEFAULT_WEIGHTS[FAILURES])
    assert found.e >= LIMIT


def test_weights_of_the_metrics_in_use_sum_to_one_and_keep_their_proportions() -> None:
    some = scaled({**DEFAULT_WEIGHTS, AGREEMENT: 0.0})

    assert sum(DEFAULT_WEIGHTS.values()) == pytest.approx(1.0)
    assert sum(some.values()) == pytest.approx(1.0)
    assert some[FAILURES] / some[LATENCY] == pytest.approx(DEFAULT_WEIGHTS[FAILURES] / DEFAULT_WEIGHTS[LATENCY])
    assert set(some) == {FAILURES, LATENCY}


def test_where_no_metric_is_in_use_failures_are_what_is_left() -> None:
    assert scaled(dict.fromkeys(METRICS, 0.0)) == {FAILURES: 1.0}


@pytest.mark.parametrize(
    ("broken", "word"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"failure_objective": 1.0}, "failure_objective"),
        ({"disagreement_objective": float("nan")}, "disagreement_objective"),
        ({"tolerance": 0.5}, "tolerance"),
        ({"latency_tolerance": 0.3}, "latency_tolerance"),
        ({"weights": {}}, "weights"),
        ({"weights": {FAILURES: 0.5}}, "weights"),
        ({"weights": {FAILURES: 1.5, LATENCY: -0.5}}, "weights"),
        ({"weights": {FAILURES: 0.5, "luck": 0.5}}, "luck"),
    ],
)
def test_terms_that_no_evidence_could_meet_are_refused(broken: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        replace(Terms(), **broken)  # type: ignore[arg-type]


@given(strata)
def test_evidence_is_positive_and_can_be_computed_again_from_what_is_stored_with_it(seen: list[Stratum]) -> None:
    terms = Terms()

    stored = msgspec.json.encode((evidence(seen, terms), terms))
    found, agreed = msgspec.json.decode(stored, type=tuple[Evidence, Terms])

    assert found.e > 0
    assert evidence(found.strata, agreed) == evidence(seen, terms) == replace(found, strata=tuple(found.strata))


@given(strata, st.data())
def test_one_more_bad_treated_device_never_speaks_for_the_release(seen: list[Stratum], data: st.DataObject) -> None:
    places = [index for index, each in enumerate(seen) if each.treated_bad < each.treated]
    if not places:
        return
    where = data.draw(st.sampled_from(places))
    worse = [*seen]
    worse[where] = replace(seen[where], treated_bad=seen[where].treated_bad + 1)

    before, after = evidence(seen, Terms()), evidence(worse, Terms())

    assert after.e >= before.e * (1 - 1e-9)
    assert after.hold_e >= before.hold_e * (1 - 1e-9)


@given(strata, st.data())
def test_one_more_that_disagrees_or_is_slower_never_speaks_for_the_release(
    seen: list[Stratum], data: st.DataObject
) -> None:
    places = [index for index, each in enumerate(seen) if each.disagreed < each.compared and each.latency]
    if not places:
        return
    where = data.draw(st.sampled_from(places))
    (place, devices), *rest = seen[where].latency
    faster = (*seen[:where], replace(seen[where], latency=tuple((each, n) for each, n in rest)), *seen[where + 1 :])
    bins = dict(rest)
    slowest = max(bins, default=place)
    bins[slowest] = bins.get(slowest, 0) + devices
    slower = replace(seen[where], latency=tuple(sorted(bins.items())), disagreed=seen[where].disagreed + 1)

    before, after = evidence(seen, Terms()), evidence([*faster[:where], slower, *faster[where + 1 :]], Terms())

    assert after.e >= before.e * (1 - 1e-9)


@given(strata, st.randoms(use_true_random=False))
def test_the_order_of_strata_does_not_matter(seen: list[Stratum], random: Random) -> None:
    shuffled = [*seen]
    random.shuffle(shuffled)

    found, again = evidence(shuffled, Terms()), evidence(seen, Terms())

    assert found.e == pytest.approx(again.e)
    assert found.hold_e == pytest.approx(again.hold_e)


@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 200))
@settings(max_examples=60)
def test_pending_devices_counted_as_good_bound_the_evidence_from_below(treated: int, bad: int, pending: int) -> None:
    bad, pending = min(bad, treated), min(pending, treated)

    with_pending = against_objective([_stratum(treated + pending, bad)], 0.02)
    without = against_objective([_stratum(treated, bad)], 0.02)

    assert with_pending <= without * (1 + 1e-9)


def _chance(bad: int, number: int, rate: float) -> float:
    return comb(number, bad) * rate**bad * (1 - rate) ** (number - bad)


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.floats(0.01, 0.4),
    st.floats(1.0, 2.0),
    st.integers(0, 4),
    st.integers(0, 8),
)
@settings(max_examples=60, deadline=None)
def test_f1_is_a_supermartingale_while_treated_devices_are_no_worse(
    treated: int, ratio: int, rate: float, tolerance: float, bad: int, controls_bad: int
) -> None:
    controls = ratio * treated
    bad, controls_bad = min(bad, treated), min(controls_bad, controls)
    now = against_controls([_stratum(treated, bad, controls, controls_bad)], tolerance)

    # Another batch like the first joins the stratum: what E is worth on average then, all outcomes enumerated.
    then = sum(
        _chance(ours, treated, rate * tolerance)
        * _chance(theirs, controls, rate)
        * against_controls([_stratum(2 * treated, bad + ours, 2 * controls, controls_bad + theirs)], tolerance)
        for ours, theirs in product(range(treated + 1), range(controls + 1))
    )

    assert then <= now * (1 + 1e-9)


@given(st.integers(1, 30), st.integers(0, 30), st.floats(0.005, 0.3), st.floats(0, 1))
def test_f2_is_a_supermartingale_while_the_objective_is_met(number: int, bad: int, p0: float, share: float) -> None:
    bad, rate = min(bad, number), p0 * share

    now = against_objective([_stratum(number, bad)], p0)
    failed = against_objective([_stratum(number + 1, bad + 1)], p0)
    well = against_objective([_stratum(number + 1, bad)], p0)

    assert rate * failed + (1 - rate) * well <= now * (1 + 1e-9)


@given(
    st.dictionaries(st.integers(-LAST_BIN, LAST_BIN), st.integers(1, 9), max_size=4),
    st.integers(-LAST_BIN, LAST_BIN),
    st.integers(-LAST_BIN, LAST_BIN),
    st.floats(0, 0.25),
)
def test_f3_is_a_supermartingale_while_the_mean_slowdown_is_tolerated(
    before: dict[int, int], one: int, other: int, tolerated: float
) -> None:
    low, high = sorted((one, other))
    mean = log(1 + tolerated) / LATENCY_STEP
    if low > mean:
        return
    chance = 1.0 if high <= mean else (mean - low) / (high - low)  # Of `high`: as likely as the tolerated mean allows.

    def e_after(place: int) -> float:
        bins = {**before, place: before.get(place, 0) + 1}
        return against_slowdown([_stratum(1, 0, latency=tuple(sorted(bins.items())))], tolerated)

    now = against_slowdown([_stratum(1, 0, latency=tuple(sorted(before.items())))], tolerated)

    assert chance * e_after(high) + (1 - chance) * e_after(low) <= now * (1 + 1e-9)


@given(st.floats(0.0, 0.5), st.floats(0.0, 1.0), st.integers(1, LAST_BIN), st.booleans())
@example(0.5, 1.0, LAST_BIN, False)
@settings(max_examples=30, deadline=None)
def test_the_whole_evidence_is_worth_at_most_one_on_average_while_nothing_is_worse(
    rate: float, share: float, swing: int, held_back: bool
) -> None:
    terms = Terms(has_controls=held_back)
    if not held_back:
        rate = terms.failure_objective * share
    disagrees = terms.disagreement_objective * share
    sizes = {"pi5": (2, 4), "nuc": (1, 2)}
    outcomes = {
        name: [
            (
                _chance(bad, treated, rate)
                * _chance(theirs, controls, rate)
                * _chance(dis, treated, disagrees)
                * _chance(slow, treated, 0.5),
                # Each device for itself, as F3 supposes: devices that are slow together are worth more.
                Stratum(
                    0, name, treated, bad, controls, theirs, ((-swing, treated - slow), (swing, slow)), treated, dis
                ),
            )
            for bad in range(treated + 1)
            for theirs in (range(controls + 1) if held_back else (0,))
            for dis in range(treated + 1)
            for slow in range(treated + 1)
        ]
        for name, (treated, controls) in ((name, (t, c if held_back else 0)) for name, (t, c) in sizes.items())
    }

    worth = sum(
        one_chance * other_chance * evidence([one, other], terms).e
        for (one_chance, one), (other_chance, other) in product(*outcomes.values())
    )

    assert worth <= 1 + 1e-9


@pytest.mark.parametrize(("rate", "name"), [(0.02, "nothing changed"), (0.005, "a quiet fleet")])
def test_however_often_one_looks_a_release_that_is_no_worse_is_rarely_aborted(rate: float, name: str) -> None:
    random = Random(20260101)
    lives = 300

    aborted = sum(_is_ever_aborted(random, rate, rate) for _ in range(lives))

    # Ville: at most alpha of all lives. 300 lives at exactly 5 % would exceed 26 once in a thousand.
    assert aborted <= lives * ALPHA, name


def test_a_release_that_bricks_four_of_ten_is_aborted_after_few_devices() -> None:
    random = Random(7)

    exposed = sorted(_exposed_until_abort(random, 0.01, 0.4) for _ in range(60))

    assert exposed[len(exposed) // 2] <= 10
    assert exposed[int(len(exposed) * 0.9)] <= 20


def test_hold_comes_before_abort() -> None:
    assert HOLD < LIMIT


def _is_ever_aborted(random: Random, bad_treated: float, bad_controls: float) -> bool:
    """One life of a rollout: waves of growing size, ten controls each, and a look after every few reports."""
    done: list[Stratum] = []
    for wave, size in enumerate((5, 20, 80, 320)):
        treated_bad = controls_bad = seen = 0
        step = max(1, size // 5)
        while seen < size:
            seen += step
            treated_bad += sum(random.random() < bad_treated for _ in range(step))
            controls_bad += sum(random.random() < bad_controls for _ in range(10 * step))
            now = [*done, _stratum(seen, treated_bad, 10 * seen, controls_bad, wave=wave)]
            if evidence(now, ALONE).e >= LIMIT:
                return True
        done = now
    return False


def _exposed_until_abort(random: Random, bad_controls: float, bad_treated: float) -> int:
    treated_bad = controls_bad = 0
    for exposed in range(1, 500):
        treated_bad += random.random() < bad_treated
        controls_bad += sum(random.random() < bad_controls for _ in range(10))
        if evidence([_stratum(exposed, treated_bad, 10 * exposed, controls_bad)], Terms()).e >= LIMIT:
            return exposed
    return 500
