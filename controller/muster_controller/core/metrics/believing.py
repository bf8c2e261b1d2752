"""What a controller believes of a mixer: sums that have a place, and noise that is at least what the contract says."""

import math
from collections.abc import Iterator
from typing import Final

from muster_shared import ids
from muster_shared.errors import WireError
from muster_shared.metrics import COHORTS, DAY_S, HOUR_S, K_MIN, UNITS, Mixed, MixerState, check_cell, sigma

DEVICES_MAX: Final = 100_000_000
SIGMA_MAX: Final = 1e9
CLOCKS_S: Final = 3600.0
"""That a mixer's clock may be ahead."""
_ROUNDING: Final = 1e-9
_TAIL: Final = 40.0
"""Standard deviations that no honest noise reaches: a chance of 1e-350."""


def problems(mixed: Mixed, mixer: str, now: float) -> Iterator[str]:
    """Say why noised sums are not taken; nothing: they are.

    Args:
        mixer: whose topic they came on.
    """
    if mixed.mixer != mixer:
        yield f"sums of mixer {mixed.mixer[:64]!r} on the topic of {mixer}"
    try:
        ids.name(mixed.batch, "batch")
        check_cell(mixed.cell)
    except WireError as error:
        yield str(error)
        return
    if mixed.period_s not in (HOUR_S, DAY_S) or mixed.period_start < 0 or mixed.period_start % mixed.period_s:
        yield "sums of no hour and no day"
    elif mixed.period_start + mixed.period_s > now + CLOCKS_S:
        yield "sums of a period that has not ended; set the clocks of mixer and controller"
    if not K_MIN <= mixed.devices <= DEVICES_MAX:
        yield f"sums over {mixed.devices} devices; at least {K_MIN} are published together"
    if not math.isfinite(mixed.mixed_at):
        yield "sums that were made at no time"
    if not mixed.sums or mixed.sums.keys() != mixed.sigma.keys():
        yield "sums without noise, or noise without sums"
        return
    for kind, numbers in mixed.sums.items():
        noise = mixed.sigma[kind]
        if len(numbers) != mixed.cell.dim(kind) or not numbers:
            yield f"{len(numbers)} sums of {kind.value}; the cell has {mixed.cell.dim(kind)}"
        if not sigma(kind) * (1 - _ROUNDING) <= noise <= SIGMA_MAX:  # Not a number is refused by this too.
            yield (
                f"noise of {noise:g} on {kind.value}; {sigma(kind):g} at least is what was promised to devices:"
                " bring the mixer to the release of this controller, or take its certificate away"
            )
        elif numbers and max(map(abs, numbers)) > UNITS * mixed.devices + _TAIL * noise:
            yield f"sums of {kind.value} that so many devices cannot have given"


def state_problems(state: MixerState, mixer: str) -> Iterator[str]:
    """Say why what a mixer says of itself is not taken."""
    if state.mixer != mixer:
        yield f"the state of mixer {state.mixer[:64]!r} on the topic of {mixer}"
    if len(state.key) > 64 or len(state.cohorts) > COHORTS or len(state.budgets) > 40:
        yield "a state that is longer than any is"
    numbers = [state.sent_at, state.delta, state.eps_day, state.eps_30_days]
    numbers += [number for budget in state.budgets for number in (budget.rho_spent, budget.rho_budget)]
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        yield "a state with a number that is none"
