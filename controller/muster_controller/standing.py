"""How one device stands against what it should run, in a word. Pure. The fleet as a whole: `fleet_index`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from muster_controller.ports import Desired, Device
from muster_shared.assignment import ModelAssignment
from muster_shared.ids import ModelName
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


def _model_standing(twin: TwinModel | None, wanted: ModelAssignment, accepted: bool) -> Standing:
    active = None if twin is None or twin.active is None else twin.active.bundle_sha256
    if active == wanted.release.bundle_sha256:
        return Standing.CURRENT
    if twin is None or not accepted:
        return Standing.BEHIND
    if twin.phase != IDLE:
        return Standing.UPDATING
    return Standing.FAILING if twin.last_error else Standing.BEHIND
