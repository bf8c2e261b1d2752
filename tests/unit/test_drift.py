"""The detectors: rare false alarms on any reference, soon at a fall, said once, and unmoved by what says nothing."""

import json
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_agent.core import drift as d
from muster_agent.core import skew as s
from muster_agent.metrics.detectors import STATE_BYTES_MAX, Detectors
from muster_agent.metrics.port import DriftState
from muster_agent.metrics.reference import Reference, statistics
from muster_agent.metrics.reference_build import Observed, build

MEAN, SPREAD = 0.842, 0.0245
CHANCE = st.floats(0, 1)


def _means(rng: np.random.Generator, count: int, mean: float = MEAN) -> list[float]:
    found: list[float] = (mean + SPREAD * rng.standard_normal(count)).tolist()
    return found


def _reference(seed: int = 0, rows: int = 2000) -> Reference:
    """Of a model of three classes, whose input is eight numbers."""
    rng = np.random.default_rng(seed)
    highest = rng.beta(16, 3, rows)
    scores = np.stack([highest, (1 - highest) * 0.6, (1 - highest) * 0.4], axis=1)
    classes = rng.choice(3, rows, p=(0.5, 0.3, 0.2))
    rolled = np.stack([np.roll(row, by) for row, by in zip(scores, classes, strict=True)]).astype(np.float32)
    return Reference.parse(build(Observed({"x": rng.standard_normal((rows, 8)).astype(np.float32)}, rolled)))


# -- ranks -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(-1, 2), CHANCE)
def test_p_is_a_share_above_zero_whatever_comes(windows: list[float], mean: float, chance: float) -> None:
    fall, rise = d.Ranks(windows).p_values(mean, chance)

    assert 0 < fall <= 1
    assert 0 < rise <= 1


@given(st.floats(0, 1), st.floats(0, 1), CHANCE)
def test_a_lower_mean_never_has_a_larger_p_of_a_fall(one: float, other: float, chance: float) -> None:
    ranks = d.Ranks([share / 100 for share in range(101)])
    low, high = sorted((one, other))

    assert ranks.p_values(low, chance)[0] <= ranks.p_values(high, chance)[0]
    assert ranks.p_values(low, chance)[1] >= ranks.p_values(high, chance)[1]


def test_windows_like_the_reference_have_p_above_a_uniform_number() -> None:
    rng = np.random.default_rng(1)

    falls = [
        d.Ranks(_means(rng, 500)).p_values(mean, chance)[0]
        for mean, chance in zip(_means(rng, 2000), rng.random(2000).tolist(), strict=True)
    ]

    for share in (0.01, 0.05, 0.2, 0.5):
        assert np.mean(np.array(falls) <= share) <= share + 0.01


def test_a_reference_in_which_all_windows_are_alike_leaves_ties_to_chance() -> None:
    ranks = d.Ranks([0.9] * 500)

    assert ranks.p_values(0.9, 0.01)[0] < 0.05 < 0.9 < ranks.p_values(0.9, 0.99)[0]
    assert ranks.p_values(0.89, 0.5)[0] < 0.01


def test_what_the_reference_does_not_know_itself_is_given_to_the_window() -> None:
    windows = _means(np.random.default_rng(2), 500)

    sure, unsure = d.Ranks(windows), d.Ranks(windows, error=SPREAD)

    assert sure.p_values(MEAN - 2 * SPREAD, 0.5)[0] < 0.06
    assert unsure.p_values(MEAN - 2 * SPREAD, 0.5)[0] > 0.4
    assert unsure.p_values(MEAN + 2 * SPREAD, 0.5)[1] > 0.4


# -- drift -------------------------------------------------------------------------------------------------------------


def _run(ranks: d.Ranks, means: list[float], rng: np.random.Generator, drift: d.Drift | None = None) -> list[d.Drift]:
    states = [drift or d.Drift()]
    for mean in means:
        states.append(d.observe(ranks, states[-1], mean, float(rng.random()))[0])
    return states[1:]


def test_ten_references_with_2000_windows_each_give_two_false_alarms_at_most() -> None:
    """Twenty thousand windows: on average 0.06 alarms, where the promise is two."""
    alarmed = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        states = _run(d.Ranks(_means(rng, 500)), _means(rng, 2000), rng)
        alarmed += any(state.drifting for state in states)

    assert alarmed <= 2


def test_a_fall_of_nine_points_is_seen_in_five_windows() -> None:
    delays = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        states = _run(d.Ranks(_means(rng, 500)), _means(rng, 50, 0.75), rng)
        delays.append(next((n for n, state in enumerate(states, 1) if state.drifting), 50))

    assert np.median(delays) <= 5, delays
    assert max(delays) <= 9, delays


def test_a_rise_is_seen_too_and_called_one() -> None:
    rng = np.random.default_rng(3)
    ranks, drift = d.Ranks(_means(rng, 500)), d.Drift()

    turns = []
    for mean in _means(rng, 20, 0.95):
        drift, turn = d.observe(ranks, drift, mean, float(rng.random()))
        turns.append(turn)

    assert [turn for turn in turns if turn is not None] == [d.Turn.ROSE]


def test_a_drift_that_lasts_is_said_once() -> None:
    rng = np.random.default_rng(4)
    ranks, drift = d.Ranks(_means(rng, 500)), d.Drift()

    turns = []
    for mean in _means(rng, 2000, 0.79):
        drift, turn = d.observe(ranks, drift, mean, float(rng.random()))
        turns.append(turn)

    assert [turn for turn in turns if turn is not None] == [d.Turn.FELL]


def test_it_is_over_when_windows_rank_as_usual_again_and_not_before() -> None:
    rng = np.random.default_rng(5)
    ranks = d.Ranks(_means(rng, 500))
    drift = _run(ranks, _means(rng, 30, 0.75), rng)[-1]

    states = _run(ranks, _means(rng, 3 * d.RETURN_WINDOWS), rng, drift)

    back = next(number for number, state in enumerate(states, 1) if not state.drifting)
    assert drift.drifting
    assert d.RETURN_WINDOWS // 2 <= back <= 2 * d.RETURN_WINDOWS
    assert states[-1].standing is d.Standing.QUIET


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.84, 1.0, nan, inf, -inf]), CHANCE), max_size=200))
def test_no_sequence_of_windows_breaks_it(windows: list[tuple[float, float]]) -> None:
    ranks, drift = d.Ranks([0.8, 0.84, 0.9] * 100), d.Drift()

    for mean, chance in windows:
        drift, _ = d.observe(ranks, drift, mean, chance)

        assert drift.is_sound()


def test_a_mean_that_is_no_number_changes_nothing() -> None:
    ranks, drift = d.Ranks([0.8] * 100), d.Drift(evidence=(7.0,) * 8, windows=9)

    assert d.observe(ranks, drift, nan, 0.5) == (drift, None)


def test_nothing_is_said_before_five_windows() -> None:
    rng = np.random.default_rng(6)
    states = _run(d.Ranks(_means(rng, 500)), [MEAN] * 6, rng)

    assert [state.standing for state in states] == [d.Standing.UNKNOWN] * 4 + [d.Standing.QUIET] * 2


# -- skew --------------------------------------------------------------------------------------------------------------


def _hours(rng: np.random.Generator, shares: list[float], each: int, hours: int) -> list[s.Counts]:
    return [rng.multinomial(each, shares).astype(np.int64) for _ in range(hours)]


def test_the_divergence_is_that_of_the_textbook() -> None:
    assert s.divergence(np.array([5, 0]), np.array([0, 9])) == pytest.approx(1)
    assert s.divergence(np.array([2, 2]), np.array([50, 50])) == pytest.approx(0)
    # P = (1/2, 1/2), Q = (1, 0): log2(4/3) / 2 + log2(2/3) / 4 + 1/4.
    assert s.divergence(np.array([1, 1]), np.array([1, 0])) == pytest.approx(0.311278, abs=1e-6)


@pytest.mark.parametrize("each", [1, 3, 20, 1000])
@pytest.mark.parametrize("hours", [3, 6, 24])
def test_hours_like_the_reference_are_no_distance_away_however_few_they_saw(each: int, hours: int) -> None:
    rng = np.random.default_rng(each * hours)
    shares = [0.3, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02]
    reference = rng.multinomial(2000, shares).astype(np.int64)

    found = [s.distance(_hours(rng, shares, each, hours), reference) for _ in range(200)]

    assert np.mean(np.array(found) > s.BOUND) <= 0.01
    assert np.mean(found) < 0.05


def test_hours_that_differ_wildly_are_not_taken_for_a_day_that_does() -> None:
    rng = np.random.default_rng(7)
    reference = np.array([500, 500])
    hours = [np.array([1000, 0]) if rng.random() < 0.5 else np.array([0, 1000]) for _ in range(8)]

    assert s.divergence(np.sum(hours, axis=0), reference) < 0.1
    assert s.distance(hours, reference) < s.BOUND


def test_other_shares_are_as_far_away_as_they_are() -> None:
    rng = np.random.default_rng(8)
    reference = np.array([500, 300, 200])

    found = s.distance(_hours(rng, [0.1, 0.2, 0.7], 500, 24), reference)

    assert found == pytest.approx(s.divergence(np.array([10, 20, 70]), reference) ** 0.5, abs=0.03)


def test_skew_takes_three_hours_and_goes_as_slowly() -> None:
    reference = {"classes": np.array([500, 500])}
    odd, even = {"classes": np.array([1000, 0])}, {"classes": np.array([500, 500])}

    skew, told = s.Skew(), []
    for hour in [odd] * 8 + [even] * 40:
        skew = s.hour_over(skew, hour, reference)
        told.append(skew.skewed)

    first, last = told.index(True), len(told) - 1 - told[::-1].index(True)
    assert first == s.HOURS_MIN + s.LAST - 2
    assert all(told[first : last + 1])
    assert 8 < last < 8 + s.HOURS + s.LAST


def test_an_hour_of_other_names_or_lengths_is_left_out() -> None:
    skew = s.hour_over(s.Skew(), {"classes": np.array([1, 2, 3]), "x": np.array([1])}, {"classes": np.array([5, 5])})

    assert skew.hours == ({},)
    assert not skew.known


# -- both --------------------------------------------------------------------------------------------------------------


def test_without_a_reference_the_state_is_unknown_and_everything_is_taken() -> None:
    detectors = Detectors(None)

    detectors.window(0.1)
    detectors.classes({3: 7})
    detectors.inputs("x", np.zeros(2), np.zeros(2))
    detectors.hour_over()

    assert detectors.state is DriftState.UNKNOWN
    assert detectors.take_changes() == []
    assert Detectors(None, detectors.to_state()).state is DriftState.UNKNOWN


def test_changes_are_taken_once_and_say_why() -> None:
    reference = _reference()
    detectors = Detectors(reference, chance=lambda: 0.5)

    for _ in range(10):
        detectors.window(0.6)

    [(state, why)] = detectors.take_changes()
    assert state is detectors.state is DriftState.DRIFTING
    assert why.startswith("confidence fell: the last window's mean is 0.600, the reference's median 0.84")
    assert detectors.take_changes() == []


def test_inputs_of_another_scale_are_skew() -> None:
    rng = np.random.default_rng(9)
    detectors = Detectors(_reference())

    for _ in range(6):
        means, stds = statistics(255 * rng.standard_normal((100, 8)))
        detectors.inputs("x", means, stds)
        detectors.hour_over()

    [(state, why)] = detectors.take_changes()
    assert state is detectors.state is DriftState.SKEWED
    assert why.startswith("input.x.")


def test_a_day_like_the_reference_is_quiet() -> None:
    rng, reference = np.random.default_rng(10), _reference()
    detectors = Detectors(reference)

    for _ in range(24):
        detectors.classes(dict(enumerate(rng.multinomial(200, (0.5, 0.3, 0.2)).tolist())))
        detectors.inputs("x", *statistics(rng.standard_normal((200, 8)).astype(np.float32)))
        detectors.window(float(rng.choice(reference.confidence_windows)))
        detectors.hour_over()

    assert detectors.state is DriftState.QUIET
    assert detectors.take_changes() == []


def test_a_restart_forgets_neither_an_alarm_nor_the_way_to_one() -> None:
    reference, rng = _reference(), np.random.default_rng(11)
    whole, pieces = Detectors(reference, chance=lambda: 0.5), Detectors(reference, chance=lambda: 0.5)

    told = []
    for mean in [*rng.choice(reference.confidence_windows, 20).tolist(), *[0.7] * 10]:
        for each in (whole, pieces):
            each.window(mean)
            each.classes({0: 100})
            each.hour_over()
        told.append((whole.state, pieces.state))
        pieces = Detectors(reference, pieces.to_state(), chance=lambda: 0.5)
        assert pieces.state is told[-1][1]

    assert all(one is other for one, other in told)
    assert told[-1][0] is DriftState.DRIFTING
    assert whole.to_state() == pieces.to_state()


@pytest.mark.parametrize(
    "state",
    [
        b"no JSON",
        b"[" * 100_000,
        b"{}",
        b" " * (STATE_BYTES_MAX + 1),
    ],
)
def test_a_state_that_cannot_be_read_is_as_none(state: bytes) -> None:
    assert Detectors(_reference(), state).to_state() == Detectors(_reference()).to_state()


@pytest.mark.parametrize(
    ("field", "value"), [("evidence", [1e300] * 8), ("evidence", [1.0]), ("evidence", [-1.0] * 8), ("calm", 48)]
)
def test_a_state_that_cannot_be_true_is_as_none(field: str, value: object) -> None:
    document = json.loads(Detectors(_reference()).to_state())
    document["drift"][field] = value

    found = Detectors(_reference(), json.dumps(document).encode())

    assert found.to_state() == Detectors(_reference()).to_state()


def test_the_state_of_a_release_with_other_classes_keeps_the_alarm_alone() -> None:
    document = json.loads(Detectors(_reference()).to_state())
    document["hours"] = [{"classes": [1, 2, 3, 4], "input.x.mean": [-1] * 20, "other": [1]}]

    found = Detectors(_reference(), json.dumps(document).encode())

    assert json.loads(found.to_state())["hours"] == [{}]
