"""What changed from one moment to another, put together from what was told, ordered and noted. Pure.

What a device should run at a moment is the last assignment that it had been sent by then; what it does run is known
for the present alone, so of the past its own reports of switching are counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from muster_controller.api.schemas import TimeDiff
from muster_controller.api.schemas.changes import (
    AssignmentChange,
    BaselineChange,
    FieldChange,
    NoteLine,
    OrderGiven,
    RolloutChange,
    Switches,
)
from muster_controller.core.policy import Policy
from muster_controller.core.rollout.state import Rollout
from muster_controller.policy_document import written
from muster_controller.ports import Issued, Note, Wanted
from muster_shared.ids import DeviceId, ModelName, RolloutId
from muster_shared.messages import Event, Step, StepReached

SAMPLE = 20
LINES_MAX = 200
"""Of one section."""
BASELINE_SET = "baseline_set"
TRUST_NOTES = ("release_published", "trust_changed", "assignment_refused")
GROUP_NOTES = ("device_left_rollout", "device_joined_rollout", "device_follows_baseline", "devices_taken_over")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Between:
    """What was read of the time after `begin` up to `end` (Unix seconds)."""

    begin: float
    end: float
    model: ModelName | None = None
    device: DeviceId | None = None
    told_before: Mapping[DeviceId, Issued] = field(default_factory=dict)
    """The last that each device had been told by `begin`, ..."""
    told_after: Mapping[DeviceId, Issued] = field(default_factory=dict)
    """... and by `end`."""
    rollouts: Mapping[RolloutId, Rollout] = field(default_factory=dict)
    """Those that anything here speaks of."""
    policies_before: Mapping[RolloutId, Rollout] = field(default_factory=dict)
    """Of rollouts that began in this time: the one of the model before it."""
    notes: Sequence[Note] = ()
    """Oldest first."""
    baselines_before: Sequence[Note] = ()
    """`baseline_set` up to `begin`, newest first."""
    events: Sequence[Event] = ()


def time_diff(found: Between) -> TimeDiff:
    """Return what changed."""
    left_out: dict[str, int] = {}
    return TimeDiff.model_validate(
        {
            "from": found.begin,
            "to": found.end,
            "model": found.model,
            "device": found.device,
            "assignments": _fitting("assignments", _assignments(found), left_out),
            "switches": _switches(found),
            "rollouts": _fitting("rollouts", _rollouts(found), left_out),
            "baselines": _fitting("baselines", _baselines(found), left_out),
            "trust": _fitting("trust", _lines(found, TRUST_NOTES), left_out),
            "groups": _fitting("groups", _lines(found, GROUP_NOTES), left_out),
            "left_out": left_out,
        }
    )


def policy_changes(before: Policy, after: Policy) -> list[FieldChange]:
    """Return the fields that are not the same."""
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(after)
    return [
        FieldChange(what=f"policy.{name}", before=old.get(name), after=new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _assignments(found: Between) -> list[AssignmentChange]:
    moved: dict[tuple[str, str, str, RolloutId], list[DeviceId]] = {}
    for device in sorted(found.told_after):
        after = found.told_after[device].models
        before = found.told_before[device].models if device in found.told_before else {}
        for model in sorted(before.keys() | after.keys()):
            if found.model not in (None, model):
                continue
            old, new = before.get(model), after.get(model)
            told = new or old
            if told is None or _bundle(old) == _bundle(new):
                continue
            key = (model, _version(old), _version(new), told.rollout)
            moved.setdefault(key, []).append(device)
    return [
        AssignmentChange(
            model=model,
            before=before or None,
            after=after or None,
            rollout=rollout,
            by=_creator(found, rollout),
            devices=len(devices),
            sample=list(devices[:SAMPLE]),
        )
        for (model, before, after, rollout), devices in sorted(moved.items())
    ]


def _switches(found: Between) -> list[Switches]:
    switched: Counter[tuple[str, int, str]] = Counter()
    returned: Counter[tuple[str, int, str]] = Counter()
    for event in found.events:
        match event.body:
            case StepReached(release=release, step=Step.SWITCHED | Step.ROLLED_BACK as step):
                if found.model in (None, release.model):
                    counts = switched if step is Step.SWITCHED else returned
                    counts[release.model, release.release, release.version] += 1
            case _:
                pass
    return [
        Switches(model=key[0], version=key[2], switched=switched[key], rolled_back=returned[key])
        for key in sorted(switched.keys() | returned.keys())
    ]


def _rollouts(found: Between) -> list[RolloutChange]:
    orders: dict[str, list[OrderGiven]] = {}
    for note in found.notes:
        if note.subject in found.rollouts and note.what != BASELINE_SET:
            orders.setdefault(note.subject, []).append(
                OrderGiven(at=note.at, what=note.what, by=note.actor, detail=note.detail)
            )
    changes: list[RolloutChange] = []
    for rollout in sorted(found.rollouts.values(), key=lambda each: (each.created_at, each.id)):
        is_new = found.begin < rollout.created_at <= found.end
        has_ended = rollout.ended_at is not None and found.begin < rollout.ended_at <= found.end
        if found.model not in (None, rollout.model) or not (is_new or has_ended or rollout.id in orders):
            continue
        if found.device is not None and found.device not in rollout.members:
            continue
        earlier = found.policies_before.get(rollout.id)
        is_comparable = earlier is not None and not (earlier.at_once or rollout.at_once)
        differing = policy_changes(earlier.policy, rollout.policy) if earlier is not None and is_comparable else []
        changes.append(
            RolloutChange(
                rollout=rollout.id,
                model=rollout.model,
                version=rollout.release.version,
                created_at=rollout.created_at,
                created_by=rollout.created_by,
                ended_at=rollout.ended_at,
                state=rollout.state.value,
                reason=rollout.reason,
                policy=written(rollout.policy),
                compared_with=earlier.id if earlier is not None and differing else None,
                policy_changes=differing,
                orders=orders.get(rollout.id, []),
            )
        )
    return changes


def _baselines(found: Between) -> list[BaselineChange]:
    """Return what was set, where it differs, or where one of another group had been newer and counted more."""
    current: dict[tuple[str, str], str] = {}
    newest: dict[str, tuple[str, str]] = {}
    for note in found.baselines_before:  # Newest first.
        model, version = _baseline_of(note)
        key = (model, _selector(found, note))
        current.setdefault(key, version)
        newest.setdefault(model, key)
    changes: list[BaselineChange] = []
    for note in found.notes:
        if note.what != BASELINE_SET:
            continue
        model, version = _baseline_of(note)
        key = (model, _selector(found, note))
        before, current[key] = current.get(key), version
        is_overtaken, newest[model] = newest.get(model) != key, key
        if found.model in (None, model) and (before != version or is_overtaken):
            rollout = RolloutId(note.subject)
            changes.append(
                BaselineChange(
                    model=model,
                    selector=key[1],
                    before=before,
                    after=version,
                    at=note.at,
                    rollout=rollout,
                    by=_creator(found, rollout),
                )
            )
    return changes


def _lines(found: Between, kinds: Sequence[str]) -> list[NoteLine]:
    return [
        NoteLine(at=note.at, what=note.what, subject=note.subject, detail=note.detail, by=note.actor)
        for note in found.notes
        if note.what in kinds
        and found.device in (None, note.subject)
        and (found.model is None or found.model in f"{note.subject} {note.detail}")
    ]


def _fitting(name: str, lines: Sequence[object], left_out: dict[str, int]) -> list[object]:
    if len(lines) > LINES_MAX:
        left_out[name] = len(lines) - LINES_MAX
    return list(lines[:LINES_MAX])


def _baseline_of(note: Note) -> tuple[str, str]:
    model, _, version = note.detail.partition(" ")
    return model, version


def _selector(found: Between, note: Note) -> str:
    rollout = found.rollouts.get(RolloutId(note.subject))
    return "" if rollout is None else rollout.policy.selector


def _creator(found: Between, rollout: RolloutId) -> str:
    return found.rollouts[rollout].created_by if rollout in found.rollouts else UNKNOWN


def _bundle(wanted: Wanted | None) -> str:
    return "" if wanted is None else wanted.assignment.release.bundle_sha256


def _version(wanted: Wanted | None) -> str:
    return "" if wanted is None else wanted.assignment.release.version
