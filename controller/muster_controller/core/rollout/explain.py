"""Explaining: why a device of a rollout waits, in a word for programs and a sentence for people. Pure.

Decides nothing: what it says follows from the same values by which `machine` decides. Of the rollout as a whole:
`outlook`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from muster_controller.core.policy import in_flight_max, per_minute
from muster_controller.core.rollout.approvals import awaited
from muster_controller.core.rollout.outlook import is_called_back, soak_ends
from muster_controller.core.rollout.pace import room
from muster_controller.core.rollout.state import (
    TAKEN,
    Member,
    Outcome,
    Pause,
    Rollout,
    RolloutState,
    home,
    in_order,
    is_in_flight,
    is_queued,
)
from muster_controller.core.rollout.words import at_time, devices
from muster_shared.ids import DeviceId
from muster_shared.messages import Step


class Why(Enum):
    """What a device waits for, in a word for programs."""

    OFFLINE = "offline"
    BEGINNING = "beginning"
    """The next look begins its wave."""
    WAVE = "wave"
    """A wave is under way that it is not in."""
    HELD_BACK = "held_back"
    SOAK = "soak"
    APPROVAL = "approval"
    PAUSED = "paused"
    UNDECIDED = "undecided"
    PACE = "pace"
    CONCURRENCY = "concurrency"
    DEFERRED = "deferred"
    RETRY = "retry"
    UNDER_WAY = "under_way"
    PINNED = "pinned"
    """An operator keeps it on what it runs."""
    QUARANTINED = "quarantined"
    CALLED_BACK = "called_back"
    AFTERWARDS = "afterwards"
    """The rollout has finished, and its release is what late devices get."""
    LEFT = "left"
    TAKEN_OVER = "taken_over"
    ENDED = "ended"
    DONE = "done"
    """It does not wait: it has come to its outcome."""


@dataclass(frozen=True)
class Presence:
    """What is known of a device beside the rollout."""

    online: bool
    seen_at: float | None = None
    """When it last spoke, Unix seconds."""
    held: "Held | None" = None
    """Why rollouts leave it alone."""


@dataclass(frozen=True)
class Held:
    """An operator holds it where it is."""

    is_quarantined: bool
    sentence: str
    """Who did it, and why."""


@dataclass(frozen=True)
class Explained:
    """Why one device is where it is. `until`: when that ends at the latest by itself, Unix seconds, where known."""

    device: DeviceId
    why: Why
    sentence: str
    until: float | None = None


def why(rollout: Rollout, member: Member, online: bool, now: float) -> str:
    """Return in a sentence why `member` waits, or what came of it. `now`: Unix seconds."""
    return explained(rollout, member, Presence(online), now).sentence


def who_waits(rollout: Rollout, fleet: Mapping[DeviceId, Presence], now: float) -> Iterator[Explained]:
    """Yield, in the rollout's order, every device that has no outcome yet and why, and those that are out of it.

    Args:
        fleet: What is known of devices; one that is missing is offline. It may be lazy.
    """
    places = {device: place for place, device in enumerate(rollout.queue, 1)}
    for member in in_order(rollout.members.values()):
        found = explained(rollout, member, fleet.get(member.device) or Presence(False), now, places)
        if found.why not in (Why.DONE, Why.ENDED):
            yield found


def explained(
    rollout: Rollout,
    member: Member,
    presence: Presence,
    now: float,
    places: Mapping[DeviceId, int] | None = None,
) -> Explained:
    """Return why `member` is where it is. `places`: of the queue, from 1, when they are at hand."""

    def told(kind: Why, sentence: str, until: float | None = None) -> Explained:
        return Explained(member.device, kind, sentence, until)

    if member.outcome is Outcome.LEFT:
        kind = Why.TAKEN_OVER if member.cause == TAKEN else Why.LEFT
        return told(kind, f"{'taken over' if kind is Why.TAKEN_OVER else 'left'}: {member.reason}")
    if is_called_back(rollout, member):
        release = home(rollout, member)
        assert release is not None
        sentence = f"called back to {release.version}; " + (
            "it has not said yet that it runs it" if presence.online else f"{_offline(presence, now)}, told when back"
        )
        return told(Why.CALLED_BACK, sentence)
    if member.is_taken:
        return told(Why.DONE, f"it {_did(member)}, and another rollout tells it what to run now")
    if member.outcome is Outcome.BAD and member.second is Outcome.PENDING and member.retry_at is None:
        return told(Why.RETRY, f"it failed ({member.reason}) and was told to try again by an operator's order")
    if member.outcome is not Outcome.PENDING:
        return told(Why.DONE, f"it {_did(member)}: {member.reason}" if member.reason else f"it {_did(member)}")
    if is_in_flight(member):
        return _under_way(rollout, member, presence, now)
    match rollout.state:
        case RolloutState.FINISHED if presence.held is not None:
            kind = Why.QUARANTINED if presence.held.is_quarantined else Why.PINNED
            return told(kind, f"{presence.held.sentence}; afterwards it gets {rollout.release.version}")
        case RolloutState.FINISHED if not presence.online:
            sentence = f"{_offline(presence, now)}, since before its wave; it gets {rollout.release.version} when back"
            return told(Why.OFFLINE, sentence)
        case RolloutState.FINISHED:
            return told(Why.AFTERWARDS, "the rollout has finished; it gets the release now, at the policy's pace")
        case RolloutState.ABORTED | RolloutState.ABORTING:
            return told(Why.ENDED, f"the rollout is {rollout.state.value}: it does not get the release")
        case RolloutState.PAUSED | RolloutState.RUNNING:
            pass
        case _:
            assert_never(rollout.state)
    if presence.held is not None:
        return told(Why.QUARANTINED if presence.held.is_quarantined else Why.PINNED, presence.held.sentence)
    if not presence.online and not rollout.at_once:
        sentence = f"{_offline(presence, now)}; no wave takes it before it is back, and then it gets the release later"
        return told(Why.OFFLINE, sentence)
    if rollout.state is RolloutState.PAUSED:
        kind = Why.UNDECIDED if rollout.pause is Pause.UNDECIDED else Why.PAUSED
        return told(kind, f"the rollout is paused: {rollout.reason}")
    if is_queued(member):
        return _queued(rollout, member, now, places)
    return _not_taken(rollout, member, now)


def _did(member: Member) -> str:
    return "did well" if member.outcome is Outcome.GOOD else f"failed ({member.cause or 'probation'})"


def _under_way(rollout: Rollout, member: Member, presence: Presence, now: float) -> Explained:
    """Told, and without an outcome."""
    if member.retry_at is not None:
        policy = rollout.policy
        sentence = (
            f"{member.reason}; attempt {member.attempt + 1} of {policy.retries + 1} {at_time(member.retry_at, now)}"
        )
        return Explained(member.device, Why.RETRY, sentence, member.retry_at)
    if member.deferred_until is not None:
        said = f" ({member.reason})" if member.reason else ""
        sentence = f"it defers{said} and looks again {at_time(member.deferred_until, now)}"
        return Explained(member.device, Why.DEFERRED, sentence, member.deferred_until)
    step = {None: "it has not answered", Step.SWITCHED: "it has switched and is measured"}.get(
        member.step, f"it said: {member.step.value.replace('_', ' ')}" if member.step is not None else ""
    )
    if not presence.online:
        step += f"; {_offline(presence, now)}"
    if rollout.at_once:
        return Explained(member.device, Why.UNDER_WAY, f"told {at_time(member.assigned_at or now, now)}; {step}")
    late = (
        "" if member.deadline_at is None else f"; silent after {at_time(member.deadline_at, now)}, it counts as failed"
    )
    return Explained(member.device, Why.UNDER_WAY, f"under way: {step}{late}", member.deadline_at)


def _queued(rollout: Rollout, member: Member, now: float, places: Mapping[DeviceId, int] | None) -> Explained:
    """A wave has taken it, and it was not told yet."""
    policy = rollout.policy
    place = (places or {device: place for place, device in enumerate(rollout.queue, 1)}).get(member.device, 1)
    queue = f"it is number {place} of {len(rollout.queue)} in the queue of wave {rollout.wave + 1}"
    limit = in_flight_max(policy, len(rollout.members))
    if limit is not None and rollout.in_flight >= limit:
        sentence = f"concurrency: {devices(rollout.in_flight)} are under way, as many as the policy allows; {queue}"
        return Explained(member.device, Why.CONCURRENCY, sentence)
    if policy.rate is None:
        return Explained(member.device, Why.PACE, queue)
    pace = room(
        policy,
        released=rollout.released,
        in_flight=rollout.in_flight,
        devices=len(rollout.members),
        credit=rollout.credit,
        since_s=now - rollout.paced_at,
    )
    rate = per_minute(policy.rate, rollout.released)
    until = now + (pace.again_s or 0.0) + (place - 1) * 60 / rate
    sentence = f"pace: {rate:.3g} devices a minute; {queue}, so its turn comes about {at_time(until, now)}"
    return Explained(member.device, Why.PACE, sentence, until)


def _not_taken(rollout: Rollout, member: Member, now: float) -> Explained:
    """Online, of a running rollout, and in no wave yet."""
    number = rollout.wave + 1
    control = rollout.controls.get((rollout.wave, member.device))
    if control is not None and control.outcome is Outcome.PENDING:
        sentence = f"held back beside {control.partner} until wave {number} is judged; it gets the release later"
        return Explained(member.device, Why.HELD_BACK, sentence, control.deadline_at)
    if rollout.wave >= 0 and rollout.wave_passed_at is None:
        left = rollout.open.get(rollout.wave, 0)
        sentence = f"its wave has not begun: in wave {number} {devices(left)} have no outcome yet"
        return Explained(member.device, Why.WAVE, sentence)
    if (soak := soak_ends(rollout, now)) is not None:
        sentence = f"soak: wave {number} passed, and the next begins {at_time(soak, now)}"
        return Explained(member.device, Why.SOAK, sentence, soak)
    missing = awaited(rollout)
    if missing is not None:
        return Explained(member.device, Why.APPROVAL, missing[1])
    return Explained(member.device, Why.BEGINNING, "the next wave is about to begin")


def _offline(presence: Presence, now: float) -> str:
    if not presence.seen_at:
        return "it is offline"
    return f"it is offline, last seen {at_time(presence.seen_at, now)}"
