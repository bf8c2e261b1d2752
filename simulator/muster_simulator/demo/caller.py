"""Somebody who calls the demo's broker and is no agent: whether it is let in, and what it hears and may say there.

One connection by the agents' own link, for one thread; it decides nothing.
"""

import queue
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from muster_agent.identity.folder import IdentityFolder
from muster_shared.link import (
    BrokerAddress,
    Connected,
    Delivered,
    Disconnected,
    Link,
    LinkConfig,
    LinkItem,
    PublishRefused,
    Received,
)

ANSWER_S = 20.0  # The link itself waits for 15 s for a broker that has much to do.
ITEMS_MAX = 1_000
STOP_S = 2.0


class Caller:
    """Calls from `with` on, until its end; the link comes again by itself, as every thief may."""

    def __init__(self, broker: BrokerAddress, client_id: str, *, ca: Path, identity: IdentityFolder | None) -> None:
        """
        Args:
            identity: whose certificate is shown; None: none.
        """
        self._items: queue.Queue[LinkItem] = queue.Queue(ITEMS_MAX)
        self._link = Link(
            LinkConfig(
                broker,
                client_id=client_id,
                clean_start=True,
                ca_path=ca,
                cert_path=None if identity is None else identity.certificate_path,
                key_path=None if identity is None else identity.session_key_path,
            ),
            self._items.put_nowait,
            rng=random.SystemRandom(),
        )

    def __enter__(self) -> Self:
        self._link.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.stop(STOP_S)

    def turned_away(self) -> str | None:
        """Return why the broker does not let it in; None: it does, or it says nothing."""
        found = self._first(lambda item: isinstance(item, Connected | Disconnected))
        return found.reason if isinstance(found, Disconnected) else None

    def comes_in(self) -> bool:
        """Return whether the broker lets it in, if not at once: one that lists its users hears of a new one last."""
        return self._first(lambda item: isinstance(item, Connected)) is not None

    def say(self, topic: str, payload: bytes) -> str:
        """Publish as QoS 1, retained; return in words what the broker does about it."""
        mid = self._link.publish(topic, payload, qos=1, retain=True)
        match self._first(lambda item: getattr(item, "mid", None) == mid or isinstance(item, Disconnected)):
            case PublishRefused(reason=reason) | Disconnected(reason=reason):
                return reason
            case Delivered():
                return "taken, and thrown away"  # What MQTT 3.1.1 can say.
            case _:
                return "no answer"

    def hears(self, filters: Sequence[str], until: str) -> set[str]:
        """Subscribe to `filters` in this order; return the topics that came until one began with `until`."""
        heard: set[str] = set()
        self._link.subscribe(filters)
        while isinstance(item := self._first(lambda item: isinstance(item, Received)), Received):
            self._link.ack(item.token)
            heard.add(item.topic)
            if item.topic.startswith(until):
                break
        return heard

    def _first(self, fits: Callable[[LinkItem], bool]) -> LinkItem | None:
        deadline = time.monotonic() + ANSWER_S
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                item = self._items.get(timeout=left_s)
            except queue.Empty:
                break
            if fits(item):
                return item
        return None
