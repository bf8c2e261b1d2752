"""Telling: what waits in the queue goes to its receivers, each notice until it was taken or a day has passed.

    due ─▶ send ─▶ told
             └─ failed ─▶ due again after 15 s, 30 s, ... an hour, each half to one and a half times that ─▶ given up

A receiver that does not answer holds back its own notices and nobody else's.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import structlog

from muster_controller.alerts.errors import ReceiverGone, TellingFailed
from muster_controller.core.alerts.grouping import Body, Notice
from muster_controller.db.receiver_store import GIVE_UP_S, Kind, Receiver, ReceiverStore, Waiting
from muster_controller.errors import NotFound

FIRST_S: Final = 15.0
LONGEST_S: Final = 3600.0
BATCH: Final = 50

log = structlog.get_logger()


class Sender(Protocol):
    """Carries a notice to a receiver of one kind."""

    def send(self, receiver: Receiver, notice: str, body: Body, now: float) -> None:
        """Raises TellingFailed."""
        ...


def wait_s(attempts: int, chance: float) -> float:
    """Return how long to wait after `attempts` that failed, >= 1. `chance`: 0..1."""
    return float(min(LONGEST_S, FIRST_S * 2 ** min(attempts - 1, 20)) * (0.5 + chance))


def addressed(notices: Iterable[Notice], receivers: Iterable[Receiver]) -> list[tuple[Receiver, Body]]:
    """Return who is to be told what."""
    known = list(receivers)
    return [(receiver, each.body) for each in notices for receiver in known if receiver.wants(each.severity)]


class Teller:
    """Empties the queue; one thread calls `turn`."""

    def __init__(
        self,
        store: ReceiverStore,
        senders: Mapping[Kind, Sender],
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._store = store
        self._senders = senders
        self._clock = clock
        self._rng = rng

    def turn(self, is_over: Callable[[], bool] = lambda: False) -> int:
        """Try what is due, and return how many were told. Raises LedgerUnavailable."""
        told = 0
        silent: set[str] = set()
        for waiting in self._store.due(BATCH):
            if is_over():
                break
            if waiting.receiver not in silent:
                was_told = self._try(waiting)
                told += was_told
                if not was_told:
                    silent.add(waiting.receiver)
        return told

    def try_now(self, receiver: Receiver, notice: str, body: Body) -> None:
        """Send without a queue. Raises TellingFailed."""
        self._senders[receiver.kind].send(receiver, notice, body, self._clock())

    def _try(self, waiting: Waiting) -> bool:
        attempts = waiting.attempts + 1
        try:
            receiver = self._store.receiver(waiting.receiver)
        except NotFound:
            self._store.failed(waiting.id, attempts, None, "the receiver was removed")
            return False
        if receiver.disabled_at is not None:
            self._store.failed(waiting.id, attempts, None, "the receiver is disabled")
            return False
        try:
            self.try_now(receiver, waiting.id, waiting.body)
        except ReceiverGone as error:
            log.warning("receiver_gone", receiver=receiver.name)
            self._store.disable(receiver.name, error.said)
            self._store.failed(waiting.id, attempts, None, error.said)
            return False
        except TellingFailed as error:
            now = self._clock()
            next_at = now + wait_s(attempts, self._rng.random())
            is_over = next_at > waiting.created_at + GIVE_UP_S
            log.warning("telling_failed", receiver=receiver.name, said=error.said, attempts=attempts, given_up=is_over)
            self._store.failed(waiting.id, attempts, None if is_over else next_at, error.said)
            if not is_over:
                self._store.postpone(receiver.name, next_at)
            return False
        self._store.told(waiting.id)
        log.info("told", receiver=receiver.name, type=waiting.body.type, attempts=attempts)
        return True
