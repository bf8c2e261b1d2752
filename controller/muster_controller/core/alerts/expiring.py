"""Rules about what runs out: certificates, and the metadata that the TUF keys signed. Pure.

What the controller renews by itself is noticed late on purpose: only when it was not renewed although it was time.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from muster_controller.core.alerts.finding import Finding, Severity

DAY_S: Final = 86_400.0
HELD: Final = 0.25
"""Of a lifetime: what renews itself does so at half of it, so at a quarter something is wrong; ..."""
LAST: Final = 0.1
"""... and at a tenth it is urgent."""
YEARLY: Final = (30 * DAY_S, 7 * DAY_S)
"""Tickets and pages from so long before the end of what people renew, who need a ceremony or a visit for it."""
ROLES: Final[Mapping[str, tuple[float, float]]] = {
    "ca-root": (365 * DAY_S, 30 * DAY_S),  # Devices have to learn of its successor first.
    "ca-intermediate": (60 * DAY_S, 14 * DAY_S),  # Renewed at 120 days, where the root's key is at hand.
    "ca-announced": (0.0, 0.0),  # Nothing rests on them.
    "ca-retired": (0.0, 0.0),
    "snapshot": (10 * DAY_S, 3 * DAY_S),  # Of 30 days, signed anew at 15.
    "timestamp": (8 * 3600.0, 3 * 3600.0),  # Of a day, signed anew every half.
}


@dataclass(frozen=True)
class Expiring:
    """Something that runs out.

    Attributes:
        role: What it is: a key of ROLES, or anything else.
        name: What people call it.
        lifetime_s: From when it began to hold; 0: not known.
    """

    role: str
    name: str
    expires_at: float
    lifetime_s: float = 0.0


def expiring(rule: str, things: Iterable[Expiring], now: float) -> Iterator[Finding]:
    """Yield what runs out soon, or has."""
    for each in things:
        ticket_s, page_s = ROLES.get(each.role) or _limits(each.lifetime_s)
        left_s = each.expires_at - now
        if not ticket_s or left_s > ticket_s:
            continue
        when = datetime.fromtimestamp(each.expires_at, UTC).strftime("%Y-%m-%d %H:%M")
        yield Finding(
            rule,
            each.name,
            Severity.PAGE if left_s <= page_s else Severity.TICKET,
            f"{each.name} {'ran' if left_s <= 0 else 'runs'} out on {when} UTC ({_left(left_s)}).",
            {"role": each.role, "expires_at": each.expires_at, "left_s": round(left_s)},
        )


def _limits(lifetime_s: float) -> tuple[float, float]:
    if not lifetime_s:
        return YEARLY
    return min(YEARLY[0], HELD * lifetime_s), min(YEARLY[1], LAST * lifetime_s)


def _left(seconds: float) -> str:
    size, word = (DAY_S, "d") if abs(seconds) >= 2 * DAY_S else (3600.0, "h")
    return f"{abs(seconds) / size:.0f} {word} {'left' if seconds > 0 else 'ago'}"
