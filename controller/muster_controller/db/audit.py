"""The audit log: appended in the transaction of the change that it tells of, each line chained to the one before.

    hash(n) = SHA-256(hash(n-1) + canonical JSON of line n)

`append` locks the head row, so that lines are numbered without a gap whoever writes. Nothing here updates or deletes.
"""

from dataclasses import asdict, dataclass
from hashlib import sha256

import msgspec
from sqlalchemy import Connection, insert, select, update

from muster_controller.acting import Acting
from muster_controller.db.tables import AuditHeadRow, AuditRow, table

_AUDIT, _HEAD = table(AuditRow), table(AuditHeadRow)


@dataclass(frozen=True)
class Line:
    """One change, as it is hashed."""

    ordinal: int
    at: float
    actor: str
    action: str
    """What was done, such as `rollout.abort`."""
    subject: str
    detail: str
    reason: str
    request_id: str


def chained(before: str, line: Line) -> str:
    """Return the hash of `line` after a line of the hash `before` (hex; empty before the first)."""
    return sha256(before.encode() + msgspec.json.encode(asdict(line), order="sorted")).hexdigest()


def append(connection: Connection, who: Acting, action: str, subject: str, detail: str, at: float) -> Line:
    """Add one line in the transaction of `connection`."""
    head = connection.execute(select(_HEAD.c.ordinal, _HEAD.c.hash).with_for_update()).one()
    line = Line(head.ordinal + 1, at, who.actor, action, subject, detail, who.reason, who.request_id)
    digest = chained(head.hash, line)
    connection.execute(insert(_AUDIT).values(**asdict(line), hash=digest))
    connection.execute(update(_HEAD).values(ordinal=line.ordinal, hash=digest))
    return line
