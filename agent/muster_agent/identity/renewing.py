"""Keeps the certificate of a running agent current: looks at the folder, asks in time, lets the link come again.

A task of the agent's loop that sleeps nearly always. When is `core.renewal`'s; asking is another process's (`asking`).
Somebody else may renew as well (`muster-agent renew`): what is in the folder counts, not what was done here.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

import msgspec
import structlog

from muster_agent.core import renewal
from muster_agent.core.renewal import Declined, Failed, Lease
from muster_agent.errors import IdentityDamaged
from muster_agent.identity.folder import Enrolled, IdentityFolder
from muster_shared.link import BrokerAddress, LinkCounters, parse_broker_url

LOOK_S = 60.0

log = structlog.get_logger()

Ask = Callable[[], Awaitable[Declined | Failed | None]]
"""Asks for a new certificate; None: it is in the folder."""


class IdentityStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Who this device is, for `/v1/status`. Times are Unix seconds."""

    device: str
    fleet: str
    key: str
    """`file` or `pkcs11`."""
    fingerprint: str
    """SHA-256 of the certificate (DER)."""
    identity_fingerprint: str
    labels: dict[str, str]
    """Those that operators gave it, as of the certificate."""
    expires_at: float
    expires_in_s: float
    """By the controller's clock as far as it is known; negative: it is over."""
    renewed_at: float
    """When the certificate was granted."""
    next_at: float | None
    """When the next one is asked for; None: not any more, `problem` says why."""
    problem: str
    """Why the last renewal failed; empty: it did not."""


class Connection(Protocol):
    """What it needs of `muster_shared.link.Link`."""

    @property
    def is_connected(self) -> bool: ...

    @property
    def counters(self) -> LinkCounters: ...

    def reconnect(self, broker: BrokerAddress | None = None) -> None: ...


class Clock:
    """The controller's time: what it said last and the time since, else this device's, which may be wrong."""

    def __init__(self, wall: Callable[[], float], since_boot: Callable[[], float]) -> None:
        self._wall = wall
        self._since_boot = since_boot
        self._ahead_s: float | None = None
        self._floor_s = -since_boot()

    def now(self) -> float:
        """Return Unix seconds."""
        if self._ahead_s is not None:
            return self._since_boot() + self._ahead_s
        return max(self._wall(), self._since_boot() + self._floor_s)

    def heard(self, server_time: float) -> None:
        """The controller says that it is `server_time` just now."""
        self._ahead_s = server_time - self._since_boot()

    def is_after(self, moment: float) -> None:
        """It cannot be earlier than `moment`."""
        self._floor_s = max(self._floor_s, moment - self._since_boot())


class Renewing:
    """One device's certificates. Everything but `status` belongs to the loop that runs it."""

    def __init__(
        self,
        folder: IdentityFolder,
        enrolled: Enrolled,
        *,
        key_kind: str,
        ask: Ask,
        link: Connection,
        follows_broker: bool,
        random: random.Random,
        wall: Callable[[], float] = time.time,
        since_boot: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        look_s: float = LOOK_S,
    ) -> None:
        """
        Args:
            enrolled: What was current when the link was made.
            link: Reads certificate and key from the folder whenever it comes to the broker.
            follows_broker: Whether the link goes where the newest grant says that the broker is.
            wall: Unix seconds by this device.
            since_boot: Seconds that go on while the device sleeps.
            look_s: How often it looks at least: clocks jump, and others renew.
        """
        self._folder = folder
        self._key_kind = key_kind
        self._ask = ask
        self._link = link
        self._reconnects = 0
        self._follows_broker = follows_broker
        self._broker_url = enrolled.broker_url
        self._random = random
        self._since_boot = since_boot
        self._look_s = look_s
        self._clock = Clock(wall, since_boot)
        self._clock.is_after(enrolled.granted_at)
        self._enrolled = enrolled
        self._renewal = renewal.begin(_lease(enrolled), self._clock.now(), random.random())
        self._seen_at = since_boot()

    def status(self) -> IdentityStatus:
        """Return where it is. Any thread."""
        enrolled, at = self._enrolled, self._renewal
        return IdentityStatus(
            device=enrolled.device,
            fleet=enrolled.fleet,
            key=self._key_kind,
            fingerprint=enrolled.fingerprint,
            identity_fingerprint=enrolled.identity_fingerprint,
            labels=enrolled.labels,
            expires_at=enrolled.expires_at,
            expires_in_s=round(enrolled.expires_at - self._clock.now(), 1),
            renewed_at=enrolled.granted_at,
            next_at=at.ask_at,
            problem=at.problem,
        )

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            pause_s = await self.look()
            await asyncio.sleep(pause_s)

    async def look(self) -> float:
        """Do what is due, and return how long to sleep, seconds."""
        self._notice()
        if self._link.is_connected:
            self._seen_at = self._since_boot()
        came_again = self._link.counters.reconnects != self._reconnects
        if came_again and self._broker_url == self._enrolled.broker_url:
            self._renewal = renewal.connected(self._renewal)
        now = self._clock.now()
        self._renewal = renewal.away(self._renewal, self._since_boot() - self._seen_at, now)
        if renewal.due(self._renewal, now):
            await self._renew()
        now = self._clock.now()
        reconnect_at = self._renewal.reconnect_at
        if reconnect_at is not None and (now >= reconnect_at or not self._link.is_connected):
            self._renewal = renewal.connected(self._renewal)
            log.info("link_renewed", fingerprint=self._enrolled.fingerprint)
            self._broker_url = self._enrolled.broker_url
            self._link.reconnect(parse_broker_url(self._broker_url) if self._follows_broker else None)
        at = renewal.next_at(self._renewal)
        return self._look_s if at is None else min(max(at - now, 0.0), self._look_s)

    async def _renew(self) -> None:
        answer = await self._ask()
        if answer is None:
            if not self._notice(is_fresh=True):
                answer = Failed(
                    "a certificate was granted, but it is not in the folder; look whether it can be written"
                )
            else:
                return
        before = self._renewal
        self._renewal = renewal.not_granted(before, answer, self._clock.now(), self._random.random())
        if self._renewal.problem != before.problem:
            log.warning("certificate_not_renewed", reason=answer.reason, expires_at=before.lease.expires_at)

    def _notice(self, *, is_fresh: bool = False) -> bool:
        """Take over what is current in the folder, and return whether it is another certificate than before."""
        try:
            enrolled = self._folder.current()
        except IdentityDamaged as error:
            if self._renewal.problem != str(error):
                self._renewal = replace(self._renewal, problem=str(error))
                log.error("identity_damaged", error=str(error))  # noqa: TRY400 - It says what to do; a trace does not.
            return False
        if enrolled is None or enrolled.fingerprint == self._enrolled.fingerprint:
            return False
        if is_fresh:
            self._clock.heard(enrolled.granted_at)
        self._clock.is_after(enrolled.granted_at)
        self._enrolled = enrolled
        self._reconnects = self._link.counters.reconnects
        self._renewal = renewal.granted(self._renewal, _lease(enrolled), self._clock.now(), self._random.random())
        log.info("certificate_renewed", fingerprint=enrolled.fingerprint, expires_at=enrolled.expires_at)
        return True


def _lease(enrolled: Enrolled) -> Lease:
    return Lease(enrolled.fingerprint, enrolled.granted_at, enrolled.renew_at, enrolled.expires_at)
