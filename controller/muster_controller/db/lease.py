"""The writer's row: how often the database was written (the fence), and who leads until when (the lease).

    fence    every write transaction locks the row, compares `generation` with what this process saw last, and adds one
    lease    one controller at a time leads: it renews in time, releases at its end, or is followed when time is up

The fence alone keeps every outcome right; the lease keeps two controllers from doing the same work in turns.

Whose clock: on PostgreSQL the server's, so those of the controllers do not matter. A SQLite file has no server, but all
its users are on one machine: they count the seconds since it booted, which nobody can set, and a lease of another boot
is over. Where the system tells no boot, the wall clock serves; a lease that would last longer than any can is over.

Everything here happens inside a transaction of the caller's.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

LEASE_S_MAX = 300.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Lead:
    """Who leads now."""

    holder: str
    url: str
    """Of its API."""
    is_ours: bool


@dataclass(frozen=True)
class Writer:
    """The row, and the time by its clock."""

    generation: int
    holder: str
    url: str
    until: float
    clock: str
    now: float

    @property
    def is_led(self) -> bool:
        """Whether somebody holds a lease that has not run out."""
        return self.holder != "" and self.now < self.until <= self.now + LEASE_S_MAX


def lock_writer(connection: Connection) -> int:
    """Wait for the row, keep it until the transaction ends, and return the generation."""
    locking = " FOR UPDATE" if connection.dialect.name == "postgresql" else ""  # SQLite began with the lock.
    found = connection.exec_driver_sql(f"SELECT generation FROM writer WHERE id = 1{locking}")
    return int(found.scalar_one())


def set_generation(connection: Connection, generation: int) -> None:
    connection.exec_driver_sql(f"UPDATE writer SET generation = {generation:d} WHERE id = 1")


def read_writer(connection: Connection) -> Writer:
    """Return the row, locked."""
    lock_writer(connection)
    row = connection.exec_driver_sql("SELECT generation, holder, url, until, clock FROM writer WHERE id = 1").one()
    clock, now = _clock(connection)
    until = float(row.until) if row.clock == clock else 0.0
    return Writer(int(row.generation), str(row.holder), str(row.url), until, clock, now)


def write_lease(connection: Connection, writer: Writer, holder: str, url: str, ttl_s: float) -> None:
    """Give the lease to `holder` for `ttl_s` from now; an empty `holder` leaves it to whoever asks next."""
    mark = "%s" if connection.dialect.name == "postgresql" else "?"
    connection.exec_driver_sql(
        f"UPDATE writer SET holder = {mark}, url = {mark}, until = {mark}, clock = {mark} WHERE id = 1",
        (holder, url, writer.now + ttl_s, writer.clock),
    )


def _clock(connection: Connection) -> tuple[str, float]:
    """Return which clock counts here, and its seconds."""
    if connection.dialect.name == "postgresql":
        # Not `now()`: that is when the transaction began, before it waited for the row.
        return "server", float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())
    try:
        return f"boot {BOOT_ID.read_text().strip()}", time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return "wall", time.time()
