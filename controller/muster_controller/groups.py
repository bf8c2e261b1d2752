"""Groups: which devices a selector names, what they can run, and what serves there. Pure questions about values."""

from functools import lru_cache

from muster_controller.core.rollout.events import DeviceFacts
from muster_controller.core.selector import Selector, device_labels, parse
from muster_controller.ports import Device
from muster_shared.bundle import Manifest
from muster_shared.ids import ModelName
from muster_shared.messages import ReleaseRef
from muster_shared.variants import choose


@lru_cache(maxsize=256)
def _parsed(selector: str) -> Selector:
    return parse(selector)


def labels_of(device: Device) -> dict[str, str]:
    """Return the labels that selectors see: the device's own, and what it reported of its hardware."""
    twin = device.twin
    return {} if twin is None else device_labels(twin.labels, twin.hardware, twin.agent_version)


def selected(device: Device, selector: str) -> bool:
    """Return whether `selector` names the device; before its first twin nothing is known, and none does."""
    return device.twin is not None and (not selector or _parsed(selector).matches(labels_of(device)))


def can_run(device: Device, manifest: Manifest | None) -> bool:
    """Return whether some variant fits the hardware that the device reported."""
    return manifest is not None and device.twin is not None and choose(manifest, device.twin.hardware) is not None


def active(device: Device, model: ModelName) -> ReleaseRef | None:
    """Return what serves, by the last twin."""
    for each in device.twin.models if device.twin is not None else ():
        if each.model == model and each.active is not None:
            return each.active
    return None


def standby(device: Device, model: ModelName) -> ReleaseRef | None:
    """Return what the device could go back to without a download, by the last twin."""
    for each in device.twin.models if device.twin is not None else ():
        if each.model == model:
            return each.standby
    return None


def device_class(device: Device) -> str:
    """Return the class that a device reports; "unknown" before its first twin."""
    return "unknown" if device.twin is None else device.twin.hardware.device_class


def facts_of(device: Device, model: ModelName, held: str = "") -> DeviceFacts:
    """`held`: why rollouts leave it alone; empty: they need not."""
    return DeviceFacts(online=device.online, active=active(device, model), held=held)
