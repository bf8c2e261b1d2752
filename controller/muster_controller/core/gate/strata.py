"""What the gate counts: outcomes in one wave of one device class, and latency of matched pairs in bins.

Only what is stored with a verdict, so that anyone can compute it again. No evidence is computed here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import floor
from statistics import fmean

LATENCY_STEP = 0.005  # Of log p95: half a percent, far below what differs between two quiet days of one device.
LATENCY_CLIP = 0.25  # A bet on a mean needs bounded differences; beyond e^0.25 = 1.28 more slowness is not more proof.


class VerdictKind(Enum):
    PROMOTE = "promote"
    HOLD = "hold"
    ABORT = "abort"


@dataclass(frozen=True)
class Stratum:
    """What happened in one wave to one device class.

    `treated` and `controls` are all devices assigned, pending ones included: those count as good until they report or
    their deadline passes (docs/decisions/0003).
    """

    wave: int
    device_class: str
    treated: int
    treated_bad: int
    controls: int
    controls_bad: int
    latency: tuple[tuple[int, int], ...] = ()
    """(bin, treated devices in it), sorted; see `latency_bin`."""
    compared: int = 0
    """Treated devices whose trial on the device, candidate beside incumbent, has reached a verdict."""
    disagreed: int = 0
    """Those of them whose disagreement was above what the policy bears."""


def latency_bin(z_treated: float, z_controls: Sequence[float]) -> int | None:
    """Return the bin of one treated device's slowdown against its own controls; None without controls.

    Z = log(p95 after / p95 before) of one device; D = mean over the device's controls of clip(Z_treated - Z_control);
    the bin is D / LATENCY_STEP rounded down, so that E computed from bins is never above E computed from D.

    Every treated device has controls of its own, of its class and wave, shared with no other: so the D are independent
    and what is common to an hour or a class cancels. Each difference is clipped first and averaged then: two like
    devices' difference is symmetric whatever its tails, clipping keeps it so, and the mean of D is 0 when nothing is
    worse. (A median of controls or a clip of the mean would lose that.)

    Args:
        z_treated: Log ratio, finite.
        z_controls: Those of the device's own controls that have reported, finite.
    """
    if not z_controls:
        return None
    slower = fmean(max(-LATENCY_CLIP, min(LATENCY_CLIP, z_treated - z)) for z in z_controls)
    return floor(slower / LATENCY_STEP)
