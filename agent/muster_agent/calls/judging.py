"""Which calls are obeyed: those for this device, in time, not asked before. Pure.

Whoever is refused here hears nothing: an answer would tell a stranger that the device listens. What a call for this
device asks in vain for, because its owner does not allow that, is answered, with a word.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from muster_shared.call import LIFETIME_S, Call
from muster_shared.ids import DeviceId, FleetId

SKEW_S = 60.0  # How far a device's clock may be behind the controller's.


@dataclass(frozen=True)
class Answered:
    """Calls that were taken, by id, with when they expire: until then they may be played again."""

    until: dict[str, float] = field(default_factory=dict)


def refusal(call: Call, fleet: FleetId, device: DeviceId, taken: Answered, now: float) -> str | None:
    """Return why `call` is not obeyed, in words for the device's log; None: it is. `now`: Unix seconds."""
    if (call.fleet, call.device) != (fleet, device):
        return "it is for another device"
    if call.id in taken.until:
        return "it was asked before"
    if call.expires_at <= now or call.expires_at - call.issued_at > LIFETIME_S:
        return "it has expired, or this device's clock is ahead"
    if call.issued_at > now + SKEW_S:
        return "it was issued later than now: this device's clock is behind"
    return None


def take(taken: Answered, call: Call, now: float) -> Answered:
    """Return what is remembered when `call` is taken; expired ones are forgotten, since they are refused for that."""
    kept = {name: until for name, until in taken.until.items() if until > now}
    return replace(taken, until={**kept, call.id: call.expires_at})


def forbidden(call: Call, allow: Collection[str]) -> str | None:
    """Return what is answered where the device's owner does not allow it."""
    if call.what.value in allow:
        return None
    return f"this device does not allow {call.what.value}; its owner may, in [calls] of agent.toml"
