"""Where a model's releases serve: on which hardware, by which variant, how fast. Pure: what the devices' twins say.

How fast devices are each of them says: that is a walk over those that serve the release, so whoever asks often keeps
the answer for a moment (`Served`).
"""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from threading import Lock

from muster_controller.core.selector import RESERVED
from muster_controller.db.snapshot import Committed
from muster_controller.fleet_index.view import Filter
from muster_controller.ports import Device
from muster_shared.ids import ModelName
from muster_shared.messages import TwinModel

LABEL_VALUES_MAX = 24
"""A label with more values than this in a release's devices tells devices apart, not groups."""
KEPT = 64
"""Answers kept, of as many releases."""
KEPT_S = 3.0
"""So long one is given again while the fleet goes on changing: a large one does so many times a second."""


@dataclass(frozen=True)
class Pick:
    """What devices of one class run a release with.

    Attributes:
        variant: of the manifest; empty: the agents do not tell.
        engine: runtime with its version, and what it runs on (`device`), as the agents achieved it.
        latency_ms_p95: of requests: the middle device's; None: none was served yet. `worst_ms_p95`: the slowest's.
        rows_per_s, alone_ms_p95: as the devices measured them when they chose, the middle device's.
        fell_back: devices that do not run it on what the variant asks for.
    """

    device_class: str
    variant: str
    engine: str
    device: str
    precision: str
    threads: int
    devices: int
    latency_ms_p95: float | None
    worst_ms_p95: float | None
    rows_per_s: float | None
    alone_ms_p95: float | None
    requests: int
    errors: int
    slow: int
    fell_back: int
    why: str
    """Of one that fell back."""


@dataclass(frozen=True)
class Use:
    """Where one release serves. Counts are of devices."""

    devices: int = 0
    online: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By key and value."""
    picks: tuple[Pick, ...] = ()
    standby: int = 0
    """Devices that could go back to it without a download."""


NOWHERE = Use()
_Key = tuple[str, str, str, str, str, int]


def use_of(fleet: Committed, model: ModelName, version: str) -> Use:
    """Return where a release serves. Groups are counted by the index; devices that serve it are each looked at."""
    wanted = Filter(model=model, version=version)
    view = replace(fleet.view, scope=fleet.view.matching(wanted), is_whole=False)
    sums = view.sums()
    groups: dict[_Key, list[TwinModel]] = {}
    for name in view.devices(Filter()):
        twin = fleet.devices[name].twin
        for each in () if twin is None else twin.models:
            if twin is not None and each.model == model:
                groups.setdefault(_key(twin.hardware.device_class, each), []).append(each)
    return Use(
        devices=sums.devices,
        online=sums.online,
        classes=dict(sorted(sums.classes.items(), key=lambda each: (-each[1], each[0]))),
        labels={
            each.key: {value.value: value.devices for value in view.label_values(each.key, LABEL_VALUES_MAX)}
            for each in view.label_keys()
            if each.values <= LABEL_VALUES_MAX and not each.key.startswith(RESERVED)
        },
        picks=tuple(_pick(key, models) for key, models in sorted(groups.items())),
        standby=_ready(fleet.devices.values(), model, version),
    )


class Served:
    """`use_of` the newest state of the fleet, kept until the fleet is another, and KEPT_S. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[tuple[ModelName, str], tuple[weakref.ref[Committed], float, Use]] = {}

    def of(self, fleet: Committed, model: ModelName, version: str, now: float) -> Use:
        key = model, version
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and (kept[0]() is fleet or 0.0 <= now - kept[1] < KEPT_S):
            return kept[2]
        found = use_of(fleet, model, version)
        with self._lock:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[key] = weakref.ref(fleet), now, found
        return found


def _ready(devices: Iterable[Device], model: ModelName, version: str) -> int:
    """Return how many devices have the release in standby."""
    return sum(
        each.model == model and each.standby is not None and each.standby.version == version
        for device in devices
        if device.twin is not None
        for each in device.twin.models
    )


def _key(device_class: str, model: TwinModel) -> _Key:
    tuning = model.tuning
    if tuning is None:
        return device_class, "", model.engine or "", "", "", 0
    return device_class, tuning.variant, tuning.engine, tuning.device, tuning.precision, tuning.threads


def _pick(key: _Key, models: list[TwinModel]) -> Pick:
    tuned = [each.tuning for each in models if each.tuning is not None]
    served = sorted(each.latency_ms_p95 for each in models if each.latency_ms_p95 is not None)
    why = next((each.fallback for each in tuned if each.fallback), "")
    return Pick(
        *key,
        devices=len(models),
        latency_ms_p95=median(served) if served else None,
        worst_ms_p95=served[-1] if served else None,
        rows_per_s=median(each.rows_per_s for each in tuned) if tuned else None,
        alone_ms_p95=median(each.latency_ms_p95 for each in tuned) if tuned else None,
        requests=sum(each.requests for each in models),
        errors=sum(each.errors for each in models),
        slow=sum(each.slow for each in models),
        fell_back=sum(bool(each.fallback) for each in tuned),
        why=why,
    )
