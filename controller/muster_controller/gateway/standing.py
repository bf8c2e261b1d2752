"""Whether this controller leads: keeps the lease of the database, and says when that changes.

    STANDING BY ── nobody leads, or the leader's time is up ──▶ LEADING ── another leads, or the database is away ──┐
         ▲                                                                                                       │
         └───────────────────────────────────────────────────────────────────────────────────────────────────────┘

Who leads takes what devices say, lets time pass, and obeys operators; who stands by follows the database, so that its
API shows the fleet as it is. Being wrong about it costs work and no more: every commit is fenced (`db.lease`).
"""

import time
from collections.abc import Callable

import structlog

from muster_controller.db.errors import LedgerUnavailable
from muster_controller.db.lease import Lead
from muster_controller.db.ledger import SqlLedger
from muster_controller.errors import FleetUnavailable

LEASE_S = 15.0  # So long nobody takes over from a leader that died without a word.
RENEW_S = 5.0  # Two renewals may fail.
ASK_S = 2.0  # How often one that stands by asks, and looks what is new.
CATCH_UP_SHARE = 0.1  # Of its time that it spends on reading everything anew.

log = structlog.get_logger()


class Standing:
    """Belongs to the fleet thread; `leads` and `refusal` may be asked from any thread."""

    def __init__(
        self,
        ledger: SqlLedger,
        holder: str,
        url: str,
        *,
        on_lead: Callable[[], None],
        on_stand_by: Callable[[], None],
        lease_s: float = LEASE_S,
        renew_s: float = RENEW_S,
        ask_s: float = ASK_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            holder: a name that no other running controller has, and that this one has again after a restart.
            url: of this controller's API, which others name to those who ask them.
            on_lead: called in `turn` when this controller begins to lead.
            on_stand_by: called in `turn` or `end` when it does not any more.
        """
        self._ledger = ledger
        self._holder = holder
        self._url = url
        self._on_lead = on_lead
        self._on_stand_by = on_stand_by
        self._lease_s = lease_s
        self._renew_s = renew_s
        self._ask_s = ask_s
        self._monotonic = monotonic
        self._until = float("-inf")
        self._ask_at = float("-inf")
        self._look_at = float("-inf")
        self._is_leading = False
        """As last told to the callbacks."""
        self._lead: Lead | None = None

    @property
    def leads(self) -> bool:
        """Whether the lease is ours and has not run out."""
        return self._is_leading and self._monotonic() < self._until

    @property
    def leader(self) -> Lead | None:
        """Who led when last asked; None: not known."""
        return self._lead

    @property
    def wake_at(self) -> float:
        """When `turn` has something to do, in the seconds of the monotonic clock."""
        return self._ask_at

    def refusal(self) -> FleetUnavailable:
        """Return what to tell whoever gives an order while this controller stands by."""
        if self._lead is None or self._lead.is_ours:
            return FleetUnavailable("the database cannot be reached, so nothing can be ordered now; try again later")
        return FleetUnavailable(f"another controller leads this fleet; order it at {self._lead.url}")

    def ask_now(self) -> None:
        """Have the next `turn` ask who leads: something hints that it is somebody else."""
        self._ask_at = float("-inf")

    def turn(self) -> bool:
        """Renew the lease or ask for it when it is time, and follow the database while standing by.

        Returns:
            Whether it was time, and the database answered.
        Raises:
            LedgerUnavailable: the database is away; without it nobody leads for longer than the lease.
        """
        now = self._monotonic()
        if now < self._ask_at:
            return False
        self._ask_at = now + self._ask_s
        try:
            lead = self._ledger.lead(self._holder, self._url, self._lease_s)
        except LedgerUnavailable:
            if self._is_leading and now >= self._until:
                self._stand_by("the database is away")
            raise
        former, self._lead = self._lead, lead
        if lead.is_ours:
            self._until = now + self._lease_s  # From before it was asked for: it is over here before it is there.
            self._ask_at = now + self._renew_s
            if not self._is_leading:
                self._is_leading = True
                log.info("leading", holder=self._holder)
                self._on_lead()
            return True
        if self._is_leading:
            self._stand_by("another controller leads")
        if former is None or former.holder != lead.holder:
            log.info("standing_by", leader=lead.holder, url=lead.url)
        self._follow()
        return True

    def end(self) -> None:
        """Stop leading, and let another begin at once."""
        was_leading = self._is_leading
        if was_leading:
            self._stand_by("it stops")
        if was_leading and self._lead is not None and self._lead.is_ours:
            try:
                self._ledger.release(self._holder)
            except LedgerUnavailable as error:
                log.warning("lease_not_released", error=str(error))

    def _stand_by(self, why: str) -> None:
        self._is_leading = False
        self._until = float("-inf")
        log.warning("leading_ended", why=why)
        self._on_stand_by()

    def _follow(self) -> None:
        """Read what the leader wrote, but not all the time: with a large fleet it takes a while."""
        began = self._monotonic()
        if began < self._look_at:
            return
        self._ledger.catch_up()
        took = self._monotonic() - began
        self._look_at = began + took / CATCH_UP_SHARE
