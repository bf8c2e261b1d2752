"""The buttons of a rollout: which orders it would obey, and what each would do to how many devices. Pure."""

from dataclasses import dataclass
from typing import assert_never

from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.outlook import is_extendable, is_watched, orders
from muster_controller.core.rollout.roll import Roll, roll_of
from muster_controller.core.rollout.state import Outcome, Rollout, home, is_in_flight
from muster_controller.core.rollout.words import at_time, devices


@dataclass(frozen=True)
class ActionPanel:
    """A button and what it will do to how many devices."""

    order: Order
    title: str
    consequence: str
    is_dangerous: bool
    minutes: int | None = None
    """How many it proposes, of an order that wants to know how much longer."""


def actions(rollout: Rollout, now: float, roll: Roll | None = None) -> tuple[ActionPanel, ...]:
    """Return a button for each order that the rollout would obey. `roll`: its own, where it is at hand."""
    roll = roll_of(rollout) if roll is None else roll
    return tuple(_action(rollout, roll, order, now) for order in orders(rollout, now, roll))


def _action(rollout: Rollout, roll: Roll, order: Order, now: float) -> ActionPanel:
    wave = f"wave {rollout.wave + 1}"
    told = rollout.released
    failed = roll.count(lambda member: member.is_touched and member.outcome is Outcome.BAD)
    left = len(rollout.members) - told
    match order:
        case Order.PAUSE:
            words = (
                f"No further device is told: {devices(left)} stay as they are."
                f" {devices(rollout.in_flight).capitalize()} under way go on, and the evidence can still abort it."
            )
        case Order.RESUME:
            words = f"It goes on where it was; {devices(left)} are still to come."
        case Order.SKIP:
            words = f"You let {wave} pass whatever the gate says of it, and {devices(left)} that wait are next."
        case Order.RETRY:
            words = f"{devices(failed).capitalize()} that failed are told once more. What was counted stays counted."
        case Order.EXTEND:
            words = _longer(roll, now)
        case Order.APPROVE:
            words = "You agree with what comes next, in your name."
        case Order.ABORT:
            words = f"{_back(rollout, roll)} {devices(left).capitalize()} get nothing."
        case Order.ROLL_BACK:
            before = rollout.previous.version if rollout.previous is not None else "nothing"
            words = f"{devices(told).capitalize()} go back to what they ran, and {before} is what the fleet runs again."
        case _:
            assert_never(order)
    title = "Roll back" if order is Order.ROLL_BACK else order.value.capitalize()
    minutes = max(1, round(rollout.policy.deadline_s / 60)) if order is Order.EXTEND else None
    return ActionPanel(order, title, words, order in (Order.ABORT, Order.ROLL_BACK, Order.SKIP), minutes)


def _longer(roll: Roll, now: float) -> str:
    """Return whose deadlines an extension moves, and when these are now: those that `core.rollout.orders` moves."""
    told, held = roll.count(is_extendable), roll.count_controls(is_watched)
    if not told and not held:
        return "No device is under way: there is no deadline to move."
    whose = [f"{devices(told)} under way"] if told else []
    whose += [f"{devices(held)} held back"] if held else []
    due = [*roll.due(is_extendable), *roll.due_controls(is_watched)]
    first, last = (at_time(at, now) for at in (min(due), max(due)))
    when = first if first == last else f"between {first} and {last}"
    return (
        f"The deadline of {' and '.join(whose)} is {when} now, and moves by as much as you say."
        " Whoever is silent until then counts as failed."
    )


def _back(rollout: Rollout, roll: Roll) -> str:
    """Return what an abort does to the devices that were told."""
    version = rollout.release.version
    told = chosen = rollout.released
    back = roll.count(lambda member: member.is_touched and home(rollout, member) is not None)
    match rollout.policy.on_abort:
        case "freeze":
            return f"{devices(chosen).capitalize()} keep what they have now, because the policy says freeze."
        case "stop":
            chosen = rollout.in_flight
            back = roll.count(lambda member: is_in_flight(member) and home(rollout, member) is not None)
            rest = told - chosen
            kept = f" and {devices(rest)} keep {version}, because the policy says stop" if rest else ""
        case _:
            kept = ""
    stuck = chosen - back
    kept += f"; {devices(stuck)} keep {version}, because there is no release before it" if stuck else ""
    return f"{devices(back).capitalize()} go back to what they ran before{kept}."
