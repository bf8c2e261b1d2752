"""What devices say, and what it does to a rollout: outcomes, steps, coming and going.

Every report is taken once; late, repeated and strange ones change nothing. What follows from the counts is decided in
`machine`.
"""

from dataclasses import replace

from muster_controller.core.rollout import recall, waves
from muster_controller.core.rollout.draft import Draft
from muster_controller.core.rollout.events import DeviceFacts, OutcomeArrived, StepArrived
from muster_controller.core.rollout.state import (
    ENDED,
    LATE,
    TAKEN,
    Control,
    Member,
    Outcome,
    RolloutState,
    due_at,
    is_in_flight,
    is_queued,
)
from muster_controller.core.rollout.telling import put_back, rounded
from muster_shared.ids import DeviceId
from muster_shared.messages import Step

PROBATION = "probation"
"""The cause of a device that failed after it switched."""


def outcome(draft: Draft, event: OutcomeArrived) -> None:
    """Take a report once: the first one counts, and silence that was already counted as bad stays bad."""
    if draft.rollout.state in (RolloutState.ABORTING, RolloutState.ABORTED):
        return  # Whoever was under way is called back: nothing is awaited of it any more.
    outcome = Outcome.GOOD if event.good else Outcome.BAD
    member = draft.member(event.device)
    if member is not None and member.wave == event.wave and member.is_touched:
        if event.bundle not in (None, draft.rollout.release.bundle_sha256):
            return
        if event.attempt is not None and event.attempt < member.attempt:
            return
        if member.outcome is Outcome.BAD and member.second is Outcome.PENDING:
            draft.put(replace(member, second=outcome, reason=event.reason if event.good else member.reason))
        if member.outcome is not Outcome.PENDING or (member.retry_at is not None and not event.good):
            return
        policy = draft.rollout.policy
        if not event.good and member.step is Step.FAILED and member.attempt <= policy.retries:
            retry_at = rounded(draft.now + policy.retry_wait_s, policy.retry_wait_s)
            draft.put(replace(member, retry_at=retry_at, deadline_at=None, reason=f"tries again: {event.reason}"))
            draft.wake(retry_at)
            return
        member = replace(
            member,
            outcome=outcome,
            reason=event.reason,
            cause="" if event.good else member.cause or PROBATION,
            latency=event.latency,
            disagreed=event.disagreed,
            deferred_until=None,
            retry_at=None,
        )
        settle(draft, member)
        return
    control = draft.control((event.wave, event.device))
    if control is not None and due_at(control) is not None:
        settle_control(draft, replace(control, outcome=outcome, reason=event.reason, latency=event.latency))


def settle(draft: Draft, member: Member) -> None:
    """Put a treated device that has come to its outcome, and what its latency says."""
    draft.put(member)
    draft.pair(member)
    _wake_for(draft, member)


def settle_control(draft: Draft, control: Control) -> None:
    draft.put_control(control)
    partner = draft.member(control.partner)
    if partner is not None:
        draft.pair(partner)
    _wake_for(draft, control)


def _wake_for(draft: Draft, settled: Member | Control) -> None:
    """Look at once when that was the last of its wave, or when there is room for another device."""
    if not draft.open.get(draft.rollout.wave) or (draft.rollout.queue and isinstance(settled, Member)):
        draft.wake(draft.now)


def step(draft: Draft, event: StepArrived) -> None:
    member = draft.member(event.device)
    if event.bundle != draft.rollout.release.bundle_sha256:
        control = draft.control((draft.rollout.wave if event.wave is None else event.wave, event.device))
        if control is not None and event.step is Step.DEFERRED and due_at(control) is not None:
            _defer_control(draft, control, event)
        return
    if member is None or not member.is_touched or (event.wave is not None and event.wave != member.wave):
        return
    if event.attempt is not None and event.attempt < member.attempt:
        return
    fetched = max(member.bytes_fetched, event.bytes_fetched)
    refusal = PROBATION if event.refusal is None else event.refusal.value
    member = replace(member, step=event.step, bytes_fetched=fetched, seconds=event.seconds)
    if member.outcome is Outcome.PENDING:
        match event.step:
            case Step.DEFERRED if member.retry_at is None:
                member = _deferred(draft, member, event)
            case Step.FAILED | Step.ROLLED_BACK:
                member = replace(member, cause=refusal)
            case _ if member.deferred_until is not None:
                again = rounded(draft.now + draft.rollout.policy.deadline_s, draft.rollout.policy.deadline_s)
                deadline_at = min(again, max(_latest(draft, member), member.deadline_at or 0.0))
                member = replace(member, deferred_until=None, reason="", deadline_at=deadline_at)
                draft.wake(deadline_at)
            case _:
                pass
    elif event.step is Step.FAILED and member.cause == PROBATION and member.second is None:
        member = replace(member, cause=refusal)  # It overtook its step on the way.
    draft.put(member)


def _deferred(draft: Draft, member: Member, event: StepArrived) -> Member:
    """Give a device that says "later" the time it asks for, within what the policy bears."""
    until, deadline_at = _deferral(draft, member, event)
    return replace(member, deferred_until=until, deadline_at=deadline_at, reason=event.detail)


def _defer_control(draft: Draft, control: Control, event: StepArrived) -> None:
    until, deadline_at = _deferral(draft, control, event)
    draft.put_control(replace(control, deferred_until=until, deadline_at=deadline_at))


def _deferral(draft: Draft, each: Member | Control, event: StepArrived) -> tuple[float, float]:
    """Return until when a device defers, and its deadline then: the same for both arms.

    A device says once that it defers, and looks again by itself, so it has all the time that the policy grants.
    """
    return draft.now + max(0.0, event.wait_s or 0.0), max(each.deadline_at or 0.0, _latest(draft, each))


def _latest(draft: Draft, each: Member | Control) -> float:
    policy = draft.rollout.policy
    assert each.assigned_at is not None
    return rounded(each.assigned_at + policy.deadline_s + policy.defer_s_max, policy.deadline_s)


def changed(draft: Draft, device: DeviceId, facts: DeviceFacts) -> None:
    rollout, member = draft.rollout, draft.member(device)
    if member is None:
        return
    if rollout.state is RolloutState.ABORTING:
        recall.came_back(draft, member, facts)
    elif rollout.at_once:
        runs_it(draft, member, facts)
    elif facts.online and rollout.state is RolloutState.RUNNING and member.wave is None and not rollout.open:
        draft.wake(draft.now)  # A wave that nobody was there for may begin.


def runs_it(draft: Draft, member: Member, facts: DeviceFacts) -> None:
    """Of a rollback at once nobody reports an outcome: whoever runs the release has done well."""
    if is_in_flight(member) and waves.runs(facts, draft.rollout.release):
        settle(draft, replace(member, outcome=Outcome.GOOD, reason="it runs the release"))


def left(draft: Draft, device: DeviceId, why: str, is_taken: bool) -> None:
    """A device that was told counts on, whatever group it is in now; unless another rollout tells it what to run.

    One that was to be held back beside another, and was not told so yet, is not: a rollout tells nobody who has left.
    """
    if draft.rollout.state in ENDED:
        return
    member = draft.member(device)
    if member is not None and member.outcome is Outcome.PENDING and (is_taken or not member.is_touched):
        if is_queued(member):
            put_back(draft, member)
            draft.set(queue=tuple(each for each in draft.rollout.queue if each != device))
            member = replace(member, wave=None, controls=())
        draft.put(
            replace(member, outcome=Outcome.LEFT, reason=why, cause=TAKEN if is_taken else "", deferred_until=None)
        )
        draft.wake(draft.now)
    elif member is not None and is_taken and member.outcome is not Outcome.LEFT:
        draft.put(replace(member, second=Outcome.LEFT))
    for wave in sorted(draft.open):
        control = draft.control((wave, device))
        if control is not None and control.outcome is Outcome.PENDING and (is_taken or control.assigned_at is None):
            draft.drop_control(control)
            draft.wake(draft.now)


def held(draft: Draft, device: DeviceId) -> None:
    """Take a device that is held out of whatever it is under way with: it waits again, and nothing of that counts.

    What had come to an outcome before stays counted: evidence is not taken back because somebody dislikes it.
    """
    if draft.rollout.state not in (RolloutState.RUNNING, RolloutState.PAUSED):
        return
    member = draft.member(device)
    if member is not None and (is_queued(member) or is_in_flight(member)):
        if is_queued(member):
            draft.set(queue=tuple(each for each in draft.rollout.queue if each != device))
        put_back(draft, member)
        # The attempts go on being counted, or the device would take a later one for what it knows.
        draft.put(Member(device, member.device_class, member.position, attempt=member.attempt))
        draft.wake(draft.now)
    for wave in sorted(draft.open):
        control = draft.control((wave, device))
        if control is not None and control.outcome is Outcome.PENDING:
            draft.drop_control(control)
            draft.wake(draft.now)


def joined(draft: Draft, device: DeviceId, device_class: str) -> None:
    """A late joiner comes behind all others: it is told in the last wave, at the pace of the policy."""
    if draft.rollout.state in (*ENDED, RolloutState.ABORTING) or draft.rollout.at_once:
        return
    member = draft.member(device)
    if member is None:
        draft.put(Member(device, device_class, position=LATE + len(draft.rollout.members)))
    elif member.outcome is Outcome.LEFT and not member.is_touched:
        draft.put(Member(device, device_class, member.position))
    else:
        return
    if draft.rollout.state is RolloutState.RUNNING and not draft.rollout.open:
        draft.wake(draft.now)
