"""What a controller keeps, opened in order: the database, the registry, the audit log, operators, identities.

Nothing runs yet but the device port's socket. `fleet_side` makes the fleet of it, `controller` all the rest.
"""

import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from muster_controller.api.hub import Change, Hub
from muster_controller.audit.book import AuditBook
from muster_controller.audit.checkpoint import open_signer
from muster_controller.config import ServerConfig
from muster_controller.db.audit import AuditReader
from muster_controller.db.engine import find_database
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.operator_store import OperatorStore
from muster_controller.db.side import SideDatabase
from muster_controller.db.snapshot import Touched
from muster_controller.identity.desk import IdentityDesk
from muster_controller.operators.local import FILE as LOCAL_TOKEN_FILE
from muster_controller.operators.local import write_local
from muster_controller.operators.passwords import Passwords
from muster_controller.operators.service import Operators
from muster_controller.registry.blobs import BlobStore
from muster_controller.registry.keys import encode_online_keys
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_controller.releases import Releases
from muster_shared.ids import FleetId

DATABASE_FILE: Final = "muster.db"


@dataclass(frozen=True)
class Opened:
    config: ServerConfig
    fleet_id: FleetId
    session: str
    """Of this start, in hex."""
    hub: Hub
    ledger: SqlLedger
    side: SideDatabase
    """The same database, for what is no part of the ledger."""
    operators: Operators
    audit: AuditBook
    releases: Releases
    identity: IdentityDesk

    def online_keys(self) -> bytes:
        """Return the public halves of this controller's keys."""
        return _online_keys(self.config)


def open_data(config: ServerConfig, fleet_id: FleetId, stack: ExitStack) -> Opened:
    """Open everything, to be closed with `stack`. Raises LedgerError, RegistryError, IdentityError."""
    create_online_keys(config.data)
    session = secrets.token_hex(4)
    hub = Hub(session)
    where = config.database or config.data / DATABASE_FILE
    ledger = stack.enter_context(SqlLedger(where, time.time, lambda touched: hub.changed(*_told(touched))))
    side = stack.enter_context(SideDatabase(find_database(where)))
    local = write_local(config.data)
    stack.callback((config.data / LOCAL_TOKEN_FILE).unlink, missing_ok=True)
    operators = Operators(OperatorStore(side), Passwords(), local, time.time)
    audit_reader = AuditReader(find_database(where))
    stack.callback(audit_reader.close)
    audit = AuditBook(audit_reader, fleet_id, open_signer(config.data, fleet_id), time.time)
    blobs = BlobStore(config.data / "blobs")
    blobs.sweep()
    releases = Releases(TufRepository(config.data), blobs)
    releases.refresh(datetime.now(UTC))
    identity = IdentityDesk(
        config,
        fleet_id,
        side,
        lambda: _newest_root(releases),
        time.time,
        lambda: _online_keys(config),
    )
    stack.callback(identity.stop)
    return Opened(config, fleet_id, session, hub, ledger, side, operators, audit, releases, identity)


def _online_keys(config: ServerConfig) -> bytes:
    return encode_online_keys(create_online_keys(config.data))


def _told(touched: Touched) -> list[Change]:
    told = [Change("device", device) for device in sorted(touched.devices)]
    told += [Change("rollout", rollout) for rollout in sorted(touched.rollouts)]
    return [*told, Change("note", "all")] if touched.notes else told


def _newest_root(releases: Releases) -> bytes:
    for message in releases.trust_messages():
        if message.role == "root":
            newest = max(message.files, key=lambda name: int(name.partition(".")[0]))
            return message.files[newest].encode()
    return b""
