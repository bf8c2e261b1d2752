"""The way back: what an abort, a rollback by hand or a newer rollout does to the devices that were told.

    roll_back   every touched device, in flight or settled, is told what it ran before
    stop        those in flight are called back, so that nothing changes behind the operator's back; the others stay
    freeze      nobody is told anything, until another rollout or rollback of the model says so

Devices switch back from their standby slot, without a download.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.rollout.draft import Draft
from muster_controller.core.rollout.events import DeviceFacts
from muster_controller.core.rollout.state import (
    Member,
    Outcome,
    Rollout,
    RolloutState,
    home,
    is_in_flight,
)
from muster_controller.core.rollout.telling import put_back
from muster_controller.core.rollout.waves import runs
from muster_shared.ids import DeviceId, RolloutId
from muster_shared.messages import ReleaseRef

BATCH = 2000  # Devices called back, or told of a wave, by one tick: the first ones need not wait for the last.
LOOK_AGAIN_S = 1.0  # A fleet that comes back costs one look a second, not one a device.
GIVE_UP_S = 60.0  # How long, beyond its deadline, an aborting rollout waits for devices that do not come back.


def abort(draft: Draft, reason: str) -> None:
    """End the rollout badly, and do with its devices what the policy says."""
    if draft.rollout.at_once and draft.rollout.wave >= 0 and draft.rollout.previous is not None:
        draft.set_baseline(draft.rollout.previous)  # It had set its own at the beginning.
    match draft.rollout.policy.on_abort:
        case "roll_back" | "stop":
            call_back(draft, reason)
        case "freeze":
            _let_go(draft)
            draft.set(
                state=RolloutState.ABORTED,
                pause=None,
                reason=reason,
                aborting_at=draft.now,
                ended_at=draft.now,
                queue=(),
            )


def is_ours(member: Member) -> bool:
    """Return whether it was told to run the release, and no other rollout has told it anything since."""
    return member.is_touched and not member.is_taken


def is_called(rollout: Rollout, member: Member) -> bool:
    """Return whether a rollout that is aborting has called `member` back.

    With `stop`, those that were in flight: while it is aborting no outcome is taken any more. A rollback by hand, which
    no verdict tells of, calls everybody back.
    """
    if not is_ours(member) or home(rollout, member) is None:
        return False
    is_stopped = bool(rollout.verdicts) and rollout.verdicts[-1].kind is VerdictKind.ABORT
    return not (rollout.policy.on_abort == "stop" and is_stopped) or is_in_flight(member)


def is_withdrawn(rollout: Rollout, device: DeviceId, release: ReleaseRef) -> bool:
    """Return whether `release`, which `rollout` gave to `device`, may be given to it no more: it was aborted.

    What was decided at once stays decided: no verdict was passed on it.
    """
    if rollout.state not in (RolloutState.ABORTING, RolloutState.ABORTED) or rollout.at_once:
        return False
    member = rollout.members.get(device)
    back = rollout.previous if member is None else home(rollout, member)
    return release.bundle_sha256 == rollout.release.bundle_sha256 and release != back


def call_back(draft: Draft, reason: str) -> None:
    """Give devices a newer assignment of what they had: see `is_called` for which."""
    _let_go(draft)
    draft.set(
        state=RolloutState.ABORTING,
        pause=None,
        reason=reason,
        aborting_at=draft.now,
        ended_at=None,
        queue=(),
        recalled=-1,
        due_at=draft.now,
    )
    if not _call_more(draft):
        _end(draft)


def _call_more(draft: Draft) -> int:
    """Call back the next BATCH devices, in order; return how many there were."""
    rollout = draft.rollout
    ahead = draft.members_after(rollout.recalled)
    left = list(islice((member for member in ahead if is_called(rollout, member)), BATCH + 1))
    called = left[:BATCH]
    for member in called:
        release = home(rollout, member)
        assert release is not None, "whoever has no home is not called"
        draft.assign(member.device, release, None)
    if called:
        draft.set(recalled=called[-1].position)
        # For the others at once; to see who is back, when the last ones have had the time to hear of it.
        draft.wake(draft.now if len(left) > BATCH else draft.now + LOOK_AGAIN_S)
    return len(called)


def came_back(draft: Draft, member: Member, facts: DeviceFacts) -> None:
    """Note that a device runs what it had before."""
    release = home(draft.rollout, member)
    if not member.returned and is_called(draft.rollout, member) and release is not None and runs(facts, release):
        draft.put(replace(member, returned=True))
        draft.wake(draft.now + LOOK_AGAIN_S)


def look(draft: Draft, fleet: Mapping[DeviceId, DeviceFacts]) -> None:
    """End it when everybody is back who can be waited for."""
    if _call_more(draft):
        return
    rollout = draft.rollout
    assert rollout.aborting_at is not None
    patience_at = rollout.aborting_at + GIVE_UP_S + rollout.policy.deadline_s
    missing = 0
    for member in draft.members(lambda member: not member.returned and is_called(rollout, member)):
        facts, release = fleet.get(member.device), home(rollout, member)
        if facts is None or release is None:
            continue
        if runs(facts, release):
            draft.put(replace(member, returned=True))
        elif facts.held:
            continue  # It is told nothing, so it is not waited for.
        elif facts.online and draft.now < patience_at:
            missing += 1
    if not missing:
        _end(draft)
    else:
        draft.wake(patience_at)


def supersede(draft: Draft, by: RolloutId) -> None:
    """Leave everything to another rollout, which tells the same devices what to run now."""
    if draft.rollout.state in (RolloutState.ABORTED, RolloutState.FINISHED):
        return
    _let_go(draft)
    draft.set(state=RolloutState.ABORTED, pause=None, reason=f"superseded by {by}", ended_at=draft.now, queue=())


def _let_go(draft: Draft) -> None:
    """Await nothing more: who was queued goes back to waiting, and who is held back is free."""
    for device in draft.rollout.queue:
        member = draft.member(device)
        assert member is not None
        put_back(draft, member)
    for control in draft.controls(lambda control: control.outcome is Outcome.PENDING):
        draft.drop_control(control)


def _end(draft: Draft) -> None:
    draft.set(state=RolloutState.ABORTED, ended_at=draft.now)
