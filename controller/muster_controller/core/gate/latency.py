"""Latency: a bet that devices have become slower than those held back (F3). Of counts in bins; measures nothing.

Each treated device i has D_i in [-0.25, 0.25], its log slowdown against its own controls, of mean <= log(1 + tolerated)
when nothing is worse. A bettor who stakes the share lambda has `prod_i (1 + lambda (D_i - log(1 + tolerated)))`; the
evidence is the weighted mean of twelve bettors, from timid to bold. Waudby-Smith and Ramdas, arXiv 2010.09686.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import log1p
from operator import mul

from muster_controller.core.gate.mixtures import mixture, shares
from muster_controller.core.gate.strata import LATENCY_CLIP, LATENCY_STEP, Stratum

BETTORS = 12
_TIMID, _BOLD = 0.05, 0.98  # Shares of the stake that could ruin the bettor at once; the bold one keeps 2 %.
_STAKES = tuple(_TIMID * (_BOLD / _TIMID) ** (k / (BETTORS - 1)) for k in range(BETTORS))
_LAST = round(LATENCY_CLIP / LATENCY_STEP)
_WEIGHTS = shares([stake**2 for stake in _STAKES])  # Ten controls make D so quiet that the bold are mostly right.


def against_slowdown(strata: Sequence[Stratum], tolerated: float = 0.05) -> float:
    """Return F3 on all matched pairs of `strata`.

    Args:
        tolerated: Relative slowdown of the p95 that is accepted, >= 0; from 0.28 on nothing can exceed it.
    """
    devices = [0] * (2 * _LAST + 1)
    for place, count in merged_bins(strata).items():
        devices[max(-_LAST, min(_LAST, place)) + _LAST] += count
    return mixture([sum(map(mul, devices, gains)) for gains in _gains(tolerated)], _WEIGHTS)


def merged_bins(strata: Sequence[Stratum]) -> dict[int, int]:
    """Return how many devices of all strata are in each bin."""
    devices: dict[int, int] = {}
    for stratum in strata:
        for place, count in stratum.latency:
            devices[place] = devices.get(place, 0) + count
    return devices


@lru_cache(maxsize=64)
def _gains(tolerated: float) -> tuple[tuple[float, ...], ...]:
    """Return what one device in each bin, from the fastest to the slowest, adds to the exponent of each bettor."""
    mean = log1p(tolerated)
    slower = [place * LATENCY_STEP - mean for place in range(-_LAST, _LAST + 1)]
    return tuple(tuple(log1p(stake / (LATENCY_CLIP + mean) * each) for each in slower) for stake in _STAKES)
