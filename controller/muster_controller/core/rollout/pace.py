"""The pace: how many devices of a wave may be told now, by rate and by how many are under way.

The rate is exponential, as in AWS IoT Jobs; unlike there, late joiners count as any other. It is kept as a credit that
grows with time. Pure.
"""

from dataclasses import dataclass

from muster_controller.core.policy import Policy, in_flight_max, per_minute

ROUNDING = 1e-6  # Of a device: Unix seconds are exact to a quarter of a microsecond.
SHORTEST_S = 1e-3  # Nobody looks again sooner, so that time goes on between two looks.
BURST_S = 5.0  # Credit is saved up for so long: after a pause or an absence of the controller there is no flood.


@dataclass(frozen=True)
class Pace:
    """What may be done now. `room` and `by_rate` None: no limit."""

    room: int | None
    """How many devices may be told for the first time: by the rate, and by how many are under way."""
    by_rate: int | None
    """How many may be told at all, those that try again included: they are under way already."""
    credit: float
    again_s: float | None
    """In how many seconds the rate allows one more; None: it is not the rate that holds."""


def room(policy: Policy, *, released: int, in_flight: int, devices: int, credit: float, since_s: float) -> Pace:
    """Return how many devices may be told.

    Args:
        credit: What was left when the pace was last reckoned, `since_s` seconds ago.
        devices: Of the whole rollout, to which a share is applied.
    """
    limit = in_flight_max(policy, devices)
    free = None if limit is None else max(0, limit - in_flight)
    if policy.rate is None:
        return Pace(free, None, 0.0, None)
    rate = per_minute(policy.rate, released) / 60
    credit = min(credit + max(0.0, since_s) * rate, max(1.0, rate * BURST_S))
    allowed = int(credit + ROUNDING)
    return Pace(allowed if free is None else min(allowed, free), allowed, credit, again_s(policy, released, credit))


def again_s(policy: Policy, released: int, credit: float) -> float | None:
    """Return in how many seconds the rate allows one more, with `credit` left; None when it does now."""
    if policy.rate is None or credit + ROUNDING >= 1.0:
        return None
    return max(SHORTEST_S, (1.0 - credit) * 60 / per_minute(policy.rate, released))
