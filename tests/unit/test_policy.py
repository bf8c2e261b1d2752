"""A policy is refused when it is written, not when it is too late; what it says comes to the right numbers."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_controller.core.policy import (
    CAUSES,
    RANGES,
    WAVES_MAX,
    Approval,
    Maintenance,
    Policy,
    PolicyInvalid,
    Ramp,
    Rate,
    Threshold,
    Weights,
    check,
    in_flight_max,
    per_minute,
    satisfiable,
    wave_sizes,
    windows,
)
from muster_controller.core.policy.measures import assigning_s, longest_wait_s
from muster_shared.assignment import MaintenanceWindow, Trial
from muster_shared.messages import Refusal

DAY_S = 86400.0
NIGHT = Maintenance(start="01:00", end="05:00")


def refused(policy: Policy) -> PolicyInvalid:
    with pytest.raises(PolicyInvalid) as caught:
        check(policy)
    return caught.value


def test_the_default_policy_is_valid() -> None:
    check(Policy())


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (Policy(waves=()), "waves"),
        (Policy(waves=(5, 0)), "waves[1]"),
        (Policy(waves=(-3,)), "waves[0]"),
        (Policy(waves=("0%",)), "waves[0]"),
        (Policy(waves=("0.0%",)), "waves[0]"),
        (Policy(waves=("101%",)), "waves[0]"),
        (Policy(waves=("100.5%",)), "waves[0]"),
        (Policy(waves=("25",)), "waves[0]"),
        (Policy(waves=("25 %",)), "waves[0]"),
        (Policy(waves=("٢٥%",)), "waves[0]"),
        (Policy(waves=(1,) * (WAVES_MAX + 1)), "waves"),
        (Policy(waves=(1,), ramp=Ramp()), "waves"),
        (Policy(ramp=Ramp(first=0)), "ramp.first"),
        (Policy(ramp=Ramp(factor=0.5)), "ramp.factor"),
        (Policy(ramp=Ramp(harm_max=0)), "ramp.harm_max"),
        (Policy(ramp=Ramp(waves_max=101)), "ramp.waves_max"),
        (Policy(rate=Rate(per_minute=0)), "rate.per_minute"),
        (Policy(rate=Rate(per_minute=1, factor=0.9)), "rate.factor"),
        (Policy(rate=Rate(per_minute=1, every=0)), "rate.every"),
        (Policy(rate=Rate(per_minute=10, per_minute_max=5)), "rate.per_minute_max"),
        (Policy(concurrency=0), "concurrency"),
        (Policy(concurrency="all"), "concurrency"),
        (Policy(alpha=0), "alpha"),
        (Policy(alpha=0.9), "alpha"),
        (Policy(alpha=float("nan")), "alpha"),
        (Policy(soak_s=float("inf")), "soak_s"),
        (Policy(failure_objective=0), "failure_objective"),
        (Policy(success_required=1.01), "success_required"),
        (Policy(tolerance=0.5), "tolerance"),
        (Policy(latency_tolerance=0.3), "latency_tolerance"),
        (Policy(weights=Weights(failures=-0.1)), "weights.failures"),
        (Policy(weights=Weights(failures=0, latency=0, agreement=0)), "weights"),
        (Policy(weights=Weights(failures=0, latency=0, agreement=1)), "weights"),
        (Policy(weights=Weights(failures=0, latency=1), controls_per_device=0), "weights"),
        (Policy(controls_per_device=-1), "controls_per_device"),
        (Policy(window_s=0), "window_s"),
        (Policy(window_s=100, window_max_s=50), "window_max_s"),
        (Policy(window_max_s=900, deadline_s=900), "deadline_s"),
        (Policy(window_max_s=900, deadline_s=3600, download_s=3000), "deadline_s"),
        (Policy(window_max_s=900, deadline_s=3600, trial=Trial(seconds_max=2700)), "deadline_s"),
        (Policy(retries=11), "retries"),
        (Policy(abort_when=(Threshold(failures=0),)), "abort_when[0].failures"),
        (Policy(abort_when=(Threshold(failures=1), Threshold(failures="0%"))), "abort_when[1].failures"),
        (Policy(abort_when=(Threshold(failures=1, minimum=0),)), "abort_when[0].minimum"),
        (Policy(abort_when=(Threshold(failures=1, reason="error > 5"),)), "abort_when[0].reason"),
        (Policy(abort_when=(Threshold(failures=1, reason="trial_failed"),)), "abort_when[0].reason"),
        (Policy(abort_when=(Threshold(failures=1, reason="no_consent"),)), "abort_when[0].reason"),
        (Policy(approvals=(Approval(before=0),)), "approvals[0].before"),
        (Policy(approvals=(Approval(before=4),)), "approvals[0].before"),
        (Policy(waves=(5, "100%"), approvals=(Approval(before=3),)), "approvals[0].before"),
        (Policy(ramp=Ramp(waves_max=5), approvals=(Approval(before=6),)), "approvals[0].before"),
        (Policy(approvals=(Approval(before=1, count=0),)), "approvals[0].count"),
        (Policy(approvals=(Approval(before=1, by=("anna",), count=2),)), "approvals[0].count"),
        (Policy(approvals=(Approval(before=1, by=("anna", "anna"), count=2),)), "approvals[0].by[1]"),
        (Policy(approvals=(Approval(before=1, by=(" ",)),)), "approvals[0].by[0]"),
        (Policy(maintenance=(NIGHT,)), "defer_s_max"),
        (Policy(maintenance=(NIGHT,), defer_s_max=DAY_S - 1), "defer_s_max"),
        (Policy(maintenance=(Maintenance(days="sun", start="01:00", end="05:00"),), defer_s_max=DAY_S), "defer_s_max"),
        (Policy(maintenance=(Maintenance(days="sunday", start="01:00", end="05:00"),)), "maintenance[0].days"),
        (Policy(maintenance=(Maintenance(days="", start="01:00", end="05:00"),)), "maintenance[0].days"),
        (Policy(maintenance=(Maintenance(start="1:00", end="05:00"),)), "maintenance[0].start"),
        (Policy(maintenance=(Maintenance(start="24:00", end="05:00"),)), "maintenance[0].start"),
        (Policy(maintenance=(Maintenance(start="01:00", end="05:60"),)), "maintenance[0].end"),
        (Policy(maintenance=(Maintenance(start="01:00", end="01:00"),)), "maintenance[0].end"),
        (Policy(consent=True), "defer_s_max"),
        (Policy(trial=Trial(share=0)), "trial.share"),
        (Policy(trial=Trial(disagreement_max=1.5)), "trial.disagreement_max"),
        (Policy(priority=1001), "priority"),
        (Policy(selector="a in"), "selector"),
        (Policy(selector="site=oslo,site=berlin"), "selector"),
    ],
)
def test_what_cannot_be_evaluated_or_satisfied_is_refused_by_its_field(policy: Policy, field: str) -> None:
    error = refused(policy)

    assert error.field == field
    assert field.partition("[")[0].partition(".")[0] in str(error)


@pytest.mark.parametrize("path", sorted(RANGES))
def test_every_range_is_of_a_field_and_ends_where_it_says(path: str) -> None:
    low, high = RANGES[path]
    first, _, rest = path.partition(".")
    holders = {
        "ramp": Ramp(),
        "rate": Rate(per_minute=1),
        "weights": Weights(),
        "trial": Trial(),
        "abort_when[]": Threshold(failures=1),
        "approvals[]": Approval(before=1),
    }

    for value in (low - 1, high + 1, float("nan")):
        changed = msgspec.structs.replace(holders[first], **{rest: value}) if rest else value
        wrong = Policy(**{first.removesuffix("[]"): (changed,) if first.endswith("[]") else changed})
        assert refused(wrong).field == path.replace("[]", "[0]")


def test_the_refusal_names_the_field_and_its_bounds() -> None:
    assert str(refused(Policy(alpha=0.9))) == "alpha is 0.9; it must be from 1e-06 to 0.5"


def test_a_condition_may_name_every_refusal_of_a_device_and_silence() -> None:
    assert {refusal.value for refusal in Refusal} < CAUSES
    assert "silent" in CAUSES

    check(Policy(abort_when=(Threshold(failures=3, reason="silent"),)))


# -- sizes and rates -------------------------------------------------------------------------------------------------


def test_shares_are_of_the_whole_fleet_and_what_is_left_is_the_last_wave() -> None:
    assert wave_sizes(Policy(waves=(5, "25%")), 100) == (5, 25, 70)


def test_a_small_fleet_gets_fewer_waves() -> None:
    assert wave_sizes(Policy(waves=(5, "25%")), 3) == (3,)


def test_a_share_is_at_least_one_device() -> None:
    assert wave_sizes(Policy(waves=("1%",)), 10) == (1, 9)


def test_of_a_ramp_only_the_first_wave_is_known() -> None:
    assert wave_sizes(Policy(ramp=Ramp(first=7)), 100) == (7, 93)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(1, 500), st.integers(1, 100).map(lambda share: f"{share}%")), min_size=1, max_size=8
    ),
    st.integers(1, 5000),
)
def test_waves_are_never_empty_and_add_up_to_the_fleet(waves: list[int | str], devices: int) -> None:
    sizes = wave_sizes(Policy(waves=tuple(waves)), devices)

    assert sum(sizes) == devices
    assert all(size > 0 for size in sizes)


def test_the_rate_rises_by_steps_up_to_its_limit() -> None:
    rate = Rate(per_minute=10, factor=2, every=100, per_minute_max=50)

    assert [per_minute(rate, assigned) for assigned in (0, 99, 100, 250, 300)] == [10, 10, 20, 40, 50]


@settings(deadline=None)
@given(st.floats(0.001, 1e6), st.floats(1, 100), st.integers(1, 10**6), st.integers(0, 10**7))
def test_a_rate_is_always_a_number_above_zero(base: float, factor: float, every: int, assigned: int) -> None:
    assert 0 < per_minute(Rate(per_minute=base, factor=factor, every=every), assigned) < float("inf")


def test_the_time_to_assign_a_fleet_adds_up_the_steps() -> None:
    rate = Rate(per_minute=10, factor=2, every=100, per_minute_max=20)

    assert assigning_s(rate, 100) == 600
    assert assigning_s(rate, 1100) == 600 + 3000


def test_a_share_of_concurrency_is_at_least_one_device() -> None:
    assert in_flight_max(Policy(), 50) is None
    assert in_flight_max(Policy(concurrency=7), 50) == 7
    assert in_flight_max(Policy(concurrency="10%"), 50) == 5
    assert in_flight_max(Policy(concurrency="10%"), 3) == 1


# -- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "start", "end", "expected"),
    [
        ("mon-sun", "01:00", "05:00", MaintenanceWindow(start_minute=60, minutes=240)),
        ("mon-fri", "22:00", "05:00", MaintenanceWindow(days=(0, 1, 2, 3, 4), start_minute=1320, minutes=420)),
        ("fri-mon", "00:00", "24:00", MaintenanceWindow(days=(0, 4, 5, 6), start_minute=0, minutes=1440)),
        ("sun, sat", "23:59", "00:00", MaintenanceWindow(days=(5, 6), start_minute=1439, minutes=1)),
        ("wed", "12:00", "11:59", MaintenanceWindow(days=(2,), start_minute=720, minutes=1439)),
    ],
)
def test_a_window_travels_as_days_and_minutes(days: str, start: str, end: str, expected: MaintenanceWindow) -> None:
    policy = Policy(maintenance=(Maintenance(days=days, start=start, end=end),), defer_s_max=7 * DAY_S)

    check(policy)

    assert windows(policy) == (expected,)


@pytest.mark.parametrize(
    ("described", "hours"),
    [
        ([("mon-sun", "01:00", "05:00")], 24),
        ([("mon-sun", "01:00", "02:00"), ("mon-sun", "13:00", "14:00")], 12),
        ([("sun", "01:00", "05:00")], 7 * 24),
        ([("mon-fri", "01:00", "05:00")], 3 * 24),
        ([("sat,sun", "00:00", "24:00")], 6 * 24),
        ([("mon-sat", "22:00", "06:00"), ("sun", "00:00", "24:00")], 30),
        ([("mon-sun", "22:00", "06:00"), ("mon-sun", "06:00", "23:00")], 0),
    ],
)
def test_devices_must_be_let_wait_until_the_next_window_has_passed(
    described: list[tuple[str, str, str]], hours: int
) -> None:
    maintenance = tuple(Maintenance(days=days, start=start, end=end) for days, start, end in described)
    policy = Policy(maintenance=maintenance, defer_s_max=max(hours * 3600.0, 1.0))

    check(policy)

    assert longest_wait_s(policy) == hours * 3600
    assert refused(msgspec.structs.replace(policy, defer_s_max=max(0.0, hours * 3600 - 60.0))).field == "defer_s_max"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1439), st.integers(1, 1440)), min_size=1, max_size=4),
    st.integers(0, 7 * 1440 - 1),
)
def test_from_any_minute_a_window_opens_within_the_longest_wait(
    described: list[tuple[int, int, int]], minute: int
) -> None:
    days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    maintenance = []
    for day, start, minutes in described:
        end = (start + minutes) % 1440
        text = "24:00" if end == 0 and start == 0 else f"{end // 60:02}:{end % 60:02}"
        if text != f"{start // 60:02}:{start % 60:02}":
            maintenance.append(Maintenance(days=days[day], start=f"{start // 60:02}:{start % 60:02}", end=text))
    policy = Policy(maintenance=tuple(maintenance))
    is_open = {
        (day * 1440 + window.start_minute + passed) % (7 * 1440)
        for window in windows(policy)
        for day in window.days
        for passed in range(window.minutes)
    }

    waited = next((passed for passed in range(7 * 1440) if (minute + passed) % (7 * 1440) in is_open), 0)

    assert 60 * waited <= longest_wait_s(policy)


# -- once the fleet is known -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "devices", "field"),
    [
        (Policy(), 0, "selector"),
        (Policy(abort_when=(Threshold(failures=21),)), 20, "abort_when[0].failures"),
        (Policy(abort_when=(Threshold(failures="5%", minimum=50),)), 20, "abort_when[0].minimum"),
        (Policy(approvals=(Approval(before=3),)), 5, "approvals[0].before"),
        (Policy(ramp=Ramp(first=5, factor=1, waves_max=30)), 1000, "ramp.waves_max"),
        (Policy(ramp=Ramp(first=1, factor=1.5, waves_max=30)), 31, "ramp.waves_max"),
    ],
)
def test_a_safeguard_that_so_few_devices_never_reach_is_refused(policy: Policy, devices: int, field: str) -> None:
    check(policy)

    with pytest.raises(PolicyInvalid) as caught:
        satisfiable(policy, devices, {"pi5": devices})

    assert caught.value.field == field


def test_a_fleet_that_has_room_for_everything_gets_no_warning() -> None:
    assert satisfiable(Policy(), 200, {"pi5": 150, "nuc": 50}) == []
    assert satisfiable(Policy(ramp=Ramp()), 10_000, {"pi5": 10_000}) == []


@pytest.mark.parametrize(
    ("policy", "devices", "classes", "said"),
    [
        (Policy(), 5, {"pi5": 5}, "the first wave takes all 5 devices, so no controls can be held back"),
        (Policy(), 100, {f"c{n}": 10 for n in range(10)}, "it cannot hold every class"),
        (Policy(), 100, {"pi5": 99, "nuc": 1}, "one device only, so without a control of its class: nuc"),
        (Policy(waves=(10,)), 30, {"pi5": 30}, "2 controls for each at most, not 10"),
        (Policy(rate=Rate(per_minute=0.01)), 1000, {"pi5": 1000}, "assigned after 69 days"),
        (Policy(defer_s_max=60), 100, {"pi5": 100}, "defer_s_max does nothing"),
        (Policy(abort_when=(Threshold(failures=3, minimum=6),)), 100, {"pi5": 100}, "cannot stop the rollout there"),
    ],
)
def test_what_will_hold_less_well_than_it_looks_is_said(
    policy: Policy, devices: int, classes: dict[str, int], said: str
) -> None:
    warnings = satisfiable(policy, devices, classes)

    assert any(said in warning for warning in warnings)
