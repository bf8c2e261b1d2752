"""Telling devices: the assignment of a treated device and of its controls, with how each watches itself."""

from dataclasses import replace

from muster_controller.core.policy import windows
from muster_controller.core.rollout.draft import Draft
from muster_controller.core.rollout.state import Control, Member, Outcome, Rollout
from muster_shared.assignment import Activation, Watch
from muster_shared.messages import ReleaseRef

DEADLINE_STEPS = 200
"""Deadlines are rounded up to this part of their length, so that many fall on one moment and cost one look."""


def tell(draft: Draft, member: Member, previous: ReleaseRef | None) -> None:
    """Assign the release, for the first time or once more."""
    rollout = draft.rollout
    wave = member.wave
    assert wave is not None
    deadline_at = rounded(draft.now + rollout.policy.deadline_s, rollout.policy.deadline_s)
    member = replace(
        member,
        assigned_at=draft.now,
        deadline_at=deadline_at,
        retry_at=None,
        deferred_until=None,
        previous=previous,
        attempt=member.attempt + 1,
        step=None,
        cause="",
        reason="",
    )
    draft.put(member)
    draft.assign(member.device, rollout.release, watch(rollout, wave, member.attempt))
    draft.wake(deadline_at)


def tell_control(draft: Draft, control: Control) -> None:
    rollout = draft.rollout
    assert rollout.previous is not None
    deadline_at = rounded(draft.now + rollout.policy.deadline_s, rollout.policy.deadline_s)
    draft.put_control(replace(control, assigned_at=draft.now, deadline_at=deadline_at))
    draft.wake(deadline_at)
    draft.assign(control.device, rollout.previous, watch(rollout, control.wave, 1))


def held_for(draft: Draft, member: Member) -> list[Control]:
    assert member.wave is not None
    found = (draft.control((member.wave, device)) for device in member.controls)
    return [control for control in found if control is not None and control.outcome is Outcome.PENDING]


def put_back(draft: Draft, member: Member) -> None:
    """Take a device that was not told out of its wave again, and with it those held back for it alone."""
    for control in held_for(draft, member):
        draft.drop_control(control)
    draft.put(replace(member, wave=None, controls=()))


def watch(rollout: Rollout, wave: int, attempt: int) -> Watch | None:
    """Return how a device of `wave` watches itself; None for a rollback at once, which is never put off."""
    if rollout.at_once:
        return None
    policy = rollout.policy
    return Watch(
        rollout=rollout.id,
        wave=wave,
        window_s=policy.window_s,
        window_max_s=policy.window_max_s,
        requests_min=policy.requests_min,
        deadline_s=policy.deadline_s,
        download_s=policy.download_s,
        attempt=attempt,
        activation=Activation(
            windows=windows(policy), consent=policy.consent, defer_s_max=policy.defer_s_max, trial=policy.trial
        ),
    )


def rounded(at: float, length_s: float) -> float:
    """Return `at` rounded up to a part of `length_s`."""
    step = max(1e-3, length_s / DEADLINE_STEPS)
    return -(-at // step) * step
