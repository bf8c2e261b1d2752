"""Which variant of a release runs on which hardware: the first in the publisher's order that fits.

Pure and deterministic, so that a device can ask again after a restart instead of remembering, and so that the
controller never assigns what the device would refuse.
"""

from muster_shared.bundle import Manifest, Variant
from muster_shared.messages import Hardware


def choose(manifest: Manifest, hardware: Hardware) -> Variant | None:
    """Return the variant to run on `hardware`, or None when the release has none for it."""
    return next((variant for variant in manifest.variants if fits(variant, hardware)), None)


def fits(variant: Variant, hardware: Hardware) -> bool:
    """Return whether `hardware` has the runtime, processor, accelerator and memory that `variant` needs."""
    need = variant.hardware
    return (
        variant.runtime in hardware.runtimes
        and (not need.arch or hardware.arch in need.arch)
        and (not need.accelerator or any(kind in hardware.accelerators for kind in need.accelerator))
        and hardware.memory_mb >= need.memory_mb_min
    )
