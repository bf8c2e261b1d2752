"""How devices stand against what they should run: one word a device, and the sums over the fleet. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from muster_controller.db.snapshot import Committed
from muster_controller.groups import device_class
from muster_controller.ports import Desired, Device
from muster_shared.assignment import ModelAssignment
from muster_shared.ids import DeviceId, ModelName
from muster_shared.messages import TwinModel

IDLE = "idle"  # The phase of a model that no update is changing.


class Standing(StrEnum):
    """From bad to good; a device stands as its worst model does."""

    FAILING = "failing"
    """It was told to change, tried, and reported an error; what it had before serves."""
    UPDATING = "updating"
    BEHIND = "behind"
    """It has not begun to change yet: offline, or the message is on its way."""
    CURRENT = "current"
    UNASSIGNED = "unassigned"


@dataclass(frozen=True)
class VersionShare:
    model: ModelName
    version: str
    release: int
    devices: int


@dataclass(frozen=True)
class FleetSums:
    devices: int = 0
    online: int = 0
    standings: Mapping[Standing, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    versions: tuple[VersionShare, ...] = ()


def standing(device: Device, desired: Desired | None) -> Standing:
    """Return how `device` stands by its last twin, whether it is online or not."""
    if desired is None or not desired.models:
        return Standing.UNASSIGNED
    twins = {} if device.twin is None else {model.model: model for model in device.twin.models}
    accepted = device.twin is not None and device.twin.counter >= desired.counter
    found = [_model_standing(twins.get(name), each.assignment, accepted) for name, each in desired.models.items()]
    return next(each for each in Standing if each in found)


def sums(fleet: Committed) -> FleetSums:
    """Return the fleet at a glance."""
    devices = fleet.devices.values()
    versions: Counter[tuple[ModelName, int, str]] = Counter()
    for device in devices:
        for model in () if device.twin is None else device.twin.models:
            if model.active is not None:
                versions[model.model, model.active.release, model.active.version] += 1
    return FleetSums(
        devices=len(fleet.devices),
        online=sum(device.online for device in devices),
        standings=Counter(standing(device, fleet.desired.get(device.id)) for device in devices),
        classes=dict(sorted(Counter(device_class(device) for device in devices).items())),
        versions=tuple(VersionShare(key[0], key[2], key[1], count) for key, count in sorted(versions.items())),
    )


def select(
    fleet: Committed,
    *,
    state: Standing | None = None,
    online: bool | None = None,
    of_class: str | None = None,
    labels: Mapping[str, str] | None = None,
    text: str | None = None,
    after: DeviceId | None = None,
) -> Iterable[Device]:
    """Return the devices to which everything given applies, by id, from behind `after`."""
    for device_id in sorted(fleet.devices):
        device = fleet.devices[device_id]
        if (
            (after is None or device_id > after)
            and (text is None or text in device_id)
            and (online is None or device.online == online)
            and (of_class is None or device_class(device) == of_class)
            and _has_labels(device, labels or {})
            and (state is None or standing(device, fleet.desired.get(device_id)) is state)
        ):
            yield device


def _model_standing(twin: TwinModel | None, wanted: ModelAssignment, accepted: bool) -> Standing:
    active = None if twin is None or twin.active is None else twin.active.bundle_sha256
    if active == wanted.release.bundle_sha256:
        return Standing.CURRENT
    if twin is None or not accepted:
        return Standing.BEHIND
    if twin.phase != IDLE:
        return Standing.UPDATING
    return Standing.FAILING if twin.last_error else Standing.BEHIND


def _has_labels(device: Device, labels: Mapping[str, str]) -> bool:
    own = {} if device.twin is None else device.twin.labels
    return all(own.get(key) == value for key, value in labels.items())
