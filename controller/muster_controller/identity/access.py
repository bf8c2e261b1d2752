"""Keeps what follows from rows and time in step: certificates of our own, revocation lists, and what brokers know.

One thread: woken after every change of an identity, and by itself once a minute, so that what another controller or
the command line changed is taken over too. Bursts are told together. Whatever fails is tried again; what a broker was
not told yet, the revocation list and the rows say already.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from muster_controller.db.errors import LedgerError
from muster_controller.identity.ca import FleetCa
from muster_controller.identity.errors import IdentityError
from muster_controller.identity.service import EnrolmentService

EVERY_S = 60.0
RETRY_S = 5.0
GATHER_S = 0.2
"""A broker reads its whole configuration again for each change: devices that enrol together are told together."""
HISTORY_S = 90 * 86_400.0
PRUNE_S = 86_400.0

log = structlog.get_logger()


class Gatekeeper(Protocol):
    """What lets devices in by certificates of ours: an embedded broker, the device port."""

    def refresh(self) -> None:
        """Let in who may come now, and nobody else; cut the connections of those who may not."""
        ...

    def reload_certificates(self) -> None:
        """Take the certificates of our own anew, for connections to come."""
        ...


class AccessThread:
    """Settles at `start`, and then from a thread of its own until `stop`."""

    def __init__(
        self,
        ca: FleetCa,
        service: EnrolmentService,
        names: Sequence[str],
        clock: Callable[[], float],
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            names: host names and addresses that stand in the server's certificate.
            rest: what else follows from the rows; called each time, at the end. It raises what `settle` may.
        """
        self._rest = rest
        self._ca = ca
        self._service = service
        self._names = tuple(names)
        self._clock = clock
        self._keepers: list[Gatekeeper] = []
        self._changed = threading.Condition()
        self._asked = 0
        self._settled = 0
        self._is_stopping = False
        self._told: object = None
        self._tell_again = False
        self._is_failing = False
        self._prune_at = 0.0
        self._ca_was = ""
        self._thread = threading.Thread(target=self._run, name="access", daemon=True)

    def add(self, keeper: Gatekeeper) -> None:
        """Tell `keeper` from now on. Before `start`."""
        self._keepers.append(keeper)

    def prepare(self) -> None:
        """Write what brokers and the device port need to start. Raises IdentityError, LedgerError, OSError."""
        self.settle(self._clock())

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(10.0)

    def wake(self) -> None:
        """Something changed; it is taken over soon."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def wait_settled(self, timeout_s: float) -> bool:
        """Return whether all that was changed before this call has reached the brokers within `timeout_s`."""
        with self._changed:
            asked = self._asked
            return self._changed.wait_for(lambda: self._settled >= asked, timeout_s)

    def settle(self, now: float) -> None:
        """Do all of it once. Raises IdentityError, LedgerError, OSError, and what a gatekeeper raises."""
        ca_changed = self._ca.refresh(now)
        own = self._ca.renew_own(self._names, now)
        for issued in own:
            self._service.record(issued)
            log.info("certificate_renewed", name=issued.name, expires_at=issued.expires_at)
        self._tell_of_ca()
        crl_changed = self._ca.write_crl(self._service.revoked_certificates(), now)
        if own or ca_changed:
            for keeper in self._keepers:
                keeper.reload_certificates()
        telling = (self._service.admitted(), self._service.barred(), self._service.mixers())
        is_news = crl_changed or ca_changed or telling != self._told
        if is_news or self._tell_again:
            for keeper in self._keepers:
                keeper.refresh()
        # Once more a minute later: a broker that was just coming up may have cut nobody.
        self._told, self._tell_again = telling, is_news
        if now >= self._prune_at:
            self._service.prune(now - HISTORY_S)
            self._prune_at = now + PRUNE_S
        self._rest()

    def _tell_of_ca(self) -> None:
        """Write into the audit log that the CA is another: whoever changed its files wrote into no database."""
        here = "is here" if self._ca.has_root_key else "is not here"
        found = f"intermediate {self._ca.signer_pin[:16]}, root {self._ca.pin[:16]}, the root's key {here}"
        if self._ca_was not in ("", found):
            self._service.note("ca.change", self._ca.fleet, found)
        self._ca_was = found

    def _run(self) -> None:
        wait_s = EVERY_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopping or self._asked > self._settled, wait_s)
                if self._is_stopping:
                    return
                self._changed.wait_for(lambda: self._is_stopping, GATHER_S)
                asked = self._asked
            wait_s = EVERY_S if self._try() else RETRY_S
            with self._changed:
                if wait_s == EVERY_S:
                    self._settled = max(self._settled, asked)
                    self._changed.notify_all()
                elif not self._is_stopping:
                    self._changed.wait_for(lambda: self._is_stopping, RETRY_S)

    def _try(self) -> bool:
        try:
            self.settle(self._clock())
        except (IdentityError, LedgerError, OSError) as error:
            if not self._is_failing:
                log.warning(
                    "access_lost", error=str(error), remedy="revoked devices may stay connected until it is back"
                )
            self._is_failing = True
            return False
        except Exception:  # A broker's own trouble must not end this thread.
            log.exception("access_failed")
            return False
        if self._is_failing:
            self._is_failing = False
            log.info("access_back")
        return True
