"""Operational series: counts what twins say, and writes it down every five minutes.

What was counted and could not be written waits in memory, a bounded while; what was counted when the controller dies
(five minutes) is lost. Operational counts are no evidence of a rollout: that is events, which are kept.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from muster_controller.core.metrics.series import Series
from muster_controller.core.metrics.tally import Tally
from muster_controller.db.errors import LedgerRefused
from muster_controller.db.metrics_store import MetricsStore
from muster_controller.ports import Device
from muster_shared.messages import Twin

WAITING_MAX: Final = 100_000
"""Points that wait for the database; beyond it the oldest go."""
FAULTS_SAID: Final = 10

log = structlog.get_logger()


class Operations:
    """Of the fleet thread."""

    def __init__(self, store: MetricsStore, clock: Callable[[], float]) -> None:
        self.faults = 0
        """Bugs that were survived."""
        self._store = store
        self._clock = clock
        self._tally = Tally()
        self._waiting: deque[Series] = deque(maxlen=WAITING_MAX)

    @property
    def refused(self) -> int:
        return self._tally.refused

    def twin(self, before: Device, twin: Twin) -> None:
        """Count what rose since `before` was saved. It never fails: no twin is lost for a count."""
        now = self._clock()
        try:
            self._tally.take(before.twin, twin, now, max(0.0, now - before.seen_at))
        except Exception:
            self.faults += 1
            if self.faults <= FAULTS_SAID:
                log.exception("series_failed", device=twin.device)

    def flush(self) -> None:
        """Write the five minutes that have ended. Raises LedgerUnavailable: they wait for the next time."""
        self._write(self._tally.ended(self._clock()))

    def close(self) -> None:
        """Write everything; what the database does not take now is lost."""
        self._write(self._tally.ended(math.inf))

    def _write(self, ended: list[Series]) -> None:
        self._waiting.extend(ended)
        if not self._waiting:
            return
        try:
            self._store.add_series(list(self._waiting))
        except LedgerRefused:
            log.exception("series_refused", points=len(self._waiting))
        self._waiting.clear()
