"""The outlook: what a rollout waits for, what happens next, and which orders it would obey. Pure; sentences for people.

Decides nothing: what it says follows from the same values by which `machine` and `orders` decide.
"""

from typing import assert_never

from muster_controller.core.rollout.approvals import AT_THE_END, awaited
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.recall import GIVE_UP_S, is_called
from muster_controller.core.rollout.state import (
    ENDED,
    Member,
    Outcome,
    Pause,
    Rollout,
    RolloutState,
    is_in_flight,
    waiting,
)
from muster_controller.core.rollout.words import at_time, devices


def outlook(rollout: Rollout, now: float) -> str:
    """Return what happens next, and what an operator could do about it."""
    name = f"wave {rollout.wave + 1}"
    match rollout.state:
        case RolloutState.FINISHED:
            left = len(waiting(rollout))
            late = f" {devices(left)} that were not there get it when they are back." if left else ""
            return f"It has finished.{late}"
        case RolloutState.ABORTED:
            return "It is over; a new rollout or `muster rollback` decides what runs next."
        case RolloutState.ABORTING:
            left = sum(is_called_back(rollout, member) for member in rollout.members.values())
            patience = (rollout.aborting_at or now) + GIVE_UP_S + rollout.policy.deadline_s
            return f"{devices(left)} called back are not back yet; it ends {at_time(patience, now)} at the latest."
        case RolloutState.PAUSED if rollout.pause is Pause.UNDECIDED:
            return "It rests until somebody decides: skip lets the wave pass all the same, abort ends the rollout."
        case RolloutState.PAUSED:
            return "It rests until it is resumed; devices under way go on, and the evidence can still abort it."
        case RolloutState.RUNNING:
            pass
        case _:
            assert_never(rollout.state)
    if rollout.at_once:
        return f"{devices(rollout.in_flight)} were told and have not said that they run {rollout.release.version}."
    if rollout.wave >= 0 and rollout.wave_passed_at is None:
        deadlines = [
            deadline
            for deadline in (
                *(each.deadline_at for each in rollout.members.values() if is_in_flight(each)),
                *(each.deadline_at for each in rollout.controls.values() if each.outcome is Outcome.PENDING),
            )
            if deadline is not None
        ]
        by = f", by {at_time(max(deadlines), now)} at the latest" if deadlines and not rollout.queue else ""
        queued = f"{devices(len(rollout.queue))} of it wait for their turn; " if rollout.queue else ""
        count = rollout.open.get(rollout.wave, 0)
        return f"{name.capitalize()} is under way: {queued}it is judged when {count:,} more outcomes are in{by}."
    if (soak := soak_ends(rollout, now)) is not None:
        return f"{name.capitalize()} passed; the next begins after its soak time, {at_time(soak, now)}."
    missing = gate(rollout)
    if missing is not None:
        return f"{missing[0].upper()}{missing[1:]}. `muster rollout approve {rollout.id}` opens the gate."
    if rollout.wave < 0:
        return "The first wave begins as soon as one of its devices is online."
    return "The next wave begins at the next look." if waiting(rollout) else "It finishes at the next look."


def gate(rollout: Rollout) -> str | None:
    """Return which approval the rollout waits for now, or will before its next wave; None: none."""
    if rollout.state in ENDED or rollout.state is RolloutState.ABORTING:
        return None
    is_finish = rollout.reason.startswith(AT_THE_END) or not waiting(rollout)
    found = awaited(rollout, is_finish=is_finish)
    return None if found is None else found[1]


def is_gate_reached(rollout: Rollout, now: float) -> bool:
    """Return whether nothing but an approval holds the next wave, or the end, now."""
    is_between = rollout.wave < 0 or (rollout.wave_passed_at is not None and soak_ends(rollout, now) is None)
    return rollout.state is RolloutState.RUNNING and is_between and gate(rollout) is not None


def orders(rollout: Rollout, now: float) -> tuple[Order, ...]:
    """Return the orders that the rollout would obey now, as `core.rollout.orders` has it."""
    match rollout.state:
        case RolloutState.RUNNING:
            found = [Order.PAUSE]
        case RolloutState.PAUSED:
            found = [] if rollout.pause is Pause.UNDECIDED else [Order.RESUME]
        case RolloutState.FINISHED:
            return (Order.ROLL_BACK,) if rollout.previous is not None else ()
        case RolloutState.ABORTING | RolloutState.ABORTED:
            return ()
        case _:
            assert_never(rollout.state)
    if any(each.treated for (wave, _), each in rollout.strata.items() if wave == rollout.wave):
        found.append(Order.SKIP)
    if any(_may_retry(each, now) for each in rollout.members.values()):
        found.append(Order.RETRY)
    if _may_extend(rollout):
        found.append(Order.EXTEND)
    if gate(rollout) is not None:
        found.append(Order.APPROVE)
    return (*found, Order.ABORT)


def _may_retry(member: Member, now: float) -> bool:
    if member.outcome is not Outcome.BAD or not member.is_touched or member.is_taken:
        return False
    return member.second is not Outcome.PENDING or now >= (member.deadline_at or 0.0)


def _may_extend(rollout: Rollout) -> bool:
    if any(control.outcome is Outcome.PENDING and control.deadline_at for control in rollout.controls.values()):
        return True
    flying = (member for member in rollout.members.values() if is_in_flight(member))
    return any(member.deadline_at is not None and member.retry_at is None for member in flying)


def soak_ends(rollout: Rollout, now: float) -> float | None:
    if rollout.wave_passed_at is None or rollout.confirmed_wave >= rollout.wave:
        return None
    ends_at = rollout.wave_passed_at + rollout.policy.soak_s
    return ends_at if now < ends_at else None


def is_called_back(rollout: Rollout, member: Member) -> bool:
    """Return whether an abort told it to go back, and it has not said that it did."""
    if rollout.state not in (RolloutState.ABORTING, RolloutState.ABORTED) or rollout.aborting_at is None:
        return False
    is_frozen = rollout.policy.on_abort == "freeze" and rollout.state is RolloutState.ABORTED
    return not is_frozen and not member.returned and is_called(rollout, member)
