"""What holds of every rollout, whatever the policy and whatever happens, in whichever order."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as with_changes

from harness.rollout_story import NEW, OLD, START, Report, Story, names, policy, reread
from muster_controller.core.gate.evidence import HOLD
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.policy import Approval, Policy, Ramp, Rate, Threshold, per_minute
from muster_controller.core.rollout import machine
from muster_controller.core.rollout.approvals import all_awaited
from muster_controller.core.rollout.events import (
    Advanced,
    Assign,
    DeviceChanged,
    DeviceFacts,
    Event,
    Order,
    Ordered,
    OrderRefused,
    Superseded,
    Tick,
)
from muster_controller.core.rollout.pace import BURST_S
from muster_controller.core.rollout.state import (
    ENDED,
    LATE,
    Outcome,
    Rollout,
    RolloutState,
    home,
    is_in_flight,
    touched,
)
from muster_shared.assignment import Trial
from muster_shared.ids import DeviceId, RolloutId
from muster_shared.messages import Refusal, Step

DEVICES = 12
UNDER_WAY = (RolloutState.RUNNING, RolloutState.PAUSED)
CALLED_BACK = (RolloutState.ABORTING, RolloutState.ABORTED)

rates = st.builds(
    Rate,
    per_minute=st.sampled_from([6.0, 60.0, 600.0]),
    factor=st.sampled_from([1.0, 2.0]),
    every=st.sampled_from([2, 5]),
    per_minute_max=st.sampled_from([None, 600.0]),
)
approvals = st.sampled_from(
    [(), (), (Approval(before="every"),), (Approval(before=2, by=("bob",)), Approval(before="finish", count=2))]
)
policies = st.builds(
    policy,
    waves=st.sampled_from([(2, 3), (1,), ("100%",), (1, 2, 3), (4, "50%")]),
    ramp=st.sampled_from([None, None, Ramp(first=2, factor=2.0), Ramp(first=1, waves_max=2)]),
    rate=st.none() | rates,
    concurrency=st.sampled_from([None, 1, 2, "25%"]),
    soak_s=st.sampled_from([0.0, 20.0]),
    success_required=st.sampled_from([0.0, 0.5, 1.0]),
    abort_when=st.sampled_from(
        [(), (Threshold(failures=2),), (Threshold(failures="40%", minimum=3, reason="silent"),)]
    ),
    on_abort=st.sampled_from(["roll_back", "stop", "freeze"]),
    alpha=st.sampled_from([0.05, 0.3]),
    failure_objective=st.sampled_from([0.02, 0.5]),
    controls_per_device=st.integers(0, 2),
    retries=st.integers(0, 2),
    retry_wait_s=st.sampled_from([0.0, 15.0]),
    approvals=approvals,
    consent=st.booleans(),
    defer_s_max=st.sampled_from([0.0, 60.0]),
    trial=st.sampled_from([None, Trial()]),
)
devices = st.integers(0, DEVICES + 1)
moves = st.one_of(
    st.tuples(st.just("tick"), st.sampled_from([0.0, 0.5, 1.0, 7.0, 30.0, 101.0, 1000.0, -1.0, -500.0])),
    st.tuples(st.just("due")),
    st.tuples(st.just("due")),
    st.tuples(st.just("report"), devices, st.booleans(), st.sampled_from([0, 0, 0, -1, 1])),
    st.tuples(st.just("all"), st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("fail"), devices, st.sampled_from([Refusal.DISK_FULL, Refusal.SELF_TEST_FAILED])),
    st.tuples(st.just("step"), devices, st.sampled_from(list(Step)), st.booleans()),
    st.tuples(st.just("online"), devices, st.booleans(), st.booleans()),
    st.tuples(st.just("order"), st.sampled_from(list(Order)), st.sampled_from(["ada", "bob", "cleo"])),
    st.tuples(st.just("join"), st.integers(0, 2)),
    st.tuples(st.just("leave"), devices, st.booleans()),
    st.tuples(st.just("runs"), devices, st.sampled_from([OLD, NEW])),
    st.tuples(st.just("restart")),
)
rare = st.one_of(moves, moves, moves, moves, st.tuples(st.just("supersede")))


class Walk(Story):
    """A story that makes any move, and looks after each whether all that must hold does."""

    def __init__(self, policy: Policy, *, at_once: bool = False) -> None:
        super().__init__(DEVICES, policy, classes=3, at_once=at_once)
        self.flown_s = 0.0
        """How much time has passed, as far as the clock went forward."""
        self.paced: list[tuple[float, float]] = []
        """When the pace let a device begin, and the rate a second then."""

    def move(self, what: str, *which: object) -> None:
        match what, which:
            case "tick", (float(after_s),):
                self.tick(after_s)
            case "due", ():
                self.tick(max(0.0, min(self.rollout.due_at - self.now, 1000.0)))
            case "report", (int(place), bool(good), int(off)):
                self.report(self.name(place), good, self.rollout.wave + off, latency=0.01)
            case "all", (int(bad),):
                self.all_report(bad=bad)
            case "fail", (int(place), Refusal() as refusal) if self.name(place) in self.rollout.members:
                self.fail(self.name(place), refusal)
            case "step", (int(place), Step() as step, bool(is_control)):
                self.step(self.name(place), step, of=OLD if is_control else NEW, wait_s=30.0)
            case "online", (int(place), bool(is_online), bool(is_said)):
                self.is_there(self.name(place), is_online, is_said)
            case "order", (Order() as order, str(actor)):
                with suppress(OrderRefused):  # As a person would be told.
                    self.order(order, actor, seconds=40.0)
            case "join", (int(place),):
                self.join(f"late{place}", ("nuc", "jetson")[place % 2])
            case "leave", (int(place), bool(is_taken)):
                self.leave(self.name(place), is_taken=is_taken)
            case "runs", (int(place), found) if self.name(place) in self.active:
                self.runs(self.name(place), OLD if found == OLD else NEW)
            case "restart", ():
                self.rollout = reread(self.rollout)
            case "supersede", ():
                self.tell(Superseded(RolloutId("r2")))
            case _:
                pass

    def name(self, place: int) -> DeviceId:
        return DeviceId("late0") if place >= DEVICES else names(DEVICES)[place]

    def is_there(self, device: DeviceId, is_online: bool, is_said: bool) -> None:
        (self.online.add if is_online else self.online.discard)(device)
        if is_said and device in self.active:
            self.tell(DeviceChanged(device, DeviceFacts(is_online, self.active[device])))

    def tell(self, event: Event, after_s: float = 0.0) -> Advanced:
        before, at = self.rollout, self.now
        derived = ("strata", "open", "due", "failures")
        counts = [dict(getattr(before, name)) for name in derived]
        twice = machine.advance(before, event, self.now)

        result = super().tell(event, after_s)

        assert result == twice
        assert [getattr(before, name) for name in derived] == counts
        self._pace(before, event, result, at)
        check_assignments(before, event, result)
        check_waves(before, result.rollout)
        self._first_wave(before, result.rollout)
        check_arms(result.rollout)
        check_promotions(before, result.rollout)
        return result

    def tick(self, after_s: float = 0.0) -> Advanced:
        self.flown_s += max(0.0, after_s)
        return super().tick(after_s)

    def _first_wave(self, before: Rollout, after: Rollout) -> None:
        """It has every class that is there, if it has the room."""
        if after.wave != 0 or before.wave >= 0:
            return
        there = {
            member.device_class
            for member in before.members.values()
            if member.device in self.online and member.outcome is Outcome.PENDING and member.position < LATE
        }
        chosen = [member.device_class for member in after.members.values() if member.wave == 0]
        assert len(chosen) < len(there) or there <= set(chosen)

    def _pace(self, before: Rollout, event: Event, result: Advanced, at: float) -> None:
        after = result.rollout
        if before.at_once:
            return
        concurrency = before.policy.concurrency
        limit = inf if concurrency is None else concurrency if isinstance(concurrency, int) else len(after.members) / 4
        assert after.in_flight <= max(round(limit) if limit < inf else inf, before.in_flight)
        if not isinstance(event, Tick) or before.policy.rate is None:
            return
        rate = per_minute(before.policy.rate, after.released) / 60
        begun = [each for each in assigns(result) if each.release == NEW and each.watch is not None]
        self.paced += [(self.flown_s, rate)] * len(begun)
        for first, (began_at, _) in enumerate(self.paced):
            allowed = max(1.0, rate * BURST_S) + rate * (self.flown_s - began_at)
            assert len(self.paced) - first <= allowed + 1e-3


def assigns(result: Advanced) -> list[Assign]:
    return [effect for effect in result.effects if isinstance(effect, Assign)]


def check_assignments(before: Rollout, event: Event, result: Advanced) -> None:
    """Who is told what: nobody while it is paused, nobody the release after an abort, and back whom the policy says."""
    after, told = result.rollout, assigns(result)
    fresh = [each for each in told if each.release == NEW]
    if before.state is RolloutState.PAUSED and not isinstance(event, Ordered):
        assert not fresh
    if before.state in CALLED_BACK or before.state in ENDED:
        assert not fresh
    assert not any(before.members[each.device].is_taken for each in told if each.device in before.members)
    if after.state not in CALLED_BACK or before.state in CALLED_BACK or isinstance(event, Superseded):
        return
    last = {each.device: each.release for each in told}
    ours = [member for member in touched(after) if not member.is_taken]
    if before.state in UNDER_WAY and after.policy.on_abort == "stop":
        ours = [member for member in ours if is_in_flight(member)]
    if before.state in UNDER_WAY and after.policy.on_abort == "freeze":
        ours = []
    back = {member.device: goal for member in ours if (goal := home(after, member)) is not None}
    assert {device: found for device, found in last.items() if device in back} == back
    assert not {device for device, found in last.items() if device not in back and found == NEW} - {
        member.device for member in touched(after) if after.policy.on_abort != "roll_back"
    }


def check_waves(before: Rollout, after: Rollout) -> None:
    """A wave begins when the one before has passed and all who must have agreed; it is undone only without evidence."""
    assert after.wave - before.wave in (-1, 0, 1)
    if after.wave < before.wave:
        assert not any(stratum.treated for (wave, _), stratum in after.strata.items() if wave == before.wave)
    if after.wave <= before.wave:
        return
    assert before.state is RolloutState.RUNNING
    if not after.at_once:
        passed = [verdict.wave for verdict in after.verdicts if verdict.kind is VerdictKind.PROMOTE]
        assert before.wave < 0 or before.wave in passed
        assert not list(all_awaited(before))


def check_arms(rollout: Rollout) -> None:
    """Treated and held-back devices of a wave are not the same, and each held-back one is there for one like it."""
    for (wave, device), control in rollout.controls.items():
        if control.outcome is Outcome.LEFT:
            continue
        assert rollout.members[device].wave != wave
        assert control.device_class == rollout.members[control.partner].device_class
        if rollout.members[control.partner].wave == wave:
            assert device in rollout.members[control.partner].controls
    for wave in {member.wave for member in rollout.members.values() if member.wave is not None}:
        held = [device for member in rollout.members.values() if member.wave == wave for device in member.controls]
        assert len(held) == len(set(held))


def check_promotions(before: Rollout, after: Rollout) -> None:
    """A wave is promoted when all have reported and the gate says yes, or when an operator lets it pass."""
    for verdict in after.verdicts[len(before.verdicts) :]:
        if verdict.kind is not VerdictKind.PROMOTE or before.confirmed_wave >= verdict.wave:
            continue
        wave = [member for member in touched(after) if member.wave == verdict.wave]
        counted = [member for member in wave if member.outcome is not Outcome.LEFT]
        good = sum(member.outcome is Outcome.GOOD for member in counted)
        assert good > 0
        assert all(member.outcome is not Outcome.PENDING for member in counted)
        assert good >= after.policy.success_required * len(counted) - 1e-6
        assert verdict.evidence.hold_e < HOLD
    if after.state is RolloutState.FINISHED and before.state is not RolloutState.FINISHED and not after.at_once:
        assert any(verdict.kind is VerdictKind.PROMOTE for verdict in after.verdicts)


@given(policies, st.lists(rare, min_size=12, max_size=60))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happens_all_that_must_hold_holds_after_every_event(
    chosen: Policy, path: Sequence[tuple[object, ...]]
) -> None:
    walk = Walk(chosen)

    for what, *which in path:
        walk.move(str(what), *which)


@given(policies, st.lists(rare, min_size=8, max_size=40))
@settings(max_examples=40, deadline=None)
def test_whatever_happens_all_that_must_hold_holds_of_a_rollback_at_once(
    chosen: Policy, path: Sequence[tuple[object, ...]]
) -> None:
    walk = Walk(chosen, at_once=True)

    for what, *which in path:
        walk.move(str(what), *which)


@given(policies, st.lists(rare, min_size=8, max_size=40))
@settings(max_examples=40, deadline=None)
def test_a_rollout_that_was_saved_and_read_again_goes_on_as_if_nothing_had_been(
    chosen: Policy, path: Sequence[tuple[object, ...]]
) -> None:
    straight, restarted = Walk(chosen), Walk(chosen)

    for what, *which in path:
        straight.move(str(what), *which)
        restarted.move(str(what), *which)
        restarted.rollout = reread(restarted.rollout)

    assert restarted.rollout == straight.rollout
    assert restarted.assigned == straight.assigned


@given(policies)
@settings(max_examples=40, deadline=None)
def test_where_nobody_ever_says_anything_nothing_is_promoted(chosen: Policy) -> None:
    story = Story(DEVICES, with_changes(chosen, approvals=()), classes=3)

    story.play(100_000.0, lambda assign: None)

    assert story.rollout.state in (RolloutState.PAUSED, RolloutState.ABORTED)
    assert VerdictKind.PROMOTE not in story.said()
    assert story.baseline is None


@given(policies, st.lists(st.sampled_from([0.0, 3.0, 20.0, 60.0]), min_size=7, max_size=7))
@settings(max_examples=60, deadline=None)
def test_where_all_do_well_and_nobody_interferes_everybody_gets_it(chosen: Policy, delays: Sequence[float]) -> None:
    story = Story(DEVICES, with_changes(chosen, approvals=()), classes=3)

    story.play(1e6, lambda assign: Report(delays[int(assign.device[1:]) % 7]))

    assert story.rollout.state is RolloutState.FINISHED
    assert set(story.told(NEW)) == set(names(DEVICES))
    assert story.ticks <= 20 * DEVICES + (story.now - START) / machine.LOOK_S  # It never looks again and again.


@given(policies, st.lists(st.sampled_from(["good", "good", "good", "bad", "failed", "silent"]), min_size=7, max_size=7))
@settings(max_examples=60, deadline=None)
def test_whatever_devices_say_it_comes_to_an_end_or_asks_an_operator(chosen: Policy, kinds: Sequence[str]) -> None:
    story = Story(DEVICES, with_changes(chosen, approvals=()), classes=3)

    def answer(assign: Assign) -> Report | None:
        match kinds[int(assign.device[1:]) % 7]:
            case "silent":
                return None
            case "failed" if assign.release == NEW:
                return Report(2.0, good=False, refusal=Refusal.DISK_FULL)
            case kind:
                return Report(12.0, good=kind == "good")

    story.play(1e6, answer)

    assert story.rollout.state in (*ENDED, RolloutState.PAUSED)


@given(policies, st.lists(st.sampled_from([None, 0.0, 3.3, 20.0, 61.0]), min_size=5, max_size=5))
@settings(max_examples=25, deadline=None)
def test_ticks_when_they_are_due_miss_nothing_that_ticking_every_second_would_see(
    chosen: Policy, delays: Sequence[float | None]
) -> None:
    lenient = with_changes(chosen, approvals=(), success_required=0.0, failure_objective=0.5, alpha=1e-6, abort_when=())

    def answer(assign: Assign) -> Report | None:
        after_s = delays[int(assign.device[1:]) % 5]
        return None if after_s is None else Report(after_s)

    due, always = Story(DEVICES, lenient, classes=3), Story(DEVICES, lenient, classes=3)
    due.play(3000.0, answer)
    always.play(3000.0, answer, every_s=1.0)

    assert due.rollout.state is always.rollout.state
    assert due.assigned == always.assigned
    for sooner, later in zip(due.assigned_at, always.assigned_at, strict=True):
        assert sooner <= later + 1.0
    assert due.ticks <= always.ticks + 60


def test_the_walk_notices_a_rollout_that_tells_devices_while_it_is_paused() -> None:
    story = Story()
    before = story.rollout
    result = machine.advance(before, Tick(story.facts()), story.now)
    assert assigns(result)

    with pytest.raises(AssertionError):
        check_assignments(replace(before, state=RolloutState.PAUSED), Tick(story.facts()), result)
