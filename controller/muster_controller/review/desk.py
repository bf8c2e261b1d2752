"""The desk of reviews: each is made once, on Monday at 06:00 UTC or when a controller leads next, kept, and told.

    turn ── due, and not there? ──▶ a thread: facts ─ make ─▶ one transaction: the review, and a notice to each receiver

So a week is told once, however many controllers there are and whenever one of them dies.
"""

import secrets
import threading
from collections.abc import Callable
from typing import Final

import msgspec
import structlog
from sqlalchemy import insert, select

from muster_controller.core.alerts.grouping import body
from muster_controller.core.review.facts import Facts, Review
from muster_controller.core.review.making import make
from muster_controller.core.review.week import Week
from muster_controller.core.review.words import headline, markdown
from muster_controller.db.errors import LedgerRefused
from muster_controller.db.receiver_store import ReceiverStore
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import ReviewRow, table
from muster_controller.errors import NotFound
from muster_shared.errors import MusterError

LOOK_S: Final = 600.0
LISTED_MAX: Final = 520  # Ten years.
STOP_S: Final = 10.0

_REVIEW = table(ReviewRow)
log = structlog.get_logger()


class ReviewDesk:
    """Of one controller. `turn` is a chore of the one that leads; everything else is for any thread."""

    def __init__(
        self,
        side: SideDatabase,
        receivers: ReceiverStore,
        facts: Callable[[Week, float], Facts],
        clock: Callable[[], float],
    ) -> None:
        self._side = side
        self._receivers = receivers
        self._facts = facts
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._looked_for: Week | None = None

    def turn(self) -> None:
        """Begin to make what is due, if it is not there. Returns at once."""
        week = Week.due(self._clock())
        if week == self._looked_for or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._try, args=(week,), name="review", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for what is being made, a bounded while."""
        if self._thread is not None:
            self._thread.join(STOP_S)

    def make_due(self, week: Week) -> Review | None:
        """Make, keep and tell the review of `week`; None: it was there, or nothing was measured in it.

        Raises:
            LedgerUnavailable.
        """
        if self._has(week):
            return None
        now = self._clock()
        facts = self._facts(week, now)
        if not facts.hours and not facts.days:
            return None
        review = make(facts)
        if not self._keep(review, now):
            return None
        log.info("review_made", week=review.week, regressions=len(review.regressions))
        return review

    def so_far(self) -> Review:
        """Return the review of the week that is not over, as of now. Nobody keeps it. Raises LedgerUnavailable."""
        now = self._clock()
        return make(self._facts(Week.of(now), now))

    def review(self, week: Week) -> Review:
        """Raises NotFound: it was not made."""
        query = select(_REVIEW.c.body).where(_REVIEW.c.week == str(week))
        with self._side.reading() as connection:
            raw = connection.execute(query).scalar()
        if raw is None:
            raise NotFound("review", str(week), "`muster review --list` shows what there is")
        return msgspec.json.decode(bytes(raw), type=Review)

    def weeks(self) -> list[tuple[str, float]]:
        """Return (week, when it was made), the newest first."""
        query = select(_REVIEW.c.week, _REVIEW.c.made_at).order_by(_REVIEW.c.week.desc()).limit(LISTED_MAX)
        with self._side.reading() as connection:
            return [(row.week, row.made_at) for row in connection.execute(query)]

    def _try(self, week: Week) -> None:
        try:
            self.make_due(week)
            self._looked_for = week
        except MusterError as error:
            log.warning("review_failed", week=str(week), error=str(error))  # The chore comes again.
        except Exception:
            log.exception("review_failed", week=str(week))

    def _has(self, week: Week) -> bool:
        with self._side.reading() as connection:
            return connection.execute(select(_REVIEW.c.week).where(_REVIEW.c.week == str(week))).first() is not None

    def _keep(self, review: Review, now: float) -> bool:
        """Write it down and queue what is told of it, together; False: another controller was first."""
        said = body("review", f"[{review.fleet}] {headline(review)}", markdown(review), review, now)
        notices = [(secrets.token_hex(12), each, said) for each in self._wanting()]
        row = {"week": review.week, "made_at": now, "body": msgspec.json.encode(review)}
        try:
            with self._side.transaction() as connection:
                connection.execute(insert(_REVIEW).values(row))
                full = self._receivers.put(connection, notices)
        except LedgerRefused:
            return False
        if full:
            log.warning("review_not_told", week=review.week, receivers=full)
        return True

    def _wanting(self) -> list[str]:
        return [each.name for each in self._receivers.receivers() if each.reviews and each.disabled_at is None]
