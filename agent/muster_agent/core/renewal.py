"""When a device asks for its next certificate, and when it comes to the broker anew with it.

    granted ── half of its life, spread ──▶ ask ──▶ granted          the link comes again before the old one is over
                                             │
                                             ├─▶ unreachable, busy ──▶ back-off with full jitter, for ever
                                             ├─▶ refused, waiting ───▶ asked again slowly: people have to act
                                             └─▶ revoked ────────────▶ never again until somebody acts here

A certificate that is over changes nothing here: the request is signed by the identity key. Whatever happens, models go
on serving. Pure: times are Unix seconds by the controller's clock, as far as the device knows it; `draw` is from 0 to
1, and is where the fleet's spread comes from.
"""

from dataclasses import dataclass, replace

SPREAD = 0.2
"""Share of the time from `renew_at` to the expiry over which a fleet that enrolled at once spreads its renewals."""
START_SPREAD_S = 10.0
"""Devices that come back from a power cut together, all of them overdue, ask within this time."""
RETRY_MIN_S, RETRY_MAX_S = 30.0, 3600.0
SLOW_S = 6 * 3600.0
"""After a refusal that somebody has to mend."""
AWAY_S = 900.0
"""Without the broker for so long, a certificate that this clock takes for valid may be over: clocks can be wrong."""
AWAY_GAP_S = 3600.0


@dataclass(frozen=True)
class Lease:
    """A certificate, as far as time goes."""

    fingerprint: str
    granted_at: float
    renew_at: float
    expires_at: float


@dataclass(frozen=True)
class Declined:
    """The controller answered, and did not grant."""

    code: str
    """Of `muster_shared.enrolment.Refused`, or `waiting`."""
    reason: str
    retry_s: float | None = None


@dataclass(frozen=True)
class Failed:
    """There was no answer, or nothing could be done with it."""

    reason: str


@dataclass(frozen=True)
class Renewal:
    """Where a device is with its certificates."""

    lease: Lease
    ask_at: float | None
    """None: it asks no more."""
    asked_at: float | None = None
    """When it asked in vain for the last time."""
    vain: int = 0
    """How often, since the last grant."""
    problem: str = ""
    """For people; empty: none."""
    reconnect_at: float | None = None
    """When the link is to come again with the new certificate; None: it has it."""


def begin(lease: Lease, now: float, draw: float) -> Renewal:
    """Return where a device is that starts with `lease`."""
    return Renewal(lease=lease, ask_at=_first(lease, now, draw))


def granted(before: Renewal, lease: Lease, now: float, draw: float) -> Renewal:
    """Return what follows once another certificate is there, whoever asked for it.

    The link comes again within the first half of what the old one has left: brokers end connections whose certificate
    is over, or should. Nothing is lost by it, and a fleet does not do it at once.
    """
    left_s = max(0.0, before.lease.expires_at - now)
    # A controller whose certificates are over when they are granted is not to be asked in a loop.
    ask_at = max(_first(lease, now, draw), now + RETRY_MIN_S)
    return Renewal(lease=lease, ask_at=ask_at, reconnect_at=now + draw * left_s / 2)


def not_granted(before: Renewal, answer: Declined | Failed, now: float, draw: float) -> Renewal:
    """Return what follows when there was no certificate."""
    after = replace(before, asked_at=now, vain=before.vain + 1, problem=answer.reason)
    if isinstance(answer, Failed) or answer.code == "busy":
        return replace(after, ask_at=now + _backoff_s(before.vain, draw))
    if answer.code == "revoked":
        return replace(after, ask_at=None)
    if answer.retry_s is None:
        return replace(after, ask_at=now + SLOW_S * (0.5 + draw))
    return replace(after, ask_at=now + min(max(answer.retry_s, RETRY_MIN_S), SLOW_S) * (1.0 + draw * SPREAD))


def away(at: Renewal, away_s: float, now: float) -> Renewal:
    """Return `at`, asking earlier if the broker has not let the device in for `away_s`."""
    if at.ask_at is None or away_s < AWAY_S:
        return at
    last = at.lease.granted_at if at.asked_at is None else at.asked_at
    return replace(at, ask_at=min(at.ask_at, max(now, last + AWAY_GAP_S)))


def connected(at: Renewal) -> Renewal:
    """Return `at` after the link came (again): it has the newest certificate."""
    return replace(at, reconnect_at=None)


def due(at: Renewal, now: float) -> bool:
    """Return whether to ask now."""
    return at.ask_at is not None and now >= at.ask_at


def next_at(at: Renewal) -> float | None:
    """Return when something is to be done; None: nothing is."""
    times = [time for time in (at.ask_at, at.reconnect_at) if time is not None]
    return min(times, default=None)


def _first(lease: Lease, now: float, draw: float) -> float:
    renew_at = lease.renew_at
    if not lease.granted_at < renew_at < lease.expires_at:
        renew_at = (lease.granted_at + lease.expires_at) / 2
    planned = renew_at + draw * SPREAD * (lease.expires_at - renew_at)
    return planned if planned > now else now + draw * START_SPREAD_S


def _backoff_s(vain: int, draw: float) -> float:
    """Full jitter over a doubling cap ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015), at least a
    little: a refused connection costs nothing, a token's signature does."""
    return RETRY_MIN_S / 2 + draw * min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(vain, 16))
