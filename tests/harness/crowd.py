"""A crowd of devices that measure and send with the agent's own code, and serve nothing.

Each is asked all the time; FIRST_SHARE of the answers are the first class, the others the second.
"""

import threading
import time
from collections.abc import Callable, Mapping
from random import Random

from muster_agent.metrics.port import DriftState, Release, Tally
from muster_shared.ids import FleetId
from muster_shared.link import Link, LinkConfig, LinkItem, parse_broker_url
from muster_shared.metrics import Kind, latency_place
from muster_simulator.load.measuring import Measuring

FIRST_SHARE = 0.7
"""Of the crowd's inferences that come out as the first class, the others as the second; nobody's as the third."""
LINKS = 8
STOP_S = 120.0


class _Asked:
    """`metrics.port.Meters` of a device of which something is asked all the time; all kinds are measured."""

    def __init__(self, release: Release, rng: Random) -> None:
        self._release = release
        self._rng = rng

    def take(self) -> list[Tally]:
        place = 0 if self._rng.random() < FIRST_SHARE else 1
        counts = {
            Kind.CLASSES: {place: 1},
            Kind.CONFIDENCE: {17: 1},
            Kind.LATENCY: {latency_place(900.0): 1},
            Kind.INPUTS: {0: 1},
            Kind.FEEDBACK: {2 * place + 1: 1},
        }
        return [Tally(self._release, 1, counts, DriftState.QUIET)]


class Crowd:
    """Devices that share some connections and one thread."""

    def __init__(
        self,
        count: int,
        fleet: FleetId,
        device_class: str,
        release: Release,
        broker_url: str,
        mixers: Mapping[str, bytes],
        clock: Callable[[], float],
        speed: float,
    ) -> None:
        """
        Args:
            clock: Of the metrics, which passes `speed` times as fast as the one on the wall.
        """
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crowd", daemon=True)
        self._links: list[Link] = []
        self._devices: list[Measuring] = []
        for number in range(LINKS):
            mine: list[Measuring] = []
            config = LinkConfig(parse_broker_url(broker_url), client_id=f"crowd-{number}", max_queued_out=10_000)
            link = Link(config, _to_all(mine), rng=Random(number))
            for which in range(number, count, LINKS):
                meters = _Asked(release, Random(f"asked {which}"))
                sent = Random(f"sent {which}")
                mine.append(Measuring(fleet, device_class, link, meters, lambda: mixers, clock, speed, sent))
            self._links.append(link)
            self._devices += mine
        for link in self._links:
            link.start()
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join(STOP_S)
        for link in self._links:
            link.stop(1.0)

    def _run(self) -> None:
        again = dict.fromkeys(range(len(self._devices)), 0.0)
        while not self._ending.wait(max(0.01, min(again.values()) - time.monotonic())):
            for number, at in again.items():
                if at <= time.monotonic():
                    again[number] = time.monotonic() + self._devices[number].look()


def _to_all(devices: list[Measuring]) -> Callable[[LinkItem], None]:
    def heard(item: LinkItem) -> None:
        for each in devices:
            each.heard(item)

    return heard
