"""The rollout machine: what each event does to a staged rollout.

                 take wave, tell at the policy's pace          all reported, E < 3, enough succeeded
    RUNNING ──▶ treated + their held-back controls ──▶ soak, approvals ──▶ next wave … ──▶ FINISHED (the baseline)
      │ ▲                │ E >= 1/alpha, or a threshold of the policy                            │
      │ └ resume, skip   └──────────▶ ABORTING ──▶ ABORTED                                       │ roll back by hand
      ▼                                 ▲ touched devices are told what they had                 │
    PAUSED ── abort ────────────────────┴────────────────────────────────────────────────────────┘
      ▲
      └ by hand; or undecided: all reported, but E >= 3, or too few succeeded. Resuming does not let such a wave pass:
        only `skip` does, with a name behind it.

A device that is silent until its deadline is bad, treated or control. Devices that were offline when their wave began
are not in it: they wait, visibly, and get the release when the rollout has finished.
`advance(rollout, event, now)` is pure; the caller saves rollout and rows, and queues the effects, in one transaction.
What devices say is in `reports`, orders are in `orders`, the way back is in `recall`, the gate itself in `core.gate`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import assert_never

from immutables import Map

from muster_controller.core.gate.evidence import HOLD, undecided, verdict
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.policy import Policy
from muster_controller.core.rollout import orders, recall, reports, waves
from muster_controller.core.rollout.approvals import awaited
from muster_controller.core.rollout.draft import Draft, sums, terms
from muster_controller.core.rollout.events import (
    Advanced,
    Changes,
    DeviceChanged,
    DeviceFacts,
    DeviceHeld,
    DeviceJoined,
    DeviceLeft,
    Event,
    Ordered,
    OutcomeArrived,
    StepArrived,
    Superseded,
    Tick,
)
from muster_controller.core.rollout.pace import ROUNDING, again_s, room
from muster_controller.core.rollout.state import (
    ENDED,
    Control,
    Member,
    Outcome,
    Pause,
    Rollout,
    RolloutState,
    due_at,
    is_in_flight,
)
from muster_controller.core.rollout.telling import held_for, put_back, tell, tell_control
from muster_controller.core.rollout.thresholds import broken_threshold
from muster_shared.ids import DeviceId, RolloutId
from muster_shared.messages import ReleaseRef

SILENT = "silent until its deadline"
LOOK_S = 30.0
"""How often a rollout looks around when nothing is due: for devices that come online, and clocks that were set back."""


def create(
    rollout_id: RolloutId,
    release: ReleaseRef,
    previous: ReleaseRef | None,
    policy: Policy,
    devices: Mapping[DeviceId, str],
    *,
    now: float,
    actor: str,
    shuffle: Callable[[list[DeviceId]], None],
    at_once: bool = False,
) -> Rollout:
    """Return a new rollout over `devices` (id -> device class; at least one).

    Args:
        now: Unix seconds.
        shuffle: Puts a list into random order, in place; the order is fixed from then on.
        at_once: Tell every device at the first tick, without waves or a gate: the way back in an emergency.
    """
    order = waves.stratified(devices, shuffle)
    return Rollout(
        id=rollout_id,
        model=release.model,
        release=release,
        previous=previous,
        policy=policy,
        waves=(len(order),) if at_once else waves.planned(policy, len(order)),
        created_at=now,
        created_by=actor,
        at_once=at_once,
        members=Map({device: Member(device, devices[device], position) for position, device in enumerate(order)}),
        paced_at=now,
    )


def everything(rollout: Rollout) -> Changes:
    """Return all rows of a rollout: what is to be written of a new one."""
    return Changes(frozenset(rollout.members), frozenset(rollout.controls))


def advance(rollout: Rollout, event: Event, now: float) -> Advanced:
    """Return the rollout after `event` at `now` (Unix seconds), what to do about it, and which rows to write.

    Raises:
        OrderRefused: an order that the rollout's state does not allow; nothing has changed.
    """
    draft = Draft(rollout, now)
    match event:
        case Tick(fleet):
            _tick(draft, fleet)
        case OutcomeArrived():
            reports.outcome(draft, event)
        case StepArrived():
            reports.step(draft, event)
        case DeviceChanged(device, facts):
            reports.changed(draft, device, facts)
        case DeviceLeft(device, why, is_taken):
            reports.left(draft, device, why, is_taken)
        case DeviceHeld(device):
            reports.held(draft, device)
        case DeviceJoined(device, device_class):
            reports.joined(draft, device, device_class)
        case Ordered():
            orders.obey(draft, event)
        case Superseded(by):
            recall.supersede(draft, by)
        case _:
            assert_never(event)
    if draft.is_counted_anew or draft.settled != rollout.settled or draft.failures != rollout.failures:
        _judge(draft)
    return draft.done()


# -- what the clock says ---------------------------------------------------------------------------------------------


def _tick(draft: Draft, fleet: Mapping[DeviceId, DeviceFacts]) -> None:
    rollout = draft.rollout
    if rollout.state in ENDED:
        return
    draft.set(due_at=draft.now + LOOK_S)
    match rollout.state:
        case RolloutState.RUNNING:
            _look(draft, fleet)
            _judge(draft)
            if draft.rollout.state is RolloutState.RUNNING:
                _release(draft, fleet)
                _go_on(draft, fleet)
        case RolloutState.PAUSED:
            _look(draft, fleet)
            _judge(draft)
        case RolloutState.ABORTING:
            recall.look(draft, fleet)
        case _:
            pass


def _look(draft: Draft, fleet: Mapping[DeviceId, DeviceFacts]) -> None:
    """Count every device that has not reported by its deadline as bad, in both arms, and find when to look again."""
    if draft.rollout.at_once:
        for member in draft.members(is_in_flight):
            facts = fleet.get(member.device)
            if facts is not None:
                reports.runs_it(draft, member, facts)
    if draft.is_due():
        for member in draft.members(lambda each: each.retry_at is None and _is_due(each, draft.now)):
            silent = replace(member, outcome=Outcome.BAD, cause="silent", reason=SILENT, deferred_until=None)
            reports.settle(draft, silent)
        for control in draft.controls(lambda each: _is_due(each, draft.now)):
            reports.settle_control(draft, replace(control, outcome=Outcome.BAD, reason=SILENT))
    again_at = draft.due_next()
    if again_at is not None:
        draft.wake(again_at)


def _is_due(each: Member | Control, now: float) -> bool:
    at = due_at(each)
    return at is not None and at <= now


def _judge(draft: Draft) -> None:
    """Look at the evidence after any report; only an abort is decided here, whatever else is going on."""
    rollout = draft.rollout
    if rollout.state not in (RolloutState.RUNNING, RolloutState.PAUSED) or rollout.at_once:
        return
    reason = broken_threshold(rollout.policy.abort_when, draft.settled, draft.failures)
    if reason is None and not draft.is_counted_anew:
        return
    found = draft.weigh()
    said = verdict(found, rollout.policy.alpha)
    if reason is None and said is VerdictKind.ABORT:
        treated, bad = sums(draft.strata)
        named = ", ".join(f"{name} {each.e:.1f}" for name, each in sorted(found.metrics.items()) if each.e >= HOLD)
        reason = f"{bad} of {treated} devices did badly: E = {found.e:.1f} against {1 / rollout.policy.alpha:g}"
        reason += f" ({named})" if len(found.metrics) > 1 and named else ""
    if reason is not None:
        draft.say(VerdictKind.ABORT, reason, found)
        recall.abort(draft, reason)
    elif said is VerdictKind.HOLD and not (rollout.verdicts and rollout.verdicts[-1].kind is VerdictKind.HOLD):
        draft.say(VerdictKind.HOLD, f"E = {found.hold_e:.1f}: while it is so, no wave is promoted", found)


def _release(draft: Draft, fleet: Mapping[DeviceId, DeviceFacts]) -> None:
    """Tell as many as the pace allows: those that try again, then the wave's queue, each together with its controls."""
    rollout = draft.rollout
    again = draft.members(lambda each: each.retry_at is not None and _is_due(each, draft.now)) if draft.is_due() else []
    if not rollout.queue and not again:
        return
    pace = room(
        rollout.policy,
        released=draft.released,
        in_flight=draft.in_flight,
        devices=len(rollout.members),
        credit=rollout.credit,
        since_s=draft.now - rollout.paced_at,
    )
    by_rate = len(again) + len(rollout.queue) if pace.by_rate is None or rollout.at_once else pace.by_rate
    retried = again[:by_rate]
    for member in retried:
        tell(draft, member, member.previous)  # Whoever is held is not among them: `reports.held` saw to it.
    first = len(rollout.queue) if pace.room is None or rollout.at_once else min(pace.room, by_rate - len(retried))
    first = min(first, recall.BATCH)
    told, place = 0, 0
    while place < len(rollout.queue) and told < first:
        told += _tell_next(draft, rollout.queue[place], fleet)
        place += 1
    credit = max(0.0, pace.credit - len(retried) - told)
    draft.set(queue=rollout.queue[place:], credit=credit, paced_at=draft.now)
    if told == recall.BATCH and draft.rollout.queue:
        draft.wake(draft.now)
    soon_s = again_s(rollout.policy, draft.released, credit)
    if soon_s is not None and (draft.rollout.queue or len(again) > len(retried)):
        draft.wake(draft.now + soon_s)


def _tell_next(draft: Draft, device: DeviceId, fleet: Mapping[DeviceId, DeviceFacts]) -> bool:
    """Tell a device of the queue; return False when it is not there or held, and goes back to those that wait."""
    member, facts = _member(draft, device), fleet.get(device)
    if facts is None or facts.held or (not facts.online and not draft.rollout.at_once):
        put_back(draft, member)
        return False
    tell(draft, member, facts.active)
    for control in held_for(draft, member):
        tell_control(draft, control)
    if draft.rollout.at_once:
        reports.runs_it(draft, _member(draft, device), facts)
    return True


def _member(draft: Draft, device: DeviceId) -> Member:
    member = draft.member(device)
    assert member is not None
    return member


# -- waves -----------------------------------------------------------------------------------------------------------


def _go_on(draft: Draft, fleet: Mapping[DeviceId, DeviceFacts]) -> None:
    """Begin the first wave, or the next one when this one has passed, has soaked, and is approved."""
    rollout = draft.rollout
    if rollout.wave >= 0 and rollout.wave_passed_at is None:
        if draft.open.get(rollout.wave) and rollout.confirmed_wave < rollout.wave:
            return
        for device in rollout.queue:  # An operator let it pass before all were told: these come with the next.
            put_back(draft, _member(draft, device))
        draft.set(queue=())
        if not draft.treated(rollout.wave):
            _undo(draft)
        elif not _passes(draft):
            return
        rollout = draft.rollout
    if rollout.wave_passed_at is not None and rollout.confirmed_wave < rollout.wave:
        begins_at = rollout.wave_passed_at + rollout.policy.soak_s
        if draft.now < begins_at:
            draft.wake(begins_at)
            return
    online = waiting_online(draft, fleet)
    missing = awaited(draft.rollout, is_finish=not online)
    if missing is not None:
        if draft.rollout.reason != missing[1]:
            draft.set(reason=missing[1])
        return
    if online:
        _start_wave(draft, fleet, online)
    elif rollout.wave >= 0:
        _finish(draft)


def _undo(draft: Draft) -> None:
    """Undo a wave of which nobody is left, before anybody could say anything: without evidence nothing passes."""
    rollout, wave = draft.rollout, draft.rollout.wave
    for control in draft.controls(lambda each: each.wave == wave and each.outcome is not Outcome.LEFT):
        draft.drop_control(control)
    draft.set(
        wave=wave - 1,
        waves=rollout.waves if rollout.policy.ramp is None or not wave else rollout.waves[:wave],
        confirmed_wave=min(rollout.confirmed_wave, wave - 1),
        wave_passed_at=rollout.wave_began_at if wave else None,
        reason=f"nobody of wave {wave + 1} was there any more: it begins again",
    )


def _passes(draft: Draft) -> bool:
    """Judge a wave of which every device has an outcome; pause when the gate cannot say yes."""
    rollout = draft.rollout
    if rollout.at_once:  # It has no gate, so there is no verdict.
        draft.set(wave_passed_at=draft.now)
        return True
    treated = draft.members(
        lambda each: each.wave == rollout.wave and each.is_touched and each.outcome is not Outcome.LEFT
    )
    good = sum(member.outcome is Outcome.GOOD for member in treated)
    found = draft.weigh()
    unseen = undecided(found.strata, terms(rollout))
    if rollout.confirmed_wave < rollout.wave:
        if verdict(found, rollout.policy.alpha) is not VerdictKind.PROMOTE:
            _undecided(draft, f"undecided: E = {found.hold_e:.1f}")
            return False
        required = rollout.policy.success_required
        if good < required * len(treated) - ROUNDING or not good:  # Nothing passes in silence, whatever is required.
            _undecided(draft, f"{good} of {len(treated)} devices succeeded; {required:.0%} is required")
            return False
        if missing := [name for name in unseen if name in rollout.policy.metrics_required]:
            _undecided(draft, f"nobody could measure {' and '.join(missing)}, which the policy requires")
            return False
    reason = f"{good} of {len(treated)} devices did well: E = {found.e:.2f}"
    if unseen:
        reason += f"; nothing was seen of {' and '.join(unseen)}"
    draft.say(VerdictKind.PROMOTE, reason, found)
    draft.set(wave_passed_at=draft.now)
    return True


def _undecided(draft: Draft, reason: str) -> None:
    draft.say(VerdictKind.HOLD, reason)
    draft.set(
        state=RolloutState.PAUSED,
        pause=Pause.UNDECIDED,
        reason=f"{reason}; skip lets the wave pass all the same, abort ends the rollout",
    )


def waiting_online(draft: Draft, fleet: Mapping[DeviceId, DeviceFacts]) -> list[Member]:
    """Return those whom a next wave could take, in order: online, and held by nobody."""
    found: list[Member] = []
    for member in draft.members(lambda each: each.wave is None and each.outcome is Outcome.PENDING):
        facts = fleet.get(member.device)
        if facts is not None and not facts.held and (facts.online or draft.rollout.at_once):
            found.append(member)
    return found


def _start_wave(draft: Draft, fleet: Mapping[DeviceId, DeviceFacts], online: list[Member]) -> None:
    """Take the next wave and, for each of its devices, those of its class that are held back beside it."""
    rollout = draft.rollout
    wave = rollout.wave + 1
    chosen = waves.choose(online, waves.next_size(draft, len(online)))
    taken = {member.device for member in chosen}
    rest = (member for member in online if member.device not in taken)
    per_device = 0 if rollout.at_once else rollout.policy.controls_per_device
    for pair in waves.hold_back(chosen, rest, per_device, rollout.previous, fleet):
        for member in (pair.treated, *pair.held):
            _free(draft, member.device)
        held = tuple(member.device for member in pair.held)
        draft.put(replace(pair.treated, wave=wave, controls=held))
        for member in pair.held:
            draft.put_control(Control(member.device, member.device_class, wave, pair.treated.device))
    sizes = rollout.waves
    if rollout.policy.ramp is not None and not rollout.at_once:
        sizes = (*sizes[:wave], len(chosen))
    # A first wave that begins again, because nobody of it was left, saves up no second time.
    is_first = rollout.wave_began_at is None
    # Whoever approved the end did not know of this wave: its devices were offline, or it lay ahead.
    still = tuple(each for each in rollout.approvals if each.before != "finish")
    draft.set(
        wave=wave,
        waves=sizes,
        wave_began_at=draft.now,
        wave_passed_at=None,
        reason="" if still == rollout.approvals else f"wave {wave + 1} began after the end was approved: it asks again",
        queue=tuple(member.device for member in chosen),
        paced_at=draft.now if is_first else rollout.paced_at,
        credit=1.0 if is_first else rollout.credit,
        approvals=still,
    )
    if rollout.at_once and wave == 0:
        draft.set_baseline(rollout.release)
    _release(draft, fleet)


def _free(draft: Draft, device: DeviceId) -> None:
    """Watch a device no longer beside an earlier wave that was let pass: it has something else to do now."""
    for wave in sorted(draft.open):
        control = draft.control((wave, device))
        if control is not None and control.outcome is Outcome.PENDING:
            draft.drop_control(control)


def _finish(draft: Draft) -> None:
    left = len(draft.members(lambda each: each.wave is None and each.outcome is Outcome.PENDING))
    if draft.rollout.at_once:
        reason = f"{draft.settled - sum(draft.failures.values())} of {draft.released} devices run it"
    else:
        reason = f"promoted to {draft.released} devices"
    if left:
        reason += f"; {left} offline or held since before their wave get it when they are back"
    draft.set(state=RolloutState.FINISHED, reason=reason, ended_at=draft.now)
    if not draft.rollout.at_once:
        draft.set_baseline(draft.rollout.release)
