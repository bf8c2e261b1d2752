"""The sampler: every five minutes, while this controller leads, it writes down how the fleet stands."""

import threading
from collections.abc import Callable
from typing import Final

import structlog

from muster_controller.api.standing import FleetSums
from muster_controller.core.samples import EVERY_S, FleetSample, sample
from muster_controller.db.sample_store import SampleStore
from muster_shared.errors import MusterError

LOOK_S: Final = 15.0
"""How often it is asked whether a sample is due: a controller that takes over goes on where the other ended."""
END_S: Final = 10.0

log = structlog.get_logger()


class Sampler:
    """From `start` to `stop`."""

    def __init__(
        self, store: SampleStore, sums: Callable[[], FleetSums], leads: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._sums = sums
        self._leads = leads
        self._clock = clock
        self._looked = -1.0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="samples", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ends.set()
        self._thread.join(END_S)

    def look(self) -> None:
        """Write a sample down, if one is due. Raises LedgerUnavailable."""
        now = self._clock()
        if self._leads() and now // EVERY_S != self._looked // EVERY_S:
            self._store.add(now, sampled(self._sums()))
            self._looked = now

    def _run(self) -> None:
        is_lost = False
        while not self._ends.wait(LOOK_S):
            try:
                self.look()
            except MusterError as error:
                if not is_lost:
                    log.warning("samples_lost", error=str(error))
                is_lost = True
            else:
                is_lost = False


def sampled(found: FleetSums) -> FleetSample:
    """Return the sample of what the fleet is now."""
    return sample(
        found.devices,
        found.online,
        {standing.value: count for standing, count in found.standings.items()},
        [(each.model, each.version, each.devices) for each in found.versions],
    )
