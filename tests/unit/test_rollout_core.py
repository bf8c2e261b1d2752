"""The rollout machine against the traps that other fleet tools fell into, one test each."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_controller.core import rollout as machine
from muster_controller.core.gate import HOLD, VerdictKind
from muster_controller.core.policy import Policy
from muster_controller.core.rollout import (
    Assign,
    DeviceFacts,
    Effect,
    Event,
    Order,
    Ordered,
    OrderRefused,
    Outcome,
    OutcomeArrived,
    Rollout,
    RolloutState,
    SetBaseline,
    StepArrived,
    Tick,
)
from muster_shared.bundle import digest
from muster_shared.ids import DeviceId, ModelName, RolloutId
from muster_shared.messages import ReleaseRef, Step

START = 1_000_000.0
POLICY = Policy(waves=(2, 3), deadline_s=100.0, window_s=10.0, window_max_s=20.0, controls_per_device=1)


def _release(number: int) -> ReleaseRef:
    return ReleaseRef(
        model=ModelName("digits"),
        version=f"{number}.0.0",
        release=number,
        bundle_sha256=digest(str(number).encode()),
        bundle_length=10,
    )


OLDER, OLD, NEW = _release(0), _release(1), _release(2)


class Story:
    """A rollout and its fleet, told step by step."""

    def __init__(self, devices: int = 10, policy: Policy = POLICY, *, classes: int = 2) -> None:
        self.now = START
        self.online = {DeviceId(f"d{number}") for number in range(devices)}
        self.active = {device: OLD for device in self.online}
        self.assigned: list[Assign] = []
        self.baseline: ReleaseRef | None = None
        self.rollout = machine.create(
            RolloutId("r1"),
            NEW,
            OLD,
            policy,
            {device: ("nuc", "pi5")[int(device[1:]) % classes] for device in sorted(self.online)},
            now=self.now,
            actor="ada",
            shuffle=lambda devices: None,
        )

    def tell(self, event: Event, after_s: float = 0.0) -> tuple[Effect, ...]:
        self.now += after_s
        self.rollout, effects = machine.advance(self.rollout, event, self.now)
        for effect in effects:
            match effect:
                case Assign():
                    self.assigned.append(effect)
                case SetBaseline(release):
                    self.baseline = release
        return effects

    def tick(self, after_s: float = 0.0) -> tuple[Effect, ...]:
        return self.tell(Tick(self.facts()), after_s)

    def facts(self) -> Mapping[DeviceId, DeviceFacts]:
        return {device: DeviceFacts(device in self.online, self.active[device]) for device in sorted(self.active)}

    def order(self, order: Order) -> tuple[Effect, ...]:
        return self.tell(Ordered(order, "ada", "because"))

    def report(self, device: DeviceId, good: bool, wave: int | None = None) -> tuple[Effect, ...]:
        number = self.rollout.wave if wave is None else wave
        return self.tell(OutcomeArrived(device, number, good, "as measured"))

    def all_report(self, *, bad: int = 0) -> None:
        """Everyone in this wave reports, `bad` of the treated ones badly; every control reports well."""
        for number, device in enumerate(self.treated()):
            self.report(device, number >= bad)
        for wave, device in sorted(self.rollout.controls):
            if wave == self.rollout.wave:
                self.report(device, True, wave)

    def treated(self, wave: int | None = None) -> list[DeviceId]:
        number = self.rollout.wave if wave is None else wave
        return [member.device for member in machine.touched(self.rollout) if member.wave == number]

    def said(self) -> list[VerdictKind]:
        return [verdict.kind for verdict in self.rollout.verdicts]


def test_the_first_wave_has_every_class_and_watches_as_many_held_back() -> None:
    story = Story()

    story.tick()

    treated = [story.rollout.members[device] for device in story.treated()]
    assert {member.device_class for member in treated} == {"pi5", "nuc"}
    assert len(story.rollout.controls) == 2
    assert {assign.release for assign in story.assigned if assign.device not in story.treated()} == {OLD}


def test_a_rollout_that_does_well_reaches_everyone_and_becomes_the_baseline() -> None:
    story = Story()
    story.tick()

    while story.rollout.state is RolloutState.RUNNING:
        story.all_report()
        story.tick(1.0)

    assert story.rollout.state is RolloutState.FINISHED
    assert story.baseline == NEW
    assert story.said() == [VerdictKind.PROMOTE] * 3
    assert not machine.waiting(story.rollout)


def test_a_wave_below_its_success_threshold_does_not_start_the_next() -> None:
    story = Story(policy=msgspec.structs.replace(POLICY, waves=(5,), failure_objective=0.5, success_required=0.9))
    story.tick()

    story.all_report(bad=1)
    story.tick(1.0)
    story.tick(1000.0)

    assert story.rollout.state is RolloutState.PAUSED
    assert story.rollout.wave == 0
    assert "4 of 5 devices succeeded; 90% is required" in story.rollout.reason


def test_an_undecidable_gate_pauses() -> None:
    policy = msgspec.structs.replace(POLICY, waves=(5,), success_required=0.5, controls_per_device=10)
    story = Story(60, policy, classes=1)
    story.tick()

    story.all_report(bad=1)
    story.tick(1.0)

    assert story.rollout.state is RolloutState.PAUSED
    assert story.rollout.verdicts[-1].evidence.e >= HOLD
    assert VerdictKind.PROMOTE not in story.said()


def test_resuming_lets_one_wave_pass_and_not_the_later_ones() -> None:
    story = Story(20, msgspec.structs.replace(POLICY, waves=(4, 4), failure_objective=0.5))
    story.tick()
    story.all_report(bad=1)
    story.tick(1.0)
    assert story.rollout.state is RolloutState.PAUSED

    story.order(Order.RESUME)
    story.tick(1.0)
    assert story.rollout.wave == 1
    story.all_report(bad=1)
    story.tick(1.0)

    assert story.rollout.state is RolloutState.PAUSED
    assert story.rollout.wave == 1


def test_resuming_does_not_start_a_wave_while_devices_have_yet_to_report() -> None:
    story = Story()
    story.tick()

    story.order(Order.PAUSE)
    story.order(Order.RESUME)
    story.tick(1.0)

    assert story.rollout.wave == 0


def test_silent_devices_fail_at_their_deadline() -> None:
    story = Story()
    story.tick()

    story.tick(POLICY.deadline_s + 1)

    assert [story.rollout.members[device].outcome for device in story.treated()] == [Outcome.BAD, Outcome.BAD]
    assert VerdictKind.PROMOTE not in story.said()
    assert story.rollout.wave == 0


def test_silence_counts_while_the_rollout_is_paused() -> None:
    story = Story(policy=msgspec.structs.replace(POLICY, waves=(5,), controls_per_device=0))
    story.tick()
    story.order(Order.PAUSE)

    story.tick(POLICY.deadline_s + 1)

    assert story.rollout.state is RolloutState.ABORTING


def test_a_report_after_the_deadline_does_not_turn_bad_into_good() -> None:
    story = Story(policy=msgspec.structs.replace(POLICY, failure_objective=0.5, success_required=0.0))
    story.tick()
    device = story.treated()[0]
    story.tick(POLICY.deadline_s + 1)

    story.report(device, True, 0)

    assert story.rollout.members[device].outcome is Outcome.BAD


def test_the_first_report_counts_and_repeats_do_not() -> None:
    story = Story()
    story.tick()
    device = story.treated()[0]

    story.report(device, True)
    story.report(device, False)

    assert story.rollout.members[device].outcome is Outcome.GOOD


def test_empty_data_does_not_pass() -> None:
    story = Story()
    story.tick()

    for _ in range(5):
        story.tick(10.0)

    assert story.rollout.wave == 0
    assert story.said() == []


def test_late_joiners_do_not_bypass_the_waves() -> None:
    story = Story()
    story.tick()
    late = DeviceId("d99")
    story.online.add(late)
    story.active[late] = OLD

    story.report(late, True)
    while story.rollout.state is RolloutState.RUNNING:
        story.all_report()
        story.tick(1.0)

    assert late not in story.rollout.members
    assert late not in {assign.device for assign in story.assigned}


def test_devices_that_were_offline_before_their_wave_wait_and_are_not_counted() -> None:
    story = Story()
    gone = DeviceId("d0")
    story.online.discard(gone)
    story.tick()

    while story.rollout.state is RolloutState.RUNNING:
        story.all_report()
        story.tick(1.0)

    assert story.rollout.state is RolloutState.FINISHED
    assert [member.device for member in machine.waiting(story.rollout)] == [gone]
    assert "1 offline" in story.rollout.reason


def test_a_fleet_that_is_offline_altogether_is_not_promoted() -> None:
    story = Story()
    story.online.clear()

    story.tick()
    story.tick(10_000.0)

    assert story.rollout.state is RolloutState.RUNNING
    assert story.rollout.wave == -1


def test_aborting_calls_back_those_that_are_still_updating() -> None:
    story = Story()
    story.tick()
    treated = story.treated()
    story.tell(StepArrived(treated[0], NEW.bundle_sha256, Step.FETCHING, 0, 1.0))
    story.assigned.clear()

    story.order(Order.ABORT)

    assert [(assign.device, assign.release, assign.watch) for assign in story.assigned] == [
        (device, OLD, None) for device in treated
    ]
    assert story.rollout.state is RolloutState.ABORTING


def test_an_aborting_rollout_ends_when_everyone_who_can_is_back() -> None:
    story = Story()
    story.tick()
    first, second = story.treated()
    story.active[first] = NEW
    story.active[second] = NEW
    story.order(Order.ABORT)

    story.tick(1.0)
    assert story.rollout.state is RolloutState.ABORTING
    story.active[first] = OLD
    story.online.discard(second)
    story.tick(1.0)

    assert story.rollout.state is RolloutState.ABORTED
    assert story.rollout.members[first].returned
    assert not story.rollout.members[second].returned


def test_an_aborting_rollout_does_not_wait_for_ever() -> None:
    story = Story()
    story.tick()
    story.active[story.treated()[0]] = NEW
    story.order(Order.ABORT)

    story.tick(machine.GIVE_UP_S + POLICY.deadline_s + 1)

    assert story.rollout.state is RolloutState.ABORTED


def test_a_policy_that_stops_leaves_devices_as_they_are() -> None:
    story = Story(policy=msgspec.structs.replace(POLICY, on_abort="stop"))
    story.tick()
    story.assigned.clear()

    story.order(Order.ABORT)

    assert story.rollout.state is RolloutState.ABORTED
    assert story.assigned == []


def test_two_bad_of_five_abort_when_controls_do_well() -> None:
    story = Story(60, msgspec.structs.replace(POLICY, waves=(5,), controls_per_device=10), classes=1)
    story.tick()
    for wave, device in sorted(story.rollout.controls):
        story.report(device, True, wave)

    first, second, *_ = story.treated()
    story.report(first, False)
    assert story.rollout.state is RolloutState.RUNNING
    story.report(second, False)

    assert story.rollout.state is RolloutState.ABORTING
    assert story.said()[-1] is VerdictKind.ABORT


def test_a_finished_rollout_is_rolled_back_by_hand_on_every_device() -> None:
    story = Story(4, msgspec.structs.replace(POLICY, waves=(4,)))
    story.tick()
    story.all_report()
    story.tick(1.0)
    story.assigned.clear()

    story.order(Order.ROLL_BACK)

    assert {assign.device for assign in story.assigned} == set(story.rollout.members)
    assert {assign.release for assign in story.assigned} == {OLD}
    assert story.baseline == OLD


@pytest.mark.parametrize(
    ("order", "state"),
    [
        (Order.RESUME, RolloutState.RUNNING),
        (Order.PAUSE, RolloutState.PAUSED),
        (Order.ABORT, RolloutState.FINISHED),
        (Order.ABORT, RolloutState.ABORTED),
        (Order.ROLL_BACK, RolloutState.RUNNING),
        (Order.ROLL_BACK, RolloutState.ABORTED),
    ],
)
def test_an_order_that_does_not_fit_is_refused_by_name(order: Order, state: RolloutState) -> None:
    rollout = replace(Story().rollout, state=state)

    with pytest.raises(OrderRefused, match=f"is {state.value}; it cannot {order.value} now"):
        machine.advance(rollout, Ordered(order, "ada", ""), START)


def test_a_soak_delays_the_next_wave() -> None:
    story = Story(policy=msgspec.structs.replace(POLICY, soak_s=30.0))
    story.tick()
    story.all_report()

    story.tick(1.0)
    assert story.rollout.wave == 0
    story.tick(31.0)

    assert story.rollout.wave == 1


def test_a_device_that_ran_something_else_is_called_back_to_what_it_ran() -> None:
    story = Story()
    odd = next(iter(story.rollout.members))
    story.active[odd] = OLDER
    story.tick()
    assert odd in story.treated()

    story.assigned.clear()
    story.order(Order.ABORT)

    homes = {assign.device: assign.release for assign in story.assigned}
    assert homes.pop(odd) == OLDER
    assert set(homes.values()) == {OLD}


def test_every_verdict_can_be_computed_again_from_what_is_stored() -> None:
    story = Story()
    story.tick()
    story.all_report()
    story.tick(1.0)

    (verdict,) = story.rollout.verdicts

    again = machine.evidence(
        verdict.evidence.strata, failure_objective=POLICY.failure_objective, tolerance=POLICY.tolerance
    )
    assert again == verdict.evidence


_devices = st.sampled_from([DeviceId(f"d{number}") for number in range(8)])
_moves = st.lists(
    st.one_of(
        st.tuples(st.just("tick"), st.floats(0.0, 150.0)),
        st.tuples(st.just("good"), _devices),
        st.tuples(st.just("bad"), _devices),
        st.tuples(st.just("off"), _devices),
        st.tuples(st.just("on"), _devices),
        st.tuples(st.just("order"), st.sampled_from([Order.PAUSE, Order.RESUME, Order.ABORT])),
    ),
    max_size=40,
)


@given(_moves)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_no_wave_is_promoted_before_all_of_it_has_been_judged(
    moves: list[tuple[str, float | DeviceId | Order]],
) -> None:
    story = Story(8, msgspec.structs.replace(POLICY, waves=(2, 3), success_required=0.5))
    for what, which in moves:
        before = story.rollout
        _move(story, what, which)
        _promotions_are_earned(before, story.rollout)
        assert story.rollout.wave - before.wave in (0, 1)
        assert before.members.keys() == story.rollout.members.keys()


def _move(story: Story, what: str, which: float | DeviceId | Order) -> None:
    match what, which:
        case "tick", float():
            story.tick(which)
        case "good" | "bad", str():
            story.report(DeviceId(which), what == "good")
        case "off", str():
            story.online.discard(DeviceId(which))
        case "on", str():
            story.online.add(DeviceId(which))
        case "order", Order():
            with suppress(OrderRefused):  # As a person would be told.
                story.order(which)


def _promotions_are_earned(before: Rollout, after: Rollout) -> None:
    for verdict in after.verdicts[len(before.verdicts) :]:
        if verdict.kind is VerdictKind.PROMOTE:
            wave = [member for member in after.members.values() if member.wave == verdict.wave]
            assert wave
            assert all(member.outcome is not Outcome.PENDING for member in wave)
            assert verdict.wave == before.confirmed_wave or verdict.evidence.e < HOLD


@given(_moves)
@settings(max_examples=60, deadline=None)
def test_a_rollout_that_was_saved_and_read_again_goes_on_as_if_nothing_had_been(
    moves: list[tuple[str, float | DeviceId | Order]],
) -> None:
    straight, restarted = Story(8), Story(8)

    for what, which in moves:
        _move(straight, what, which)
        _move(restarted, what, which)
        rows = msgspec.json.encode(_to_rows(restarted.rollout))
        restarted.rollout = _from_rows(rows, restarted.rollout)

    assert restarted.rollout == straight.rollout


def _to_rows(rollout: Rollout) -> dict[str, object]:
    controls = [(wave, device, control) for (wave, device), control in rollout.controls.items()]
    return {"rollout": replace(rollout, controls={}), "controls": controls}


def _from_rows(rows: bytes, like: Rollout) -> Rollout:
    found = msgspec.json.decode(rows)
    controls = {
        (wave, DeviceId(device)): msgspec.convert(row, machine.Control) for wave, device, row in found["controls"]
    }
    rollout = msgspec.convert(found["rollout"], type(like))
    verdicts = tuple(
        replace(verdict, evidence=replace(verdict.evidence, strata=tuple(verdict.evidence.strata)))
        for verdict in rollout.verdicts
    )
    return replace(rollout, controls=controls, verdicts=verdicts)
