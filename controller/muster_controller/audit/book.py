"""The audit log as the API and the command line have it: read, checked, exported, and its head signed."""

from collections.abc import Callable, Iterator, Sequence

import msgspec
import structlog

from muster_controller.audit import export
from muster_controller.audit.chain import BEGIN, Anchor, Ended, Item, Report, Stored, verify
from muster_controller.audit.checkpoint import Checkpoint, Signer, unsigned
from muster_controller.db.audit import AuditReader
from muster_controller.errors import AuditBroken, NotFound

SAY_HEAD_S = 3600.0

log = structlog.get_logger()


class AuditBook:
    """From any thread. Every method raises LedgerUnavailable when the database cannot be read."""

    def __init__(self, reader: AuditReader, fleet: str, signer: Signer | None, clock: Callable[[], float]) -> None:
        """
        Args:
            signer: None: checkpoints stay unsigned.
        """
        self.reader = reader
        self._fleet = fleet
        self._signer = signer
        self._clock = clock

    def head(self) -> Checkpoint:
        """Return the signed head. Raises AuditBroken when there is none."""
        head = self.reader.head()
        if head is None:
            raise AuditBroken("the audit log has no head row any more; `muster audit verify` says what else is missing")
        return self._checkpoint(head)

    def say_head(self) -> None:
        """Write the head into the program's own log, which is kept elsewhere: it bears witness."""
        head = self.head()
        log.info("audit_head", **msgspec.structs.asdict(head))  # All of it: `verify --since` takes such a line.

    def line(self, ordinal: int) -> Stored:
        """Raises NotFound."""
        found = self.reader.line(ordinal)
        if found is None:
            raise NotFound("audit", str(ordinal))
        return found

    def verify(self, witnessed: Sequence[Anchor] = ()) -> Report:
        """Check the whole of it, row after row."""
        return verify(self.reader.walk(), witnessed=witnessed)

    def export(self, after: int = 0) -> Iterator[bytes]:
        """Yield the lines behind the ordinal `after`, as `audit.export` reads them. Raises NotFound before the first.

        What is no line any more is left out: whoever reads the file finds the gap.
        """
        anchor = BEGIN if after == 0 else Anchor(after, self.line(after).hash)
        return self._lines(anchor)

    def _lines(self, after: Anchor) -> Iterator[bytes]:
        yield export.header(self._fleet, after)
        yield from map(self._written, self.reader.walk(after.ordinal))

    def _written(self, item: Item) -> bytes:
        match item:
            case Stored():
                return export.row(item)
            case Ended(head) if head is not None:
                return export.footer(self._checkpoint(head))
            case _:
                return b""

    def _checkpoint(self, head: Anchor) -> Checkpoint:
        now = self._clock()
        return unsigned(self._fleet, head, now) if self._signer is None else self._signer.sign(head, now)
