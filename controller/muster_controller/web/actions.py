"""The buttons of a rollout: which orders it would obey, and what each would do to how many devices. Pure."""

from dataclasses import dataclass
from typing import assert_never

from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.outlook import orders
from muster_controller.core.rollout.state import Outcome, Rollout, home, is_in_flight, touched
from muster_controller.core.rollout.words import devices


@dataclass(frozen=True)
class ActionPanel:
    """A button and what it will do to how many devices."""

    order: Order
    title: str
    consequence: str
    is_dangerous: bool


def actions(rollout: Rollout, now: float) -> tuple[ActionPanel, ...]:
    """Return a button for each order that the rollout would obey, but extensions, which want a number."""
    found = (_action(rollout, order) for order in orders(rollout, now) if order is not Order.EXTEND)
    return tuple(found)


def _action(rollout: Rollout, order: Order) -> ActionPanel:
    wave = f"wave {rollout.wave + 1}"
    told = len(touched(rollout))
    failed = sum(member.outcome is Outcome.BAD for member in touched(rollout))
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
            words = f"{devices(rollout.in_flight).capitalize()} under way get more time."
        case Order.APPROVE:
            words = "You agree with what comes next, in your name."
        case Order.ABORT:
            words = f"{_back(rollout)} {devices(left).capitalize()} get nothing."
        case Order.ROLL_BACK:
            before = rollout.previous.version if rollout.previous is not None else "nothing"
            words = f"{devices(told).capitalize()} go back to what they ran, and {before} is what the fleet runs again."
        case _:
            assert_never(order)
    title = "Roll back" if order is Order.ROLL_BACK else order.value.capitalize()
    return ActionPanel(order, title, words, order in (Order.ABORT, Order.ROLL_BACK, Order.SKIP))


def _back(rollout: Rollout) -> str:
    """Return what an abort does to the devices that were told."""
    version = rollout.release.version
    chosen = touched(rollout)
    match rollout.policy.on_abort:
        case "freeze":
            return f"{devices(len(chosen)).capitalize()} keep what they have now, because the policy says freeze."
        case "stop":
            chosen = tuple(member for member in chosen if is_in_flight(member))
            rest = len(touched(rollout)) - len(chosen)
            kept = f" and {devices(rest)} keep {version}, because the policy says stop" if rest else ""
        case _:
            kept = ""
    back = sum(home(rollout, member) is not None for member in chosen)
    stuck = len(chosen) - back
    kept += f"; {devices(stuck)} keep {version}, because there is no release before it" if stuck else ""
    return f"{devices(back).capitalize()} go back to what they ran before{kept}."
