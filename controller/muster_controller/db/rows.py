"""Rows to domain values and back. Pure; what comes back equals what went in.

A value that does not parse here was damaged on disk, or written by a bug: msgspec says where, and nothing is guessed.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from muster_controller.core.gate import Evidence, Stratum, VerdictKind
from muster_controller.core.policy import Policy
from muster_controller.core.rollout import Control, Member, Outcome, Rollout, RolloutState, Verdict
from muster_controller.db.tables import (
    BaselineRow,
    ControlRow,
    DesiredRow,
    DeviceRow,
    EventRow,
    MemberRow,
    NoteRow,
    RolloutRow,
    VerdictRow,
)
from muster_controller.ports import Baseline, Desired, Device, Note
from muster_shared.assignment import ModelAssignment
from muster_shared.ids import DeviceId, ModelName, RolloutId
from muster_shared.messages import Event, OutcomeReported, ReleaseRef, Step, StepReached, Twin

Value = str | int | float | bytes | bool | None
Values = dict[str, Value]
T = TypeVar("T")

_json = msgspec.json.encode


def _read(raw: bytes, kind: type[T]) -> T:
    return msgspec.json.decode(raw, type=kind)


# -- devices -------------------------------------------------------------------------------------------------------


def device_values(device: Device) -> Values:
    return {
        "id": device.id,
        "online": device.online,
        "boot": device.boot,
        "seen_at": device.seen_at,
        "twin": None if device.twin is None else _json(device.twin),
    }


def to_device(row: DeviceRow) -> Device:
    twin = None if row.twin is None else _read(row.twin, Twin)
    return Device(DeviceId(row.id), row.online, row.boot, row.seen_at, twin)


def desired_values(desired: Desired) -> Values:
    return {
        "device": desired.device,
        "counter": desired.counter,
        "expires_at": desired.expires_at,
        "models": _json(dict(desired.models)),
        "envelope": desired.envelope,
    }


def to_desired(row: DesiredRow) -> Desired:
    models = msgspec.json.decode(row.models, type=dict[ModelName, ModelAssignment])
    return Desired(DeviceId(row.device), row.counter, row.expires_at, models, row.envelope)


def baseline_values(baseline: Baseline) -> Values:
    return {
        "model": baseline.release.model,
        "release": _json(baseline.release),
        "rollout": baseline.rollout,
        "selector": _json(dict(baseline.selector)),
    }


def to_baseline(row: BaselineRow) -> Baseline:
    selector = msgspec.json.decode(row.selector, type=dict[str, str])
    return Baseline(_read(row.release, ReleaseRef), RolloutId(row.rollout), selector)


# -- rollouts ------------------------------------------------------------------------------------------------------


def rollout_values(rollout: Rollout) -> Values:
    """Return the row of a rollout without its members, controls and verdicts."""
    return {
        "id": rollout.id,
        "model": rollout.model,
        "release": _json(rollout.release),
        "previous": None if rollout.previous is None else _json(rollout.previous),
        "policy": _json(rollout.policy),
        "waves": _json(rollout.waves),
        "created_at": rollout.created_at,
        "created_by": rollout.created_by,
        "state": rollout.state.value,
        "reason": rollout.reason,
        "wave": rollout.wave,
        "wave_began_at": rollout.wave_began_at,
        "wave_passed_at": rollout.wave_passed_at,
        "aborting_at": rollout.aborting_at,
        "ended_at": rollout.ended_at,
        "confirmed_wave": rollout.confirmed_wave,
    }


def member_values(rollout: RolloutId, member: Member) -> Values:
    return {
        "rollout": rollout,
        "device": member.device,
        "device_class": member.device_class,
        "position": member.position,
        "wave": member.wave,
        "outcome": member.outcome.value,
        "reason": member.reason,
        "assigned_at": member.assigned_at,
        "deadline_at": member.deadline_at,
        "step": None if member.step is None else member.step.value,
        "bytes_fetched": member.bytes_fetched,
        "seconds": member.seconds,
        "previous": None if member.previous is None else _json(member.previous),
        "returned": member.returned,
    }


def control_values(rollout: RolloutId, control: Control) -> Values:
    return {
        "rollout": rollout,
        "wave": control.wave,
        "device": control.device,
        "device_class": control.device_class,
        "deadline_at": control.deadline_at,
        "outcome": control.outcome.value,
        "reason": control.reason,
    }


def verdict_values(rollout: RolloutId, ordinal: int, verdict: Verdict) -> Values:
    found = verdict.evidence
    return {
        "rollout": rollout,
        "ordinal": ordinal,
        "at": verdict.at,
        "wave": verdict.wave,
        "kind": verdict.kind.value,
        "reason": verdict.reason,
        "e": found.e,
        "e_controls": found.e_controls,
        "e_objective": found.e_objective,
        "e_classes": _json(dict(found.e_classes)),
        "strata": _json(list(found.strata)),
    }


def to_rollout(
    row: RolloutRow, members: Iterable[MemberRow], controls: Iterable[ControlRow], verdicts: Iterable[VerdictRow]
) -> Rollout:
    return Rollout(
        id=RolloutId(row.id),
        model=ModelName(row.model),
        release=_read(row.release, ReleaseRef),
        previous=None if row.previous is None else _read(row.previous, ReleaseRef),
        policy=_read(row.policy, Policy),
        waves=msgspec.json.decode(row.waves, type=tuple[int, ...]),
        created_at=row.created_at,
        created_by=row.created_by,
        members={DeviceId(member.device): _to_member(member) for member in members},
        controls={(control.wave, DeviceId(control.device)): _to_control(control) for control in controls},
        state=RolloutState(row.state),
        reason=row.reason,
        wave=row.wave,
        wave_began_at=row.wave_began_at,
        wave_passed_at=row.wave_passed_at,
        aborting_at=row.aborting_at,
        ended_at=row.ended_at,
        verdicts=tuple(_to_verdict(verdict) for verdict in verdicts),
        confirmed_wave=row.confirmed_wave,
    )


def _to_member(row: MemberRow) -> Member:
    return Member(
        device=DeviceId(row.device),
        device_class=row.device_class,
        position=row.position,
        wave=row.wave,
        outcome=Outcome(row.outcome),
        reason=row.reason,
        assigned_at=row.assigned_at,
        deadline_at=row.deadline_at,
        step=None if row.step is None else Step(row.step),
        bytes_fetched=row.bytes_fetched,
        seconds=row.seconds,
        previous=None if row.previous is None else _read(row.previous, ReleaseRef),
        returned=row.returned,
    )


def _to_control(row: ControlRow) -> Control:
    return Control(
        device=DeviceId(row.device),
        device_class=row.device_class,
        wave=row.wave,
        deadline_at=row.deadline_at,
        outcome=Outcome(row.outcome),
        reason=row.reason,
    )


def _to_verdict(row: VerdictRow) -> Verdict:
    classes: Mapping[str, float] = msgspec.json.decode(row.e_classes, type=dict[str, float])
    strata = msgspec.json.decode(row.strata, type=tuple[Stratum, ...])
    found = Evidence(row.e, row.e_controls, row.e_objective, classes, strata)
    return Verdict(row.at, row.wave, VerdictKind(row.kind), row.reason, found)


# -- history -------------------------------------------------------------------------------------------------------


def event_values(event: Event, taken_at: float) -> Values:
    match event.body:
        case StepReached(rollout=rollout) | OutcomeReported(rollout=rollout):
            pass
        case _:
            rollout = None
    return {"id": event.id, "device": event.device, "taken_at": taken_at, "rollout": rollout, "body": _json(event)}


def to_event(row: EventRow) -> Event:
    return _read(row.body, Event)


def note_values(note: Note) -> Values:
    return {"at": note.at, "what": note.what, "subject": note.subject, "detail": note.detail, "actor": note.actor}


def to_note(row: NoteRow) -> Note:
    return Note(row.at, row.what, row.subject, row.detail, row.actor)
