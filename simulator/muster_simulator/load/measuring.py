"""Anonymous windows of simulated devices: the agent's own book and sending, kept in memory.

What they tell is what a release really says to the inputs that the device is asked (`truth`): the same windows, noise
and budget as in the field, without an engine each.
"""

from collections.abc import Callable, Mapping
from random import Random

from muster_agent.metrics.book import Book
from muster_agent.metrics.port import Meters
from muster_agent.metrics.sending import Sending
from muster_agent.metrics.windows import Place
from muster_shared.ids import FleetId
from muster_shared.link import Link, LinkItem

PAUSE_S_MIN = 0.5  # Fifty devices share a thread.
PAUSE_S_MAX = 10.0


class MemoryBook:
    """`sending.Keeping` of a device that never restarts."""

    def load(self, place: Place) -> Book:
        return Book(place)

    def keep(self, book: Book) -> None:
        """All of it is here already."""
        book.kept()


class Measuring:
    """One device's windows. `look` again and again; `heard` from the link's thread."""

    def __init__(
        self,
        fleet: FleetId,
        device_class: str,
        link: Link,
        meters: Meters,
        mixers: Callable[[], Mapping[str, bytes]],
        clock: Callable[[], float],
        speed: float,
        random: Random,
    ) -> None:
        """
        Args:
            clock: Of the metrics, which passes `speed` times as fast as the one on the wall.
        """
        self._meters = meters
        self._speed = speed
        self._sending = Sending(
            fleet=fleet,
            place=Place(device_class),
            journal=MemoryBook(),
            line=link,
            mixers=mixers,
            clock=clock,
            random=random,
        )

    def heard(self, item: LinkItem) -> None:
        """Take what the link says of a message."""
        self._sending.heard(item)

    def look(self) -> float:
        """Count, send what is due, and return in how many seconds on the wall to look again."""
        pause_s = self._sending.look(self._meters.take()) / self._speed
        return min(PAUSE_S_MAX, max(PAUSE_S_MIN, pause_s))
