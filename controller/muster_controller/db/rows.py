"""Rows to domain values and back: devices, assignments, baselines, history. Pure; what comes back equals what went in.

Going in, a row is a tuple in the order of its table's columns. A value that does not parse on its way back was damaged
on disk, or written by a bug: msgspec says where, and nothing is guessed.
"""

from collections.abc import Mapping

import msgspec

from muster_controller.db.tables import BaselineRow, DesiredRow, DeviceRow, EventRow, IssuedRow, NoteRow
from muster_controller.ports import Baseline, Desired, Device, Issued, Note, Wanted
from muster_shared.ids import DeviceId, ModelName, RolloutId
from muster_shared.messages import Event, OutcomeReported, ReleaseRef, StepReached, Twin

Value = str | int | float | bytes | bool | None
Values = tuple[Value, ...]
WantedModels = Mapping[ModelName, Wanted]

to_json = msgspec.json.Encoder().encode
to_release = msgspec.json.Decoder(ReleaseRef).decode
_to_twin = msgspec.json.Decoder(Twin).decode
_to_models = msgspec.json.Decoder(dict[ModelName, Wanted]).decode
_to_event = msgspec.json.Decoder(Event).decode


def text(said: str) -> str:
    """Return what somebody wrote as every database takes it: PostgreSQL has no NUL in a text."""
    return said.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in said else said


# -- devices -----------------------------------------------------------------------------------------------------------


def device_values(device: Device) -> Values:
    twin = None if device.twin is None else to_json(device.twin)
    return device.id, device.online, text(device.boot), device.seen_at, twin


def to_device(row: DeviceRow) -> Device:
    twin = None if row.twin is None else _to_twin(row.twin)
    return Device(DeviceId(row.id), bool(row.online), row.boot, row.seen_at, twin)


def desired_values(desired: Desired, models: bytes) -> Values:
    """Return the row; `models` is `models_json(desired.models)`."""
    return desired.device, desired.counter, desired.expires_at, desired.issued_at, models, desired.envelope


def to_desired(row: DesiredRow) -> Desired:
    models = _to_models(row.models)
    return Desired(DeviceId(row.device), row.counter, row.expires_at, models, bytes(row.envelope), row.issued_at)


def issued_values(issued: Issued, models: bytes) -> Values:
    return issued.device, issued.counter, issued.at, models


def to_issued(row: IssuedRow) -> Issued:
    return Issued(DeviceId(row.device), row.counter, row.at, _to_models(row.models))


def models_json(models: WantedModels) -> bytes:
    return to_json(models if isinstance(models, dict) else dict(models))


def baseline_values(baseline: Baseline) -> Values:
    return baseline.release.model, baseline.selector, to_json(baseline.release), baseline.rollout, baseline.at


def to_baseline(row: BaselineRow) -> Baseline:
    return Baseline(to_release(row.release), RolloutId(row.rollout), row.selector, row.at)


# -- history -----------------------------------------------------------------------------------------------------------


def event_values(event: Event, taken_at: float) -> Values:
    match event.body:
        case StepReached(rollout=rollout) | OutcomeReported(rollout=rollout):
            pass
        case _:
            rollout = None
    return event.id, event.device, taken_at, rollout, to_json(event)


def to_event(row: EventRow) -> Event:
    return _to_event(row.body)


def note_values(note: Note) -> Values:
    return note.at, text(note.what), text(note.subject), text(note.detail), text(note.actor)


def to_note(row: NoteRow) -> Note:
    return Note(row.at, row.what, row.subject, row.detail, row.actor)
