"""What is different from one device to another, and why each should run what it should. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from muster_controller.api.schemas import DeviceDiff
from muster_controller.api.schemas.changes import DeviceSide, FieldChange, ModelDiff, ModelSide
from muster_controller.api.standing import standing
from muster_controller.core.rollout.state import Rollout, RolloutState
from muster_controller.core.rollout.words import at_time
from muster_controller.db.snapshot import Committed
from muster_controller.groups import active, selected, standby
from muster_controller.mending import LATE_WAVE
from muster_controller.ports import Desired, Device, Wanted
from muster_shared.ids import ModelName, RolloutId

FindRollout = Callable[[RolloutId], Rollout | None]


def device_diff(fleet: Committed, a: Device, b: Device, find: FindRollout, now: float) -> DeviceDiff:
    """Return what `b` has otherwise than `a`. `find` looks a rollout up; `now`: Unix seconds."""
    models = sorted(_models(fleet, a) | _models(fleet, b))
    sides = [(model, _model(fleet, a, model, find, now), _model(fleet, b, model, find, now)) for model in models]
    return DeviceDiff(
        a=_side(fleet, a),
        b=_side(fleet, b),
        differences=_differences(_facts(a), _facts(b)),
        models=[
            ModelDiff(model=model, a=one, b=other, same=_versions(one) == _versions(other))
            for model, one, other in sides
        ],
    )


def why_desired(device: Device, wanted: Wanted | None, rollout: Rollout | None, now: float) -> str:
    """Return in a sentence why `device` should run what it should of one model."""
    if wanted is None:
        return "nobody has told it to run this model"
    when = at_time(wanted.at, now)
    if rollout is None:
        return f"rollout {wanted.rollout} said so, {when}; it is not known any more"
    by = f"rollout {rollout.id}, created by {rollout.created_by}"
    watch, release = wanted.assignment.watch, wanted.assignment.release
    if watch is not None and watch.wave == LATE_WAVE:
        return f"it came late to the baseline of {by}: told {when}"
    if (watch is not None or rollout.at_once) and release.bundle_sha256 == rollout.release.bundle_sha256:
        wave = "at once" if watch is None else f"in wave {watch.wave + 1}"
        return f"{by}, told it {wave}, {when}"
    if watch is not None:
        return f"{by}, holds it back beside wave {watch.wave + 1} on what it ran, {when}"
    if rollout.state in (RolloutState.ABORTING, RolloutState.ABORTED):
        return f"{by}, was aborted and called it back, {when}"
    return f"{by}, set it as the baseline: told {when}"


def _models(fleet: Committed, device: Device) -> set[ModelName]:
    twin = device.twin
    return {each.model for each in (() if twin is None else twin.models)} | set(_desired(fleet, device).models)


def _desired(fleet: Committed, device: Device) -> Desired:
    return fleet.desired.get(device.id) or Desired(device.id)


def _model(fleet: Committed, device: Device, model: ModelName, find: FindRollout, now: float) -> ModelSide:
    wanted = _desired(fleet, device).models.get(model)
    serves, kept = active(device, model), standby(device, model)
    baselines = (each for each in fleet.baselines.get(model, ()) if selected(device, each.selector))
    baseline = next(baselines, None)
    rollout = None if wanted is None else find(wanted.rollout)
    return ModelSide(
        desired=None if wanted is None else wanted.assignment.release.version,
        active=None if serves is None else serves.version,
        standby=None if kept is None else kept.version,
        baseline=None if baseline is None else baseline.release.version,
        why=why_desired(device, wanted, rollout, now),
    )


def _versions(side: ModelSide) -> tuple[str | None, ...]:
    return side.desired, side.active, side.standby, side.baseline


def _side(fleet: Committed, device: Device) -> DeviceSide:
    return DeviceSide(
        device=device.id,
        online=device.online,
        seen_at=device.seen_at,
        standing=standing(device, fleet.desired.get(device.id)).value,
    )


def _facts(device: Device) -> dict[str, Any]:
    twin = device.twin
    facts: dict[str, Any] = {"online": device.online}
    if twin is None:
        return facts
    facts |= {"agent_version": twin.agent_version, "timezone": twin.timezone}
    facts |= {f"labels.{key}": value for key, value in twin.labels.items()}
    hardware: Mapping[str, Any] = msgspec.to_builtins(twin.hardware)
    return facts | {f"hardware.{key}": value for key, value in hardware.items()}


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[FieldChange]:
    return [
        FieldChange(what=name, before=one.get(name), after=other.get(name))
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]
