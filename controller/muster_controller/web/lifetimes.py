"""How long something still holds, ready to be shown: a state, a share for a meter, and words. Pure.

When it is late is decided where alerts are (`core.alerts.expiring`), so that page and alerts say the same.
"""

from dataclasses import dataclass

from muster_controller.core.alerts.expiring import Expiring, expiring
from muster_controller.core.alerts.finding import Severity
from muster_controller.web.present import span

DAY_S = 86_400.0
LIFETIMES = {"snapshot": 30 * DAY_S, "timestamp": DAY_S}
"""Of metadata that the controller signs; the offline roles': a year."""
OFFLINE_S = 365 * DAY_S


@dataclass(frozen=True)
class Lifetime:
    """`state`: good, soon or over, as the badge is called. `share`: of the lifetime that is left, 0..1."""

    expires_at: float
    state: str
    share: float
    words: str


def lifetime(role: str, name: str, expires_at: float, lifetime_s: float, now: float) -> Lifetime:
    """Return how `name` stands.

    Args:
        role: as `core.alerts.expiring` knows it: `root`, `snapshot`, `ca-root`, `mixer`…
        lifetime_s: from when it began to hold; 0: not known.
    """
    left = expires_at - now
    found = next(expiring("", [Expiring(role, name, expires_at, lifetime_s)], now), None)
    if left <= 0:
        state, words = "over", f"ran out {span(-left)} ago"
    elif found is not None:
        state, words = "soon" if found.severity is Severity.TICKET else "late", f"{span(left)} left"
    else:
        state, words = "good", f"{span(left)} left"
    share = min(1.0, max(0.0, left / lifetime_s)) if lifetime_s > 0 else float(left > 0)
    return Lifetime(expires_at, state, share, words)


def of_metadata(role: str, expires_at: float, now: float) -> Lifetime:
    """Return how long the metadata of a role holds."""
    known = LIFETIMES.get(role)
    # An offline role's limits are those of what people renew once a year, whatever is left of this one.
    found = lifetime(role, f"{role} metadata", expires_at, 0.0, now)
    whole = known or OFFLINE_S
    return Lifetime(expires_at, found.state, min(1.0, max(0.0, (expires_at - now) / whole)), found.words)
