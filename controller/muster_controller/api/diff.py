"""Routes: what changed between two moments, and what is different between two devices. Reads only."""

from typing import Annotated

from fastapi import APIRouter, Query

from muster_controller.api.authentication import require
from muster_controller.api.changes import BASELINE_SET, Between, time_diff
from muster_controller.api.device_diff import device_diff
from muster_controller.api.schemas import DeviceDiff, TimeDiff
from muster_controller.api.services import Given, Services
from muster_controller.core.rollout.state import Rollout
from muster_controller.operators.roles import Permission
from muster_controller.ports import Issued
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, ModelName, RolloutId

ROLLOUTS_MAX = 200
NOTES_MAX = 5000
EVENTS_MAX = 20_000

router = APIRouter(prefix="/diff", tags=["diff"], dependencies=[require(Permission.VIEW)])


@router.get("")
def show_diff(
    given: Given,
    begin: Annotated[float, Query(alias="from", ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds.")],
    end: Annotated[
        float | None, Query(alias="to", ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds; default: now.")
    ] = None,
    model: Annotated[str | None, Query(max_length=64, description="Of this model only.")] = None,
    device: Annotated[str | None, Query(max_length=64, description="Of this device only.")] = None,
) -> TimeDiff:
    """What changed from one moment to another, by what and by whom."""
    until = given.clock() if end is None else end
    if begin > until:
        raise WireError("`from` is later than `to`; exchange them")
    if device is not None:
        given.device(DeviceId(device))
    return time_diff(_read(given, begin, until, model, device))


@router.get("/devices")
def show_device_diff(
    given: Given,
    a: Annotated[str, Query(max_length=64, description="A device's id.")],
    b: Annotated[str, Query(max_length=64, description="Another's.")],
) -> DeviceDiff:
    """What is different from one device to another, and why each should run what it should."""
    one, other = given.device(DeviceId(a)), given.device(DeviceId(b))
    return device_diff(given.committed(), one, other, given.find_rollout, given.clock())


def _read(given: Services, begin: float, end: float, model: str | None, device: str | None) -> Between:
    reader = given.reader
    only = None if device is None else DeviceId(device)
    before, after = (
        {name: issued for name, issued in reader.told(at, only).items() if given.sees(name)} for at in (begin, end)
    )
    found_notes = (entry.note for entry in reader.notes(since=begin, until=end, limit=NOTES_MAX))
    notes = [note for note in found_notes if given.sees_subject(note.subject)]
    baselines_before = [entry.note for entry in reader.notes(what=(BASELINE_SET,), until=begin, limit=ROLLOUTS_MAX)]
    alive = reader.rollouts(ROLLOUTS_MAX, model=model, since=begin, until=end)
    rollouts = {rollout.id: rollout for rollout in alive}
    named = [*_moved_by(before, after), *(note.subject for note in baselines_before)]
    named += [note.subject for note in notes if note.what == BASELINE_SET]
    for name in dict.fromkeys(named):
        if name not in rollouts and len(rollouts) < 2 * ROLLOUTS_MAX:
            found = given.find_rollout(RolloutId(name))
            if found is not None:
                rollouts[found.id] = found
    earlier = {rollout.id: _before(given, rollout) for rollout in alive if rollout.created_at > begin}
    return Between(
        begin=begin,
        end=end,
        model=None if model is None else ModelName(model),
        device=only,
        told_before=before,
        told_after=after,
        rollouts=rollouts,
        policies_before={name: found for name, found in earlier.items() if found is not None},
        notes=list(reversed(notes)),
        baselines_before=baselines_before,
        events=[
            entry.event
            for entry in reader.events(device=only, since=begin, until=end, limit=EVENTS_MAX)
            if given.sees(entry.event.device)
        ],
    )


def _before(given: Services, rollout: Rollout) -> Rollout | None:
    return next(iter(given.reader.rollouts(1, model=rollout.model, after=rollout.id)), None)


def _moved_by(before: dict[DeviceId, Issued], after: dict[DeviceId, Issued]) -> list[RolloutId]:
    """Return the rollouts by which devices should run something else than before."""
    found: dict[RolloutId, None] = {}
    for device, issued in after.items():
        old = before[device].models if device in before else {}
        for model, wanted in issued.models.items():
            if model not in old or old[model].assignment.release != wanted.assignment.release:
                found[wanted.rollout] = None
    return list(found)
