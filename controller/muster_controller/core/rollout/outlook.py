"""The outlook: what a rollout waits for, what happens next, and which orders it would obey. Pure; sentences for people.

Decides nothing: what it says follows from the same values by which `machine` and `orders` decide. Wherever a `roll` may
be given it is that of the rollout, and saves the walk over its devices.
"""

from typing import assert_never

from muster_controller.core.rollout.approvals import AT_THE_END, awaited
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.recall import GIVE_UP_S, is_called
from muster_controller.core.rollout.roll import Roll, roll_of
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
from muster_controller.core.rollout.words import at_time, devices


def outlook(rollout: Rollout, now: float, roll: Roll | None = None) -> str:
    """Return what happens next, and what an operator could do about it."""
    roll = roll_of(rollout) if roll is None else roll
    name = f"wave {rollout.wave + 1}"
    match rollout.state:
        case RolloutState.FINISHED:
            left = roll.count(is_waiting)
            late = f" {devices(left)} that were not there get it when they are back." if left else ""
            return f"It has finished.{late}"
        case RolloutState.ABORTED:
            return "It is over; a new rollout or `muster rollback` decides what runs next."
        case RolloutState.ABORTING:
            left = roll.count(lambda member: is_called_back(rollout, member))
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
        deadlines = [*roll.due(is_in_flight), *roll.due_controls(lambda each: each.outcome is Outcome.PENDING)]
        by = f", by {at_time(max(deadlines), now)} at the latest" if deadlines and not rollout.queue else ""
        queued = f"{devices(len(rollout.queue))} of it wait for their turn; " if rollout.queue else ""
        count = rollout.open.get(rollout.wave, 0)
        return f"{name.capitalize()} is under way: {queued}it is judged when {count:,} more outcomes are in{by}."
    if (soak := soak_ends(rollout, now)) is not None:
        return f"{name.capitalize()} passed; the next begins after its soak time, {at_time(soak, now)}."
    missing = gate(rollout, roll)
    if missing is not None:
        return f"{missing[0].upper()}{missing[1:]}. `muster rollout approve {rollout.id}` opens the gate."
    if rollout.wave < 0:
        return "The first wave begins as soon as one of its devices is online."
    return "The next wave begins at the next look." if roll.count(is_waiting) else "It finishes at the next look."


def gate(rollout: Rollout, roll: Roll | None = None) -> str | None:
    """Return which approval the rollout waits for now, or will before its next wave; None: none."""
    if rollout.state in ENDED or rollout.state is RolloutState.ABORTING:
        return None
    if not rollout.policy.approvals:
        return None
    is_left = any(map(is_waiting, rollout.members.values())) if roll is None else bool(roll.count(is_waiting))
    is_finish = rollout.reason.startswith(AT_THE_END) or not is_left
    found = awaited(rollout, is_finish=is_finish)
    return None if found is None else found[1]


def is_gate_reached(rollout: Rollout, now: float, roll: Roll | None = None) -> bool:
    """Return whether nothing but an approval holds the next wave, or the end, now."""
    is_between = rollout.wave < 0 or (rollout.wave_passed_at is not None and soak_ends(rollout, now) is None)
    return rollout.state is RolloutState.RUNNING and is_between and gate(rollout, roll) is not None


def orders(rollout: Rollout, now: float, roll: Roll | None = None) -> tuple[Order, ...]:
    """Return the orders that the rollout would obey now, as `core.rollout.orders` has it."""
    roll = roll_of(rollout) if roll is None else roll
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
    if _may_retry(roll, now):
        found.append(Order.RETRY)
    if roll.count(is_extendable) or roll.count_controls(is_watched):
        found.append(Order.EXTEND)
    # With the next wave approved already, the end may be approved ahead.
    if gate(rollout, roll) is not None or awaited(rollout, is_finish=awaited(rollout) is None) is not None:
        found.append(Order.APPROVE)
    return (*found, Order.ABORT)


def _may_retry(roll: Roll, now: float) -> bool:
    """Return whether somebody failed who is not trying again, or was silent this time, too."""

    def failed(member: Member) -> bool:
        return member.outcome is Outcome.BAD and member.is_touched and not member.is_taken

    if roll.count(lambda member: failed(member) and member.second is not Outcome.PENDING):
        return True
    return any(at <= now for at in roll.due(failed))


def is_waiting(member: Member) -> bool:
    """Return whether no wave has taken it yet."""
    return member.wave is None and member.outcome is Outcome.PENDING


def is_extendable(member: Member) -> bool:
    """Return whether an extension moves its deadline."""
    return is_in_flight(member) and member.deadline_at is not None and member.retry_at is None


def is_watched(control: Control) -> bool:
    """Return whether it is held back and told, and has not reported: an extension moves its deadline, too."""
    return due_at(control) is not None


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
