"""Alerts and silences as rows. What people order is written with its line of the audit log, in one transaction.

Decides nothing: an alert's life is `core.alerts.machine`. The machine and the people own different columns: who
acknowledges in the moment of a look loses nothing.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from sqlalchemy import Connection, RowMapping, delete, func, insert, or_, select, update

from muster_controller.acting import acting
from muster_controller.core.alerts.finding import Fact, Severity
from muster_controller.core.alerts.machine import Alert, Silence, State, Step
from muster_controller.db.audit import append
from muster_controller.db.rows import text
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import AlertRow, SilenceRow, table
from muster_controller.errors import Conflict, NotFound

ACTIVE_MAX: Final = 5000
"""Alerts that are looked at together; beyond that it is one trouble, whatever the rules say."""
SILENCES_MAX: Final = 500
KEEP_S: Final = 90 * 86_400.0
"""How long an alert is kept after it ended."""
_ALERT, _SILENCE = table(AlertRow), table(SilenceRow)
_WRITERS = 0x4D757374657247  # The advisory lock of those who step; the number says "MusterG".
_facts: msgspec.json.Decoder[dict[str, Fact]] = msgspec.json.Decoder(dict[str, Fact])


class AlertStore:
    """From any thread. Everything raises LedgerUnavailable where the database is away."""

    def __init__(self, side: SideDatabase, clock: Callable[[], float]) -> None:
        self._side = side
        self._clock = clock

    # -- alerts --------------------------------------------------------------------------------------------------------

    def current(self, ended_since: float) -> list[Alert]:
        """Return what is pending or fires, and what ended from then on."""
        query = select(_ALERT).where(or_(_ALERT.c.state != State.RESOLVED.value, _ALERT.c.resolved_at >= ended_since))
        with self._side.reading() as connection:
            rows = connection.execute(query.order_by(_ALERT.c.began_at).limit(ACTIVE_MAX)).mappings().all()
        return [_alert(row) for row in rows]

    def alerts(
        self,
        *,
        states: Sequence[State] = (),
        rule: str | None = None,
        subject: str | None = None,
        since: float | None = None,
        after: str | None = None,
        limit: int,
    ) -> list[Alert]:
        """Return the newest first.

        Args:
            states: Empty: those that fire, and those that ended.
            since: Only those that had not ended then.
            after: Only those behind this one; none where it is not known.
        """
        wanted = [each.value for each in states or (State.FIRING, State.RESOLVED)]
        query = select(_ALERT).where(_ALERT.c.state.in_(wanted))
        if rule is not None:
            query = query.where(_ALERT.c.rule == text(rule))
        if subject is not None:
            query = query.where(_ALERT.c.subject == text(subject))
        if since is not None:
            query = query.where(or_(_ALERT.c.resolved_at.is_(None), _ALERT.c.resolved_at >= since))
        if after is not None:
            began_at = select(_ALERT.c.began_at).where(_ALERT.c.id == text(after)).scalar_subquery()
            query = query.where(
                (_ALERT.c.began_at < began_at) | ((_ALERT.c.began_at == began_at) & (_ALERT.c.id < text(after)))
            )
        query = query.order_by(_ALERT.c.began_at.desc(), _ALERT.c.id.desc()).limit(limit)
        with self._side.reading() as connection:
            return [_alert(row) for row in connection.execute(query).mappings()]

    def alert(self, alert: str) -> Alert:
        """Raises NotFound."""
        with self._side.reading() as connection:
            return _find(connection, alert)

    def take(self, step: Step, write: Callable[[Connection], None] = lambda _connection: None) -> list[Alert]:
        """Keep what a look made of the alerts, and whatever `write` writes, in one transaction.

        Returns:
            What was kept. An alert that another controller began a moment before is not.
        """
        kept: list[Alert] = []
        with self._side.transaction() as connection:
            if connection.dialect.name == "postgresql":  # SQLite began with its only lock.
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")
            for alert in step.saved:
                done = connection.execute(update(_ALERT).where(_ALERT.c.id == alert.id).values(**_moving(alert)))
                if not done.rowcount:
                    if _is_active(connection, alert):
                        continue
                    connection.execute(insert(_ALERT).values(**_beginning(alert), **_moving(alert)))
                kept.append(alert)
            for name in step.dropped:
                connection.execute(delete(_ALERT).where(_ALERT.c.id == name, _ALERT.c.state == State.PENDING.value))
            write(connection)
        return kept

    def acknowledge(self, alert: str, comment: str) -> Alert:
        """Say that somebody looks at it. Raises NotFound, and Conflict: it is over."""
        who, now = acting(), self._clock()
        with self._side.transaction() as connection:
            found = _find(connection, alert)
            if found.state is State.RESOLVED:
                raise Conflict(f"alert {alert} is over; `muster alerts` shows what fires")
            values = {"acknowledged_by": who.actor, "acknowledged_at": now, "comment": text(comment)}
            connection.execute(update(_ALERT).where(_ALERT.c.id == found.id).values(**values))
            append(connection, who, "alert.acknowledge", found.id, f"{found.rule} {found.subject}", now)
        return self.alert(alert)

    def counts(self) -> dict[str, int]:
        """Return how many alerts fire, by severity."""
        query = select(_ALERT.c.severity, func.count()).where(_ALERT.c.state == State.FIRING.value)
        with self._side.reading() as connection:
            rows = connection.execute(query.group_by(_ALERT.c.severity)).all()
        return {str(severity): int(count) for severity, count in rows}

    def sweep(self) -> None:
        """Forget what ended long ago."""
        now = self._clock()
        with self._side.transaction() as connection:
            connection.execute(delete(_ALERT).where(_ALERT.c.resolved_at < now - KEEP_S))
            connection.execute(delete(_SILENCE).where(_SILENCE.c.ends_at < now - KEEP_S))

    # -- silences ------------------------------------------------------------------------------------------------------

    def silences(self, *, ended: bool = False) -> list[Silence]:
        """Return those that have not ended (or all, with `ended`), the one that ends first, first."""
        query = select(_SILENCE).order_by(_SILENCE.c.ends_at, _SILENCE.c.id).limit(SILENCES_MAX)
        if not ended:
            query = query.where(_SILENCE.c.ends_at > self._clock())
        with self._side.reading() as connection:
            return [_silence(row) for row in connection.execute(query).mappings()]

    def silence(self, silence: Silence) -> None:
        """Add one. Raises Conflict: there are too many."""
        now = self._clock()
        values = {name: getattr(silence, name) for name in silence.__dataclass_fields__}
        values |= {name: text(values[name]) for name in ("rule", "subject", "reason")}
        until = datetime.fromtimestamp(silence.ends_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        said = f"{silence.rule or 'every rule'}, {silence.subject or 'every subject'}, until {until}"
        with self._side.transaction() as connection:
            many = select(func.count()).select_from(_SILENCE).where(_SILENCE.c.ends_at > now)
            if connection.execute(many).scalar_one() >= SILENCES_MAX:
                raise Conflict(f"there are {SILENCES_MAX} silences; end some with `muster alert unsilence`")
            connection.execute(insert(_SILENCE).values(**values))
            append(connection, acting(), "silence.create", silence.id, said, now)

    def end_silence(self, silence: str) -> None:
        """End it now. Raises NotFound: there is none, or it has ended."""
        now = self._clock()
        with self._side.transaction() as connection:
            query = update(_SILENCE).where(_SILENCE.c.id == text(silence), _SILENCE.c.ends_at > now)
            if not connection.execute(query.values(ends_at=now)).rowcount:
                raise NotFound("silence", silence, "`muster alert silences` shows what there is")
            append(connection, acting(), "silence.end", silence, "", now)


def _find(connection: Connection, alert: str) -> Alert:
    row = connection.execute(select(_ALERT).where(_ALERT.c.id == text(alert))).mappings().first()
    if row is None:
        raise NotFound("alert", alert, "`muster alerts` shows what there is")
    return _alert(row)


def _is_active(connection: Connection, alert: Alert) -> bool:
    query = select(_ALERT.c.id).where(_ALERT.c.rule == alert.rule, _ALERT.c.subject == text(alert.subject))
    return connection.execute(query.where(_ALERT.c.state != State.RESOLVED.value)).first() is not None


def _beginning(alert: Alert) -> dict[str, object]:
    """Return the columns that are written once; an acknowledgement is people's to write."""
    return {
        "id": alert.id,
        "rule": alert.rule,
        "subject": text(alert.subject),
        "began_at": alert.began_at,
        "times": alert.times,
        "acknowledged_by": "",
        "comment": "",
    }


def _moving(alert: Alert) -> dict[str, object]:
    """Return the columns that a look writes."""
    return {
        "severity": alert.severity.value,
        "state": alert.state.value,
        "summary": text(alert.summary),
        "facts": msgspec.json.encode(alert.facts),
        "changed_at": alert.changed_at,
        "seen_at": alert.seen_at,
        "resolved_at": alert.resolved_at,
        "told_at": alert.told_at,
    }


def _alert(row: RowMapping) -> Alert:
    return Alert(
        id=row["id"],
        rule=row["rule"],
        subject=row["subject"],
        severity=Severity(row["severity"]),
        state=State(row["state"]),
        summary=row["summary"],
        began_at=row["began_at"],
        changed_at=row["changed_at"],
        seen_at=row["seen_at"],
        facts=_facts.decode(bytes(row["facts"])),
        resolved_at=row["resolved_at"],
        told_at=row["told_at"],
        times=row["times"],
        acknowledged_by=row["acknowledged_by"],
        acknowledged_at=row["acknowledged_at"],
        comment=row["comment"],
    )


def _silence(row: RowMapping) -> Silence:
    return Silence(**{name: row[name] for name in Silence.__dataclass_fields__})
