"""Deliberately broken variants of the shipped code, each of which some promise of the fleet world must catch.

A mutant is a patch that holds while one world runs in this process; nothing of it is reachable outside the simulator.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import msgspec

from muster_agent.core import activation, probation, update
from muster_agent.core.events import Effect, WakeAt
from muster_agent.core.health import Health, Judgement
from muster_agent.core.state import ModelState, Update
from muster_controller import engine as engines
from muster_controller import mending
from muster_controller.core.gate.evidence import Evidence
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.policy import Policy
from muster_controller.core.rollout import machine, pace, recall, reports, state
from muster_controller.core.rollout.draft import Draft
from muster_controller.core.rollout.events import Assign, DeviceFacts
from muster_controller.core.rollout.pace import Pace
from muster_controller.core.rollout.state import Control, Member, Outcome, Rollout, is_in_flight
from muster_controller.core.rollout.telling import watch
from muster_controller.engine import Engine
from muster_controller.following import Following
from muster_controller.groups import facts_of
from muster_controller.holds import Hold, nobody
from muster_controller.mending import Mender
from muster_controller.ordering import Ordering
from muster_controller.ports import Device
from muster_shared.assignment import MaintenanceWindow
from muster_shared.bundle import Slo
from muster_shared.ids import DeviceId, ModelName, RolloutId
from muster_shared.messages import ReleaseRef, WindowReport
from muster_shared.topics import Topic
from muster_simulator import mutants as whole
from muster_simulator.fleet.ledger import StaleLedger
from muster_simulator.mutants import Mutant
from muster_simulator.ports.ledger import MemoryLedger


@contextmanager
def _write_the_past(self: StaleLedger) -> Iterator[None]:
    before = dict(self._desired.rows)
    with MemoryLedger.transaction(self):
        yield
    changed = [each for device, each in self._desired.rows.items() if before.get(device) is not each]
    if changed:
        with self.origin.transaction():
            for desired in changed:
                self.origin.save_desired(desired)


def _overlook_rivals(self: Ordering, model: ModelName, devices: Sequence[Device], priority: int) -> list[Rollout]:
    return []


def _nobody_has_say(rollout: Rollout, device: DeviceId) -> bool:
    return False


_call_back = recall.call_back


def _call_back_and_try_again(draft: Draft, reason: str) -> None:
    told = draft.members(recall.is_ours)[:1]
    _call_back(draft, reason)
    for member in told:
        assert member.wave is not None
        draft.assign(member.device, draft.rollout.release, watch(draft.rollout, member.wave, member.attempt + 1))


def _is_called_when_settled(rollout: Rollout, member: Member) -> bool:
    return _is_called(rollout, member) and not is_in_flight(member)


_is_called = recall.is_called


_recount = Draft._recount


def _recount_the_treated(self: Draft, before: Member | Control | None, after: Member | Control) -> None:
    if isinstance(after, Member):
        _recount(self, before, after)


_say = Draft.say


def _say_without_counts(self: Draft, kind: VerdictKind, reason: str, found: Evidence | None = None) -> None:
    _say(self, kind, reason, replace(self.weigh() if found is None else found, strata=()))


def _await_nobody(rollout: Rollout, *, is_finish: bool = False) -> None:
    return None


_room = pace.room


def _room_for_all(
    policy: Policy, *, released: int, in_flight: int, devices: int, credit: float, since_s: float
) -> Pace:
    policy = msgspec.structs.replace(policy, rate=None, concurrency=None)
    return _room(policy, released=released, in_flight=in_flight, devices=devices, credit=credit, since_s=since_s)


def _room_for_late_ones(self: Mender, rollout: Rollout, device: Device, now: float) -> bool:
    return True


def _judge_kindly(window: WindowReport, slo: Slo, requests_min: int) -> Judgement:
    return Judgement(Health.GOOD, "it will do")


def _facts_of_the_living(device: Device, model: ModelName, held: str = "") -> DeviceFacts:
    return replace(facts_of(device, model, held), online=True)


def _leave_groups_alone(self: Following, rollout: Rollout, device: Device) -> None:
    return None


def _always_open(windows: Sequence[MaintenanceWindow], weekday: int, minute: int) -> int:
    return 0


def _wake_at_once(model: ModelState, pending: Update, now: float) -> tuple[ModelState, list[Effect]]:
    return model, [WakeAt(now)]


_home = state.home


def _home_by_class(rollout: Rollout, member: Member) -> ReleaseRef | None:
    if member.device_class not in ("pi5-cpu", "nuc-gpu", "orin-npu"):
        raise KeyError(member.device_class)
    return _home(rollout, member)


def _never_end(draft: Draft) -> None:
    return None


def _facts_without_holds(device: Device, model: ModelName, held: str = "") -> DeviceFacts:
    return facts_of(device, model)


def _assign_to_anybody(self: Engine, effects: Sequence[Assign], rollout: RolloutId) -> None:
    holds, self.holds = self.holds, nobody
    _assign(self, effects, rollout)
    self.holds = holds


_assign = Engine.assign


def _mend_the_held(self: Mender, engine: Engine, device: Device, running: Sequence[Rollout], now: float) -> None:
    holds, engine.holds = engine.holds, nobody
    _mend(self, engine, device, running, now)
    engine.holds = holds


_mend = Mender._mend


def _held_counts_as_bad(draft: Draft, device: DeviceId) -> None:
    member = draft.member(device)
    if member is not None and is_in_flight(member):
        reports.settle(draft, replace(member, outcome=Outcome.BAD, reason="held"))
    else:
        _held(draft, device)


_held = reports.held


def _held_goes_on(draft: Draft, device: DeviceId) -> None:
    return None


def _keep_what_is_retained(self: Engine, topic: Topic, payload: bytes, *, retain: bool) -> None:
    if payload:
        _send(self, topic, payload, retain=retain)


_send = Engine.send


def _mutants() -> Iterator[Mutant]:
    for name in (
        "accept_old_counter",
        "promote_on_silence",
        "wait_for_ever",
        "ack_before_commit",
        "rollback_drops_standby",
        "late_joiners_bypass",
        "no_republish_on_connect",
        "publish_before_commit",
    ):
        yield whole.MUTANTS[name]
    yield Mutant(
        "no_fence",
        "what a controller writes that takes the past for the present is kept",
        ((StaleLedger, "transaction", _write_the_past),),
    )
    yield Mutant(
        "overlook_rivals",
        "a rollout begins though another has its devices",
        ((Ordering, "_rivals", _overlook_rivals),),
    )
    yield Mutant(
        "mend_what_rolls",
        "baselines are restored on devices that a rollout has",
        ((mending, "has_say", _nobody_has_say),),
    )
    yield Mutant(
        "retry_after_abort",
        "an abort lets a device try again that was about to",
        ((recall, "call_back", _call_back_and_try_again),),
    )
    yield Mutant("abort_for_ever", "an abort is never over", ((recall, "_end", _never_end),))
    yield Mutant(
        "forget_in_flight",
        "an abort leaves devices that are under way",
        ((recall, "is_called", _is_called_when_settled),),
    )
    yield Mutant(
        "count_no_controls",
        "the counts do not follow the held-back devices",
        ((Draft, "_recount", _recount_the_treated),),
    )
    yield Mutant(
        "verdicts_without_counts",
        "a verdict is stored without the counts behind it",
        ((Draft, "say", _say_without_counts),),
    )
    yield Mutant("nobody_approves", "approval gates are open", ((machine, "awaited", _await_nobody),))
    yield Mutant("no_pace", "rate and concurrency are not looked at", ((machine, "room", _room_for_all),))
    yield Mutant(
        "late_ones_at_once",
        "whoever comes late is told at once, as AWS does",
        ((Mender, "_has_room", _room_for_late_ones),),
    )
    yield Mutant(
        "judge_kindly",
        "a device calls itself well whatever it measured",
        ((probation, "judge", _judge_kindly),),
    )
    yield Mutant(
        "tell_the_absent",
        "devices that are offline when their wave begins are in it",
        ((engines, "facts_of", _facts_of_the_living),),
    )
    yield Mutant(
        "overlook_moves",
        "a device that has left the group is told all the same",
        ((Following, "_regroup", _leave_groups_alone),),
    )
    yield Mutant(
        "always_open",
        "maintenance windows are not looked at",
        ((activation, "opens_in", _always_open),),
    )
    yield Mutant(
        "wake_at_once",
        "a device in probation asks to be woken at this very moment",
        ((update, "wake_in_probation", _wake_at_once),),
    )
    yield Mutant(
        "tell_the_held",
        "rollouts take devices that operators hold, as if there were no holds",
        ((engines, "facts_of", _facts_without_holds), (Engine, "assign", _assign_to_anybody)),
    )
    yield Mutant(
        "mend_the_held",
        "whoever is held is brought to what its group runs",
        ((Mender, "_mend", _mend_the_held),),
    )
    yield Mutant(
        "count_the_held",
        "a device that is held while an update is under way counts as one that failed",
        ((reports, "held", _held_counts_as_bad),),
    )
    yield Mutant(
        "await_the_held",
        "a hold calls off nothing of what is under way",
        ((reports, "held", _held_goes_on),),
    )
    yield Mutant(
        "keep_the_quarantined",
        "whoever is quarantined stays a member of rollouts",
        ((Hold, "is_out", False),),
    )
    yield Mutant(
        "keep_what_is_retained",
        "the assignment of a decommissioned device stays on the broker",
        ((Engine, "send", _keep_what_is_retained),),
    )
    yield Mutant(
        "forget_a_class",
        "calling back a device of the newest class is not provided for",
        ((recall, "home", _home_by_class),),
    )


MUTANTS: dict[str, Mutant] = {mutant.name: mutant for mutant in _mutants()}
