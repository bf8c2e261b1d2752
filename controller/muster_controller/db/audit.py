"""The audit log: appended in the transaction of the change that it tells of, each line chained to the one before.

`append` locks the head row, so that lines are numbered without a gap whoever writes. Nothing here updates or deletes.

Locks are taken in one order everywhere: the ledger's writer row, then whatever rows the transaction changes, and the
head row last. So call `append` as the last thing of a transaction, and with everything that it has to tell at once; it
then holds the head for no longer than the commit takes. On SQLite there is one lock, taken at the beginning: a side
transaction waits for the ledger's commit, and the other way round, up to ten seconds. So no transaction may wait for
anything else while it is open, least of all for the fleet thread.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import msgspec
from sqlalchemy import Connection, Engine, RowMapping, insert, select, update
from sqlalchemy.exc import IntegrityError

from muster_controller.acting import REASON_MAX, Acting
from muster_controller.audit.audited import Entry
from muster_controller.audit.chain import BEGIN, Anchor, Ended, Garbled, Item, Line, Stored, chained
from muster_controller.db.engine import Database
from muster_controller.db.errors import LedgerUnavailable
from muster_controller.db.rows import text
from muster_controller.db.tables import AuditHeadRow, AuditRow, table

__all__ = ["AuditReader", "Entry", "Line", "append", "append_all", "chained"]

NAME_MAX = 256  # Characters of an actor, an action, a subject or the name of a request.
DETAIL_MAX = 4000  # Characters.
PAGE = 1000  # Rows a read transaction.
_AUDIT, _HEAD = table(AuditRow), table(AuditHeadRow)
_COLUMNS = tuple(_AUDIT.c)


def append(connection: Connection, who: Acting, action: str, subject: str, detail: str, at: float) -> Line:
    """Add one line in the transaction of `connection`, as the last thing that it does. Raises as `append_all`."""
    (line,) = append_all(connection, [Entry(who, action, subject, detail, at)])
    return line


def append_all(connection: Connection, entries: Sequence[Entry]) -> list[Line]:
    """Add lines in the transaction of `connection`, as the last thing that it does.

    Raises:
        LedgerUnavailable: somebody else wrote into the tables of the log; nothing can be added until that is mended.
    """
    if not entries:
        return []
    head = _head(connection, is_locked=True)
    if head is None:
        raise _meddled(connection, "its head row is missing")
    lines: list[Line] = []
    digests: list[str] = []
    digest = head.hash
    for number, entry in enumerate(entries, head.ordinal + 1):
        line = _line(number, entry)
        digest = chained(digest, line)
        lines.append(line)
        digests.append(digest)
    rows = [{**asdict(line), "hash": digest} for line, digest in zip(lines, digests, strict=True)]
    try:
        connection.execute(insert(_AUDIT), rows)
    except IntegrityError as error:
        raise _meddled(connection, f"there is a line {lines[0].ordinal} already") from error
    connection.execute(update(_HEAD).where(_HEAD.c.id == 1).values(ordinal=lines[-1].ordinal, hash=digest))
    return lines


def _line(ordinal: int, entry: Entry) -> Line:
    """Return the line as every database gives it back, and bounded: what is hashed is what is kept."""
    who = entry.who
    return Line(
        ordinal,
        float(entry.at),
        text(who.actor[:NAME_MAX]),
        text(entry.action[:NAME_MAX]),
        text(entry.subject[:NAME_MAX]),
        text(entry.detail[:DETAIL_MAX]),
        text(who.reason[:REASON_MAX]),
        text(who.request_id[:NAME_MAX]),
    )


def _meddled(connection: Connection, said: str) -> LedgerUnavailable:
    label = connection.engine.url.set(query={}).render_as_string(hide_password=True)
    return LedgerUnavailable(label, f"somebody wrote into the audit log: {said}; `muster audit verify` says where")


class AuditReader:
    """Reads the log from any thread. Every method raises LedgerUnavailable when the database cannot be read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._engine: Engine = database.open_reader()

    @property
    def label(self) -> str:
        return self._database.label

    def close(self) -> None:
        self._engine.dispose()

    def head(self) -> Anchor | None:
        """Return the head; None: its row is missing."""
        with self._database.translated(), self._engine.begin() as connection:
            return _head(connection)

    def line(self, ordinal: int) -> Stored | None:
        return next(iter(self.lines(before=ordinal + 1, after=ordinal - 1, limit=1)), None)

    def lines(
        self,
        *,
        actor: str | None = None,
        subject: str | None = None,
        action: str | None = None,
        request_id: str | None = None,
        since: float | None = None,
        until: float | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int,
    ) -> list[Stored]:
        """Return the newest first, between the ordinals `after` and `before`; what is no line is left out.

        Args:
            action: The whole of it, or with a dot at its end the beginning: `rollout.`.
            since: Unix seconds; lines of this moment are in it.
            until: Unix seconds; lines of this moment are in it.
        """
        query = select(*_COLUMNS).order_by(_AUDIT.c.ordinal.desc()).limit(limit)
        for column, wanted in ((_AUDIT.c.actor, actor), (_AUDIT.c.subject, subject), (_AUDIT.c.request_id, request_id)):
            if wanted is not None:
                query = query.where(column == text(wanted))
        if action is not None:
            said, column = text(action), _AUDIT.c.action
            query = query.where(column.startswith(said, autoescape=True) if said.endswith(".") else column == said)
        if since is not None:
            query = query.where(_AUDIT.c.at >= since)
        if until is not None:
            query = query.where(_AUDIT.c.at <= until)
        if before is not None:
            query = query.where(_AUDIT.c.ordinal < before)
        if after is not None:
            query = query.where(_AUDIT.c.ordinal > after)
        with self._database.translated(), self._engine.begin() as connection:
            found = map(_to_stored, connection.execute(query).mappings())
            return [each for each in found if isinstance(each, Stored)]

    def anchor(self, ordinal: int) -> Anchor | None:
        """Return the hash of the line `ordinal`, the beginning for 0; None: there is no such line."""
        if ordinal == 0:
            return BEGIN
        found = self.line(ordinal)
        return None if found is None else Anchor(ordinal, found.hash)

    def walk(self, after: int = 0) -> Iterator[Item]:
        """Yield every row behind `after` as it is kept, and then the head as of the same moment as the last row.

        Lines that are appended meanwhile are in it. No transaction is open while the caller works.
        """
        last: int | None = after or None  # From the very first, were it -1: a row that somebody slipped in.
        while True:
            query = select(*_COLUMNS).order_by(_AUDIT.c.ordinal).limit(PAGE)
            if last is not None:
                query = query.where(_AUDIT.c.ordinal > last)
            with self._database.translated(), self._engine.begin() as connection:
                rows = connection.execute(query).mappings().all()
                head = _head(connection)
            yield from map(_to_stored, rows)
            if len(rows) < PAGE:
                yield Ended(head)
                return
            last = rows[-1]["ordinal"]


def _head(connection: Connection, *, is_locked: bool = False) -> Anchor | None:
    query = select(_HEAD.c.ordinal, _HEAD.c.hash).where(_HEAD.c.id == 1)
    found = connection.execute(query.with_for_update() if is_locked else query).first()
    if found is None or not isinstance(found.ordinal, int) or not isinstance(found.hash, str):
        return None
    return Anchor(found.ordinal, found.hash)


def _to_stored(row: RowMapping) -> Stored | Garbled:
    """A text that is kept as bytes, or a number as text, could hash to the same: only what fits is a line."""
    try:
        return msgspec.convert(dict(row), Stored, strict=True)
    except msgspec.ValidationError as error:
        ordinal, digest = row["ordinal"], row["hash"]
        number = ordinal if isinstance(ordinal, int) else None
        said = f"row {ordinal} is not as it was written ({error})"
        return Garbled(said, number, digest if isinstance(digest, str) else None)
