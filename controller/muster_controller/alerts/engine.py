"""The engine: looks every half minute while this controller leads, and tells what there is to tell, beside it.

    alerts thread   look ─▶ judge ─▶ machine ─▶ rows and notices in one transaction ─▶ the page is told
    telling thread  what is due ─▶ receivers

Two threads, so that a receiver that does not answer holds up no look. A fault in a look is logged, counted, and the
next look goes on.
"""

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from muster_controller.acting import CONTROLLER, act_as
from muster_controller.alerts.looking import Looking
from muster_controller.alerts.telling import Teller, addressed
from muster_controller.core.alerts.grouping import group
from muster_controller.core.alerts.judge import judge
from muster_controller.core.alerts.machine import FLAP_S, Alert, advance
from muster_controller.db.alert_store import AlertStore
from muster_controller.db.receiver_store import ReceiverStore
from muster_shared.errors import MusterError

LOOK_S: Final = 30.0
TELL_S: Final = 5.0
SWEEP_S: Final = 86_400.0
END_S: Final = 10.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Stores:
    alerts: AlertStore
    receivers: ReceiverStore


class Engine:
    """From `start` to `stop`; `wake` from any thread."""

    def __init__(
        self,
        stores: Stores,
        looking: Callable[[], Looking],
        teller: Teller,
        *,
        fleet: str,
        leads: Callable[[], bool],
        changed: Callable[[list[Alert]], None],
        clock: Callable[[], float],
        look_s: float = LOOK_S,
    ) -> None:
        """
        Args:
            looking: makes what looks, anew whenever this controller begins to lead.
            changed: told of alerts that are new or other than before.
        """
        self.faults = 0
        """Bugs that were survived."""
        self._stores = stores
        self._new_looking = looking
        self._looking: Looking | None = None
        self._teller = teller
        self._fleet = fleet
        self._leads = leads
        self._changed = changed
        self._clock = clock
        self._look_s = look_s
        self._swept_at = float("-inf")
        self._ending = threading.Event()
        self._woken = threading.Event()
        self._threads = [
            threading.Thread(target=self._run_looks, name="alerts", daemon=True),
            threading.Thread(target=self._run_tellings, name="telling", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End. What is not told yet is told after the next start."""
        self._ending.set()
        self._woken.set()
        for thread in self._threads:
            thread.join(END_S)

    def wake(self) -> None:
        """There is something to tell."""
        self._woken.set()

    def look(self) -> list[Alert]:
        """Look once, and return the alerts that changed. Raises LedgerUnavailable."""
        if self._looking is None:
            self._looking = self._new_looking()
        facts = self._looking.look()
        found = judge(facts)
        store, now = self._stores.alerts, facts.now
        new_ids = (secrets.token_hex(6) for _ in found.findings)
        step = advance(store.current(now - FLAP_S), found, store.silences(), now, new_ids)
        if not step.saved and not step.dropped:
            return []
        notices = group(step.tellings, self._fleet, now)
        telling = [
            (secrets.token_hex(12), receiver.name, body)
            for receiver, body in addressed(notices, self._stores.receivers.receivers() if notices else ())
        ]
        full: list[str] = []
        kept = store.take(step, lambda connection: full.extend(self._stores.receivers.put(connection, telling)))
        for name in sorted(set(full)):
            log.error("receiver_queue_full", receiver=name, remedy="see `muster receiver list`")
        for each in step.tellings:
            log.info("alert", word=each.word.value, rule=each.alert.rule, subject=each.alert.subject, id=each.alert.id)
        if telling:
            self.wake()
        self._changed(kept)
        return kept

    def _run_looks(self) -> None:
        with act_as(CONTROLLER):
            while not self._ending.is_set():
                if self._leads():
                    self._guarded("look_failed", self.look)
                    self._guarded("alert_sweep_failed", self._sweep)
                else:
                    self._looking = None
                self._ending.wait(self._look_s)

    def _run_tellings(self) -> None:
        with act_as(CONTROLLER):
            while not self._ending.is_set():
                self._woken.wait(TELL_S)
                self._woken.clear()
                if self._leads() and not self._ending.is_set():
                    self._guarded("telling_broke", lambda: self._teller.turn(self._ending.is_set))

    def _sweep(self) -> None:
        if self._clock() - self._swept_at >= SWEEP_S:
            self._swept_at = self._clock()
            self._stores.alerts.sweep()
            self._stores.receivers.sweep()

    def _guarded(self, event: str, run: Callable[[], object]) -> None:
        try:
            run()
        except MusterError as error:
            log.warning(event, error=str(error))
        except Exception:
            self.faults += 1
            log.exception(event)
