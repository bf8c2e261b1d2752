"""Rollouts with counts in the place of devices: the database counts, three questions for a whole page of them."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, Float, cast, func, select

from muster_controller.core.rollout.alike import Alike, Summed
from muster_controller.core.rollout.state import TAKEN, Control, Member, Outcome, Rollout, stratified
from muster_controller.db import rollout_rows
from muster_controller.db.tables import ControlRow, MemberRow, StratumRow, table
from muster_shared.ids import DeviceId

_MEMBER = table(MemberRow).c
_CONTROL = table(ControlRow).c
_STRATUM = table(StratumRow)
_ANY = DeviceId("")  # Which device it is does not count,
_SOME_TIME = 0.0  # nor when something was.


def summed(connection: Connection, headers: Sequence[Rollout]) -> list[Summed]:
    """Return `headers` with their strata, and their devices by what counts."""
    names = [header.id for header in headers]
    groups: dict[str, list[Alike]] = {name: [] for name in names}
    for name, alike in [*_members(connection, names), *_controls(connection, names)]:
        groups[name].append(alike)
    bins: dict[str, list[StratumRow]] = {}
    for row in connection.execute(select(*_STRATUM.columns).where(_STRATUM.c.rollout.in_(names))).all():
        bins.setdefault(row.rollout, []).append(row)  # type: ignore[arg-type]  # A plain row has its columns.
    return [
        Summed(
            replace(
                header,
                strata=stratified(
                    ((alike.each, alike.devices) for alike in groups[header.id]),
                    rollout_rows.to_latency(bins.get(header.id, ())),
                ),
            ),
            tuple(groups[header.id]),
        )
        for header in headers
    ]


def _members(connection: Connection, names: Sequence[str]) -> list[tuple[str, Alike]]:
    kinds = (
        _MEMBER.rollout,
        _MEMBER.device_class,
        _MEMBER.wave,
        _MEMBER.outcome,
        _MEMBER.returned,
        _MEMBER.disagreed,
        _MEMBER.assigned_at.is_not(None).label("is_told"),
        _MEMBER.deferred_until.is_not(None).label("is_deferred"),
        _MEMBER.retry_at.is_not(None).label("is_retried"),
        ((_MEMBER.cause == TAKEN) | (func.coalesce(_MEMBER.second, "") == Outcome.LEFT.value)).label("is_taken"),
    )
    # What devices claim to have fetched is theirs to invent: as whole numbers the sum could overflow.
    fetched = func.sum(cast(_MEMBER.bytes_fetched, Float))
    query = select(*kinds, func.count(), fetched).where(_MEMBER.rollout.in_(names)).group_by(*kinds)
    return [
        (
            row.rollout,
            Alike(
                Member(
                    device=_ANY,
                    device_class=row.device_class,
                    position=0,
                    wave=row.wave,
                    outcome=Outcome(row.outcome),
                    returned=bool(row.returned),
                    disagreed=None if row.disagreed is None else bool(row.disagreed),
                    assigned_at=_SOME_TIME if row.is_told else None,
                    deferred_until=_SOME_TIME if row.is_deferred else None,
                    retry_at=_SOME_TIME if row.is_retried else None,
                    cause=TAKEN if row.is_taken else "",
                ),
                row[len(kinds)],
                int(row[len(kinds) + 1]),
            ),
        )
        for row in connection.execute(query)
    ]


def _controls(connection: Connection, names: Sequence[str]) -> list[tuple[str, Alike]]:
    kinds = (
        _CONTROL.rollout,
        _CONTROL.device_class,
        _CONTROL.wave,
        _CONTROL.outcome,
        _CONTROL.assigned_at.is_not(None).label("is_told"),
    )
    query = select(*kinds, func.count()).where(_CONTROL.rollout.in_(names)).group_by(*kinds)
    return [
        (
            row.rollout,
            Alike(
                Control(
                    device=_ANY,
                    device_class=row.device_class,
                    wave=row.wave,
                    partner=_ANY,
                    assigned_at=_SOME_TIME if row.is_told else None,
                    outcome=Outcome(row.outcome),
                ),
                row[len(kinds)],
                0,
            ),
        )
        for row in connection.execute(query)
    ]
