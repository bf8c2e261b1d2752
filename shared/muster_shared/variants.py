"""Which variants of a release may run on which hardware: the first in the publisher's order that fits, or all that fit.

Which of several is the fastest only the device can tell, by measurement. Pure and deterministic, so that a device can
ask again after a restart instead of remembering, and so that the controller never assigns what the device would refuse.
"""

from muster_shared.bundle import BundleFile, Manifest, Variant
from muster_shared.messages import Hardware


def eligible(manifest: Manifest, hardware: Hardware) -> tuple[Variant, ...]:
    """Return what a device with `hardware` fetches and chooses from, in the publisher's order; empty when nothing fits.

    It is one variant, unless the release asks for a measured choice.
    """
    fitting = tuple(variant for variant in manifest.variants if fits(variant, hardware))
    return fitting if manifest.serving.selection == "measured" else fitting[:1]


def files_of(manifest: Manifest, variants: tuple[Variant, ...]) -> tuple[BundleFile, ...]:
    """Return what a device needs to run any of `variants`: their files and the golden cases, each once."""
    return tuple({file.path: file for variant in variants for file in manifest.files_for(variant)}.values())


def choose(manifest: Manifest, hardware: Hardware) -> Variant | None:
    """Return the first variant that runs on `hardware`, or None when the release has none for it."""
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
