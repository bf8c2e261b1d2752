"""The metrics' own round on the serving loop: take tallies, let a worker keep and send them, tell detectors the hour.

One turn at a time, so that the journal has one user. It decides nothing: `book` and `sending` do.
"""

import asyncio
from collections.abc import Mapping
from typing import Protocol

import structlog

from muster_agent.metrics.journal import MetricsJournal
from muster_agent.metrics.port import Meters
from muster_agent.metrics.sending import LOOK_S, Sending
from muster_shared.ids import Sha256

PAUSE_S_MIN = 0.01
PAUSE_S_MAX = 60.0
"""The metrics' clock may jump; a pause by it may be too long."""

log = structlog.get_logger()


class Detecting(Meters, Protocol):
    """`meters.AllMeters`."""

    def hour_over(self) -> None: ...

    def states(self) -> Mapping[Sha256, bytes]: ...


class Hourly:
    """Runs until cancelled; then `rest` keeps what was counted since."""

    def __init__(self, sending: Sending, meters: Detecting, journal: MetricsJournal, *, speed: float = 1.0) -> None:
        """
        Args:
            speed: Seconds of the metrics' clock that pass in one.
        """
        self._sending = sending
        self._meters = meters
        self._journal = journal
        self._speed = speed
        self._turning: asyncio.Task[float] | None = None

    async def run(self) -> None:
        while True:
            pause_s = LOOK_S
            self._turning = asyncio.create_task(self._turn())
            try:
                pause_s = await asyncio.shield(self._turning)  # Cancelled, it would lose what it has taken already.
            except Exception:  # Models go on serving, and metrics when it can.
                log.exception("metrics_failed")
            await asyncio.sleep(min(PAUSE_S_MAX, max(PAUSE_S_MIN, pause_s / self._speed)))

    async def rest(self) -> None:
        """Keep what was counted, first by the turn under way, and close the journal. Models serve no more."""
        if self._turning is not None:
            await asyncio.gather(self._turning, return_exceptions=True)
        try:
            await self._turn()
            await asyncio.to_thread(self._journal.remember, self._meters.states())
        except Exception:
            log.exception("metrics_failed")
        await asyncio.to_thread(self._journal.close)

    async def _turn(self) -> float:
        hour = self._sending.hour
        pause_s = await asyncio.to_thread(self._sending.look, self._meters.take())
        if self._sending.hour != hour and hour is not None:
            self._meters.hour_over()
            await asyncio.to_thread(self._journal.remember, self._meters.states())
        return pause_s
