"""What releases truly do to devices, without a list of devices: chance is a hash of release and device.

Harm ── kind, share, class ──▶ on(device): what this release does there, the same whenever one asks
"""

from dataclasses import dataclass
from enum import Enum
from zlib import crc32

from muster_shared.ids import DeviceId, Sha256


class Kind(Enum):
    GOOD = "good"
    FAILING = "failing"
    INACCURATE = "inaccurate"
    SLOWER = "slower"
    """By a quarter: no device can tell, the fleet can."""
    CRASHING = "crashing"
    BRICKING = "bricking"
    """It is dark until somebody visits it."""
    UNPROVEN = "unproven"
    """The golden cases fail."""


SEEN_UNUSED = (Kind.CRASHING, Kind.BRICKING, Kind.UNPROVEN)
"""What shows on a device that nobody uses, too."""


@dataclass(frozen=True)
class Harm:
    """`share` of the devices of `device_class` (None: of all) suffer `kind`."""

    kind: Kind = Kind.GOOD
    share: float = 0.0
    device_class: str | None = None

    def on(self, bundle: Sha256, device: DeviceId, device_class: str) -> Kind:
        if self.kind is Kind.GOOD or self.device_class not in (None, device_class):
            return Kind.GOOD
        drawn = crc32(f"{bundle[:16]}/{device}".encode()) / 2**32
        return self.kind if drawn < self.share else Kind.GOOD
