"""What operators order: pause, resume, skip, retry, extend, approve, abort, roll back. Each with a name and a reason.

Resuming is not approving: a wave that the gate could not decide passes by `skip` alone, which is on record as such.
"""

from dataclasses import replace

from msgspec.structs import replace as with_changes

from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.rollout import recall
from muster_controller.core.rollout.approvals import AT_THE_END, all_awaited, awaited, may_approve
from muster_controller.core.rollout.draft import Draft
from muster_controller.core.rollout.events import Order, Ordered, OrderRefused
from muster_controller.core.rollout.state import (
    Approved,
    Member,
    Outcome,
    Pause,
    RolloutState,
    due_at,
    is_in_flight,
    waiting,
)
from muster_controller.core.rollout.telling import watch

EXTEND_S_MAX = 90 * 86400.0


def obey(draft: Draft, event: Ordered) -> None:
    """Do what was ordered. Raises OrderRefused."""
    said = f"{event.order.value} by {event.actor}" + (f": {event.reason}" if event.reason else "")
    rollout = draft.rollout
    match event.order, rollout.state:
        case Order.PAUSE, RolloutState.RUNNING:
            draft.set(state=RolloutState.PAUSED, pause=Pause.BY_HAND, reason=said)
        case Order.RESUME, RolloutState.PAUSED:
            if rollout.pause is Pause.UNDECIDED:
                why = f"the gate is undecided ({rollout.reason}); resuming does not change that"
                raise OrderRefused(rollout, event.order, why)
            draft.set(state=RolloutState.RUNNING, pause=None, reason=said, due_at=draft.now)
        case Order.SKIP, RolloutState.RUNNING | RolloutState.PAUSED if rollout.wave >= 0:
            if not draft.treated(rollout.wave):
                why = f"no device of wave {rollout.wave + 1} was told yet: there is nothing to skip"
                raise OrderRefused(rollout, event.order, why)
            draft.set(
                state=RolloutState.RUNNING, pause=None, reason=said, confirmed_wave=rollout.wave, due_at=draft.now
            )
        case Order.RETRY, RolloutState.RUNNING | RolloutState.PAUSED:
            _retry(draft, event)
        case Order.EXTEND, RolloutState.RUNNING | RolloutState.PAUSED:
            _extend(draft, event)
        case Order.APPROVE, RolloutState.RUNNING | RolloutState.PAUSED:
            _approve(draft, event)
        case Order.ABORT, RolloutState.RUNNING | RolloutState.PAUSED:
            draft.say(VerdictKind.ABORT, said)
            recall.abort(draft, said)
        case Order.ROLL_BACK, RolloutState.FINISHED if rollout.previous is not None:
            recall.call_back(draft, said)
            draft.set_baseline(rollout.previous)
        case _:
            raise OrderRefused(rollout, event.order)


def _retry(draft: Draft, event: Ordered) -> None:
    """Tell every failed device once more. What was counted stays counted: evidence cannot be wiped by trying again."""
    failed = draft.members(lambda member: _may_retry(member, draft.now))
    if not failed:
        raise OrderRefused(draft.rollout, event.order, "no device has failed that is not trying again already")
    for member in failed:
        assert member.wave is not None
        attempt, deadline_at = member.attempt + 1, draft.now + draft.rollout.policy.deadline_s
        draft.put(replace(member, second=Outcome.PENDING, attempt=attempt, deadline_at=deadline_at))
        draft.assign(member.device, draft.rollout.release, watch(draft.rollout, member.wave, attempt))


def _may_retry(member: Member, now: float) -> bool:
    if member.outcome is not Outcome.BAD or not member.is_touched or member.is_taken:
        return False
    # Who was silent this time too may be told a third time.
    return member.second is not Outcome.PENDING or now >= (member.deadline_at or 0.0)


def _extend(draft: Draft, event: Ordered) -> None:
    """Give everybody who has not reported so many seconds more, on the device too."""
    rollout = draft.rollout
    if not 0 < event.seconds <= EXTEND_S_MAX:
        raise OrderRefused(rollout, event.order, f"an extension is from 1 s to {EXTEND_S_MAX:g} s")
    moved = 0
    for member in draft.members(is_in_flight):
        if member.deadline_at is not None and member.retry_at is None:
            assert member.wave is not None
            draft.put(replace(member, deadline_at=member.deadline_at + event.seconds))
            found = watch(rollout, member.wave, member.attempt)
            if found is not None:
                longer = member.deadline_at + event.seconds - draft.now
                draft.assign(member.device, rollout.release, with_changes(found, deadline_s=max(1.0, longer)))
            moved += 1
    for control in draft.controls(lambda each: due_at(each) is not None):
        assert control.deadline_at is not None
        draft.put_control(replace(control, deadline_at=control.deadline_at + event.seconds))
        moved += 1
    if not moved:
        raise OrderRefused(rollout, event.order, "no device is under way")
    draft.set(due_at=draft.now)


def _approve(draft: Draft, event: Ordered) -> None:
    rollout = draft.rollout
    is_finish = rollout.reason.startswith(AT_THE_END) or not waiting(rollout) or awaited(rollout) is None
    gates = list(all_awaited(rollout, is_finish=is_finish))
    before = "finish" if is_finish and rollout.wave >= 0 else str(rollout.wave + 2)
    if not gates:
        raise OrderRefused(rollout, event.order, "nothing waits for an approval")
    if not any(may_approve(rollout, approval, event.actor) for approval, _ in gates):
        raise OrderRefused(rollout, event.order, f"{event.actor} may not approve; {gates[0][1]}")
    if any(each.by == event.actor and each.before == before for each in rollout.approvals):
        raise OrderRefused(rollout, event.order, f"{event.actor} has approved already; {gates[0][1]}")
    given = Approved(before, event.actor, draft.now, event.reason)
    draft.set(approvals=(*rollout.approvals, given), due_at=draft.now)
