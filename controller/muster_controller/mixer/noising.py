"""Noise on sums: what is published of one cell and period. Everything that leaves the mixer is made here.

Pure, given `below`. The same cell and period get the same batch name again, so that whoever has stored one content for
a name can tell that another came.
"""

import hashlib

import msgspec

from muster_controller.mixer.accounting import noise_sigma
from muster_controller.mixer.batching import Pending, Period, dense
from muster_controller.mixer.noise import RandBelow, discrete_gaussians
from muster_shared.metrics import Cell, Kind, Mixed


def noised(units: list[int], kind: Kind, release: int, below: RandBelow) -> tuple[int, ...]:
    """Return `units`, a sum in each place, with independent noise on every one, the empty ones too.

    Args:
        release: what the period costs (`accounting.release_nano`).
    """
    sigma = noise_sigma(kind, release)
    return tuple(one + noise for one, noise in zip(units, discrete_gaussians(sigma**2, len(units), below), strict=True))


def mixed(
    mixer: str, period: Period, cell: Cell, pending: Pending, *, number: int, release: int, now: float, below: RandBelow
) -> Mixed:
    """Return the message for the controller.

    All kinds that the cell can have are in it, also those that no window held: that there is one would tell, without
    any noise, that somebody measured it.

    Args:
        number: how many times sums of this period were published before, 0 for the first.
        release: what the period costs.
        now: Unix seconds.
    """
    kinds = [kind for kind in Kind if cell.dim(kind)]
    return Mixed(
        batch=batch_name(mixer, period, cell, number),
        mixer=mixer,
        cell=cell,
        period_start=period.start,
        period_s=period.length_s,
        devices=pending.devices,
        late=number > 0,
        sums={kind: noised(dense(cell, kind, pending.sums.get(kind, {})), kind, release, below) for kind in kinds},
        sigma={kind: float(noise_sigma(kind, release)) for kind in kinds},
        mixed_at=now,
    )


def batch_name(mixer: str, period: Period, cell: Cell, number: int) -> str:
    """Return 32 hex digits that follow from the four, and differ where one of them does."""
    named = msgspec.json.encode((mixer, period.start, period.length_s, number, cell))
    return hashlib.sha256(named).hexdigest()[:32]
