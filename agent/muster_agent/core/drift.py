"""Drift: whether a release is as sure of its answers as it was when it was made, told window by window.

    mean confidence of a window ── rank among the reference's windows ── p of a fall, p of a rise
        ── for each kappa: M <- (M + 1) kappa p^(kappa - 1) ── weighted mean >= ALARM ──▶ DRIFTING
        ── RETURN_WINDOWS that rank like any others ──▶ as before

Shiryaev-Roberts e-detectors on conformal p-values (Shin, Ramdas, Rinaldo, arXiv 2203.03532; Vovk et al., arXiv
2102.10439): while windows are exchangeable with the reference's, the mean run up to a false alarm is ALARM windows or
more, whatever the distribution. That is so on average over references; on one fixed reference the ranks are a little
off for ever, and a detector that looks long enough finds that. So p is the upper end of an interval for what the rank
estimates, what the reference itself does not know (`Ranks.error`) is given to the window, and no kappa is near 1,
which would look for falls as small as the reference's own error. With kappas up to 0.9 and the plain rank among 500 it
was 2.2 false alarms in 10,000 windows; so it is 0.03.

Pure: the chance that breaks ties is an argument. A detector sees what changes confidence and nothing else: a model that
is wrong with full confidence, or a device that always saw another scene than the reference did, is told apart by none.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from operator import mul
from typing import Final

KAPPAS: Final = (0.1, 0.2, 0.35, 0.5)
"""Small ones are quick to see a window below the whole reference, larger ones see many that are a little low."""
FALL_WEIGHT: Final = 0.8
"""The rest is for a rise: calibration can break that way too, but it is not what a worse model mostly does."""
ALARM: Final = 1e4
"""Windows: the average run length."""
RANK_Z: Final = 1.0
"""Standard errors that the rank among n windows is taken above what it is."""
ERROR_Z: Final = 2.5
"""Standard errors of the reference's centre that a window may lie away from it for nothing."""
RETURN_WINDOWS: Final = 48
"""After an alarm windows are taken by so many at a time, until some rank as the reference's own do:"""
RETURN_RANK: Final = 0.42
"""at this on average, of a half. 48 normal windows do with 97 % on either side; of a fall by half their spread, 7 %."""
WARM_WINDOWS: Final = 5
"""Before so many windows nothing is said: less than that cannot raise an alarm."""
_EVIDENCE_MAX = 1e12  # Far above ALARM over any weight: no power or sum overflows.
_LOG_KAPPAS = tuple(math.log(kappa) for kappa in KAPPAS) * 2
_LESS = tuple(kappa - 1 for kappa in KAPPAS) * 2
_WEIGHTS = (*(FALL_WEIGHT / len(KAPPAS) for _ in KAPPAS), *((1 - FALL_WEIGHT) / len(KAPPAS) for _ in KAPPAS))


class Turn(Enum):
    """What a window changed."""

    FELL = "fell"
    ROSE = "rose"
    RETURNED = "returned"


class Standing(Enum):
    """What is to be said of the confidence now."""

    UNKNOWN = "unknown"
    QUIET = "quiet"
    DRIFTING = "drifting"


class Ranks:
    """The windows of the reference, to be ranked among."""

    def __init__(self, windows: Sequence[float], error: float = 0.0) -> None:
        """
        Args:
            windows: Mean confidence of each, at least one, in any order.
            error: Standard error of their centre; >= 0.
        """
        assert windows, "a reference has windows"
        self._ordered = sorted(windows)
        self._room = ERROR_Z * error

    @property
    def median(self) -> float:
        return self._ordered[len(self._ordered) // 2]

    def p_values(self, mean_confidence: float, chance: float) -> tuple[float, float]:
        """Return p of a window this low, and of one this high; 0 < p <= 1.

        Args:
            chance: Uniform in 0..1, new for each window: its place among its equals, itself included.
        """
        ordered, number = self._ordered, len(self._ordered)
        lifted, lowered = mean_confidence + self._room, mean_confidence - self._room
        below, not_above = bisect_left(ordered, lifted), bisect_right(ordered, lifted)
        fall = below + chance * (not_above - below + 1)
        not_below, above = number - bisect_left(ordered, lowered), number - bisect_right(ordered, lowered)
        rise = above + chance * (not_below - above + 1)
        return _upper(fall / (number + 1), number), _upper(rise / (number + 1), number)


def _upper(share: float, number: int) -> float:
    """Return the upper end of the interval of a share that was seen in `number` trials (Wilson 1927)."""
    square = RANK_Z**2 / number
    half = RANK_Z * math.sqrt(share * (1 - share) / number + square / (4 * number))
    return min(1.0, (share + square / 2 + half) / (1 + square))


@dataclass(frozen=True)
class Drift:
    """What the detector knows; small enough to be written down at each change."""

    evidence: tuple[float, ...] = (0.0,) * len(_WEIGHTS)
    """M of a fall for each of KAPPAS, then of a rise; 0 <= M <= _EVIDENCE_MAX."""
    windows: int = 0
    """Since it began, or returned."""
    drifting: bool = False
    calm: int = 0
    """While drifting: windows of the lot that is looked at, and the sums of their p."""
    falls: float = 0.0
    rises: float = 0.0

    @property
    def standing(self) -> Standing:
        if self.drifting:
            return Standing.DRIFTING
        return Standing.QUIET if self.windows >= WARM_WINDOWS else Standing.UNKNOWN

    @property
    def total(self) -> float:
        """The weighted evidence, which is held against ALARM."""
        total: float = sum(map(mul, _WEIGHTS, self.evidence))
        return total

    def is_sound(self) -> bool:
        """Whether this, read back from a disk, can be gone on with."""
        return (
            len(self.evidence) == len(_WEIGHTS)
            and all(0 <= one <= _EVIDENCE_MAX for one in self.evidence)
            and self.windows >= 0
            and 0 <= self.calm < RETURN_WINDOWS
            and 0 <= self.falls <= self.calm
            and 0 <= self.rises <= self.calm
        )


def observe(ranks: Ranks, drift: Drift, mean_confidence: float, chance: float) -> tuple[Drift, Turn | None]:
    """Return the detector after one more window, and what it changed.

        QUIET ── evidence >= ALARM ──▶ DRIFTING ── RETURN_WINDOWS that rank RETURN_RANK or more ──▶ QUIET

    Args:
        mean_confidence: Of the window, 0..1. One that is no number says nothing and changes nothing.
        chance: Uniform in 0..1, new for each window.
    """
    if not math.isfinite(mean_confidence):
        return drift, None
    fall, rise = ranks.p_values(mean_confidence, chance)
    if drift.drifting:
        return _while_drifting(drift, fall, rise)
    evidence = _grown(drift.evidence, math.log(fall), math.log(rise))
    seen = Drift(evidence, drift.windows + 1)  # Three times as fast as `replace`; the rest is of who drifts.
    if seen.total < ALARM:
        return seen, None
    turn = Turn.FELL if sum(evidence[: len(KAPPAS)]) >= sum(evidence[len(KAPPAS) :]) else Turn.ROSE
    return Drift(windows=seen.windows, drifting=True), turn


def _while_drifting(drift: Drift, fall: float, rise: float) -> tuple[Drift, Turn | None]:
    seen = replace(drift, calm=drift.calm + 1, falls=drift.falls + fall, rises=drift.rises + rise)
    if seen.calm < RETURN_WINDOWS:
        return seen, None
    if min(seen.falls, seen.rises) >= RETURN_RANK * RETURN_WINDOWS:
        return Drift(windows=WARM_WINDOWS), Turn.RETURNED
    return Drift(drifting=True), None


def _grown(evidence: tuple[float, ...], log_fall: float, log_rise: float) -> tuple[float, ...]:
    grown = [
        (before + 1) * math.exp(log_kappa + less * log_p)
        for before, log_kappa, less, log_p in zip(
            evidence, _LOG_KAPPAS, _LESS, (*(log_fall,) * len(KAPPAS), *(log_rise,) * len(KAPPAS)), strict=True
        )
    ]
    if max(grown) > _EVIDENCE_MAX:
        grown = [min(_EVIDENCE_MAX, one) for one in grown]
    return tuple(grown)
