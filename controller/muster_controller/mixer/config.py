"""How a mixer is to be: checked once, when it starts, and never weaker than what is published about privacy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from muster_controller.mixer.accounting import budget_nano, release_nano
from muster_controller.mixer.errors import MixerConfigInvalid
from muster_shared.ids import FleetId
from muster_shared.metrics import COHORTS, DELTA, K_MIN, RHO_DAY

CLOCK_SPEED_MAX: Final = 600.0  # As the agents'.
RHO_DAY_MIN: Final = 1e-6


@dataclass(frozen=True)
class MixerConfig:
    """One mixer.

    Attributes:
        cohorts: which it sums, ascending; each belongs to one mixer of the fleet.
        rho_day: what it may spend of a device and day.
        delta: for which eps is told; it changes no noise.
        k_min: windows without which a cell is not published.
        clock_speed: seconds of measured time in a second; a lab's, whose devices have the same. So the next.
        clock_since: Unix seconds from which on it passes so fast (`metrics.metrics_time`).
        settle_s: so long after a connect, and after the last window that came late, the broker has told all it kept.
    """

    mixer: str
    fleet: FleetId
    cohorts: tuple[int, ...] = tuple(range(COHORTS))
    rho_day: float = RHO_DAY
    delta: float = DELTA
    k_min: int = K_MIN
    clock_speed: float = 1.0
    clock_since: float = 0.0
    settle_s: float = 30.0

    @property
    def release(self) -> int:
        """What publishing one period costs, in 10^-9 of rho."""
        return release_nano(self.rho_day)

    @property
    def budget(self) -> int:
        """What a day may cost, in 10^-9 of rho."""
        return budget_nano(self.rho_day)


def check(config: MixerConfig) -> MixerConfig:
    """Return `config`. Raises MixerConfigInvalid."""
    if not RHO_DAY_MIN <= config.rho_day <= RHO_DAY:
        raise MixerConfigInvalid(
            f"a budget of rho {config.rho_day:g} a day; it may be lowered below the published {RHO_DAY:g} "
            f"(to {RHO_DAY_MIN:g} at most), never raised"
        )
    if config.k_min < K_MIN:
        raise MixerConfigInvalid(f"cells of {config.k_min} devices; {K_MIN} is promised, so raise it or leave it")
    if not 0.0 < config.delta <= 1e-3:
        raise MixerConfigInvalid(
            f"a delta of {config.delta:g}; it lies above 0 and is 0.001 at most, such as {DELTA:g}"
        )
    if not 0.0 < config.clock_speed <= CLOCK_SPEED_MAX:
        raise MixerConfigInvalid(f"a clock {config.clock_speed:g} times as fast; a lab's may be {CLOCK_SPEED_MAX:g}")
    if config.clock_speed != 1.0 and not config.clock_since > 0.0:
        raise MixerConfigInvalid("a lab's clock needs `--clock-since`: the same Unix seconds for mixer and devices")
    if not config.cohorts or set(config.cohorts) - set(range(COHORTS)):
        raise MixerConfigInvalid(f"cohorts are 0 to {COHORTS - 1}, and a mixer has one at least")
    return config


def parse_cohorts(text: str) -> tuple[int, ...]:
    """Return the cohorts in text such as `0-7`, `3` or `0-3,8`, ascending. Raises MixerConfigInvalid."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        found |= _span(first, last if dash else first, text)
    return tuple(sorted(found))


def _span(first: str, last: str, text: str) -> set[int]:
    numbers: Sequence[str] = (first.strip(), last.strip())
    if all(one.isascii() and one.isdigit() and len(one) < 4 for one in numbers):
        begin, end = map(int, numbers)
        if begin <= end < COHORTS:
            return set(range(begin, end + 1))
    raise MixerConfigInvalid(f"cohorts {text[:40]!r}; write 0-{COHORTS - 1}, or a part of that such as 0-3,8")
