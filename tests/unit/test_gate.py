"""The gate against the figures and promises of its design: what it stops, and how often it errs."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_controller.core.gate import HOLD, Stratum, against_controls, against_objective, evidence

ALPHA = 0.05
LIMIT = 1 / ALPHA


def _stratum(
    treated: int, bad: int, controls: int = 0, controls_bad: int = 0, *, wave: int = 0, name: str = "pi5"
) -> Stratum:
    return Stratum(wave, name, treated, bad, controls, controls_bad)


strata = st.lists(
    st.builds(
        lambda wave, name, treated, bad, controls, controls_bad: Stratum(
            wave, name, treated, min(bad, treated), controls, min(controls_bad, controls)
        ),
        st.integers(0, 3),
        st.sampled_from(["pi5", "nuc"]),
        st.integers(0, 40),
        st.integers(0, 40),
        st.integers(0, 40),
        st.integers(0, 40),
    ),
    max_size=6,
)


def test_nothing_seen_is_no_evidence_at_all() -> None:
    found = evidence([], failure_objective=0.02)

    assert found.e == pytest.approx(1.0)
    assert found.e_classes == {}


def test_one_bad_of_the_first_five_holds_and_two_abort() -> None:
    one = against_objective([_stratum(5, 1)], 0.02)
    two = against_objective([_stratum(5, 2)], 0.02)

    assert one == pytest.approx(3.0, abs=0.1)
    assert two == pytest.approx(38.0, rel=0.1)  # The continuous mixture; 32 alternatives give 35.
    assert one < LIMIT <= two


def test_a_wave_in_which_all_do_well_speaks_for_the_release() -> None:
    found = evidence([_stratum(5, 0, 50, 0)], failure_objective=0.02)

    assert found.e <= 1.0


def test_a_stratum_without_controls_says_nothing_about_controls() -> None:
    found = against_controls([_stratum(5, 5), _stratum(0, 0, 5, 5)])

    assert found == pytest.approx(1.0)


def test_a_shock_that_hits_both_arms_alike_is_no_evidence_against_controls() -> None:
    found = against_controls([_stratum(20, 10, 200, 100)])

    assert found < 1.0


def test_harm_confined_to_one_class_is_found_although_the_fleet_as_a_whole_looks_well() -> None:
    well = [_stratum(40, 0, 400, 4, name="nuc")]
    harmed = [*well, _stratum(4, 3, 40, 0, name="pi5")]

    found = evidence(harmed, failure_objective=0.05)

    assert found.e >= LIMIT
    assert found.e_classes["pi5"] > found.e_classes["nuc"]


def test_a_tolerated_worsening_weakens_the_evidence() -> None:
    seen = [_stratum(10, 4, 100, 10)]

    strict = evidence(seen, failure_objective=0.1, tolerance=1.0)
    lenient = evidence(seen, failure_objective=0.1, tolerance=3.0)

    assert lenient.e < strict.e


def test_a_thousand_bad_outcomes_do_not_overflow() -> None:
    found = evidence([_stratum(100_000, 100_000, 1_000_000, 0)], failure_objective=0.02)

    assert found.e > LIMIT


@given(strata)
def test_evidence_is_positive_and_can_be_computed_again_from_what_is_stored_with_it(seen: list[Stratum]) -> None:
    found = evidence(seen, failure_objective=0.02)

    assert found.e > 0
    assert evidence(found.strata, failure_objective=0.02) == found


@given(strata, st.data())
def test_one_more_bad_treated_device_never_speaks_for_the_release(seen: list[Stratum], data: st.DataObject) -> None:
    places = [index for index, each in enumerate(seen) if each.treated_bad < each.treated]
    if not places:
        return
    where = data.draw(st.sampled_from(places))
    each = seen[where]
    worse = [*seen]
    worse[where] = Stratum(
        each.wave, each.device_class, each.treated, each.treated_bad + 1, each.controls, each.controls_bad
    )

    before, after = evidence(seen, failure_objective=0.02), evidence(worse, failure_objective=0.02)

    assert after.e >= before.e * (1 - 1e-9)


@given(strata, st.randoms(use_true_random=False))
def test_the_order_of_strata_does_not_matter(seen: list[Stratum], random: Random) -> None:
    shuffled = [*seen]
    random.shuffle(shuffled)

    assert evidence(shuffled, failure_objective=0.02).e == pytest.approx(evidence(seen, failure_objective=0.02).e)


@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 200))
@settings(max_examples=60)
def test_pending_devices_counted_as_good_bound_the_evidence_from_below(treated: int, bad: int, pending: int) -> None:
    bad, pending = min(bad, treated), min(pending, treated)

    with_pending = against_objective([_stratum(treated + pending, bad)], 0.02)
    without = against_objective([_stratum(treated, bad)], 0.02)

    assert with_pending <= without * (1 + 1e-9)


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
            if evidence(now, failure_objective=0.02).e >= LIMIT:
                return True
        done = now
    return False


def _exposed_until_abort(random: Random, bad_controls: float, bad_treated: float) -> int:
    treated_bad = controls_bad = 0
    for exposed in range(1, 500):
        treated_bad += random.random() < bad_treated
        controls_bad += sum(random.random() < bad_controls for _ in range(10))
        if evidence([_stratum(exposed, treated_bad, 10 * exposed, controls_bad)], failure_objective=0.02).e >= LIMIT:
            return exposed
    return 500
