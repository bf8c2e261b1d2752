"""Saving a draft: which rows of which tables follow from what a transaction wrote; `writing` writes them."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, delete

from muster_controller.core.rollout.state import Control, Member
from muster_controller.db import rollout_rows, rows
from muster_controller.db.draft import Draft, SavedRollout
from muster_controller.db.tables import (
    BaselineRow,
    ControlRow,
    DesiredRow,
    DeviceRow,
    EventRow,
    IssuedRow,
    MemberRow,
    NoteRow,
    PointRow,
    RolloutRow,
    StratumRow,
    VerdictRow,
    table,
)
from muster_controller.db.writing import insert, upsert

_DEVICE, _DESIRED = table(DeviceRow), table(DesiredRow)


def write(connection: Connection, draft: Draft) -> None:
    """Write all of `draft`, in the transaction of `connection`. Parents come before what refers to them."""
    with _uncollected():
        _write(connection, draft)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector away: rows make no cycles, and with a large fleet in memory its looks cost a third."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _write(connection: Connection, draft: Draft) -> None:
    desired = [each for each in draft.desired.values() if each is not None]
    models = [each.models for each in desired] + [each.models for each in draft.issued]
    json = {id(each): rows.models_json(each) for each in models}
    upsert(connection, DeviceRow, (rows.device_values(each) for each in draft.devices.values() if each is not None))
    upsert(connection, DesiredRow, (rows.desired_values(each, json[id(each.models)]) for each in desired))
    for device, found in draft.devices.items():
        if found is None:
            connection.execute(delete(_DEVICE).where(_DEVICE.c.id == device))
    for device, wanted in draft.desired.items():
        if wanted is None:
            connection.execute(delete(_DESIRED).where(_DESIRED.c.device == device))
    insert(connection, IssuedRow, (rows.issued_values(each, json[id(each.models)]) for each in draft.issued))
    for saved in draft.rollouts.values():
        _write_rollout(connection, saved)
    insert(connection, PointRow, (rollout_rows.point_values(rollout, point) for rollout, point in draft.points))
    upsert(connection, BaselineRow, map(rows.baseline_values, draft.baselines.values()))
    insert(connection, EventRow, (rows.event_values(event, at) for event, at in draft.events.values()))
    insert(connection, NoteRow, map(rows.note_values, draft.notes))


def _write_rollout(connection: Connection, saved: SavedRollout) -> None:
    before, after, changes = saved.before, saved.after, saved.changes
    header = [rollout_rows.rollout_values(after)]
    members: Iterable[Member] = after.members.values()
    controls: Iterable[Control] = after.controls.values()
    if before is None:
        insert(connection, RolloutRow, header)
    else:
        upsert(connection, RolloutRow, header)
        members = (after.members[key] for key in sorted(changes.members))
        controls = (after.controls[key] for key in sorted(changes.controls))
    binned = {} if before is None else {key: stratum.latency for key, stratum in before.strata.items()}
    strata = (each for key, each in after.strata.items() if each.latency != binned.get(key, ()))
    said = 0 if before is None else len(before.verdicts)
    verdicts = enumerate(after.verdicts[said:], said)
    upsert(connection, MemberRow, (rollout_rows.member_values(after.id, member) for member in members))
    upsert(connection, ControlRow, (rollout_rows.control_values(after.id, control) for control in controls))
    upsert(connection, StratumRow, (rollout_rows.stratum_values(after.id, stratum) for stratum in strata))
    insert(connection, VerdictRow, (rollout_rows.verdict_values(after.id, number, each) for number, each in verdicts))
