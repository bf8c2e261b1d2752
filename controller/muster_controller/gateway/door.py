"""The door to the broker: a link that is there only while this controller leads.

Two controllers of one fleet have one session at the broker. Whoever leads opens it, and finds in it what the other left
unacknowledged; a former leader that has not noticed yet is thrown out by the broker.
"""

from collections.abc import Callable
from dataclasses import fields

from muster_controller.gateway.wire import LinkWire
from muster_shared.link import AckToken, Link, LinkCounters

CLOSE_S = 2.0  # For what waits to leave.


class Door:
    """`open` and `close` are the fleet thread's; everything else may be asked from any thread."""

    def __init__(self, make: Callable[[], Link], wire: LinkWire) -> None:
        """
        Args:
            make: returns a new link, subscribed to everything and not started.
        """
        self._make = make
        self._wire = wire
        self._link: Link | None = None
        self._former = LinkCounters(0, 0, 0, 0, 0)

    @property
    def is_connected(self) -> bool:
        link = self._link
        return link is not None and link.is_connected

    @property
    def counters(self) -> LinkCounters:
        """Totals of all links so far."""
        link = self._link
        return self._former if link is None else _sum(self._former, link.counters)

    def open(self) -> None:
        if self._link is not None:
            return
        link = self._link = self._make()
        self._wire.attach(link)
        link.start()

    def close(self) -> None:
        """Say goodbye and stop. What the broker delivered and was not acknowledged, it delivers again."""
        link = self._link
        if link is None:
            return
        link.stop(CLOSE_S)
        self._former = self.counters
        self._link = None
        self._wire.lost()

    def ack(self, token: AckToken) -> None:
        link = self._link
        if link is not None:
            link.ack(token)


def _sum(one: LinkCounters, other: LinkCounters) -> LinkCounters:
    names = [each.name for each in fields(LinkCounters)]
    return LinkCounters(**{name: getattr(one, name) + getattr(other, name) for name in names})
