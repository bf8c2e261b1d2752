"""The fleet thread: the only one that touches `Fleet` and writes to the ledger.

    link ─ on_item ─▶ ┌───────────┐   a batch of messages in one transaction ─▶ commit ─▶ publish ─▶ acknowledge
    api  ─ call ────▶ │ the inbox │─▶ a command, by itself ─▶ its future
    time ───────────▶ └───────────┘   ticks, chunks, chores

A message is acknowledged to the broker after the commit that holds it. When the commit fails (a full disk), the batch
is tried again until it works: the broker holds the rest back meanwhile. When another controller wrote in between, the
batch or the command starts again from what is there now. All of this only while this controller leads (`standing`):
otherwise commands are refused, and what devices said is left to whoever does.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import structlog

from muster_controller.db.errors import LedgerMoved, LedgerRefused, LedgerUnavailable
from muster_controller.db.ledger import SqlLedger
from muster_controller.errors import FleetUnavailable
from muster_controller.fleet import TICK_S, Fleet
from muster_controller.gateway.standing import Standing
from muster_controller.gateway.wire import LinkWire
from muster_shared import topics
from muster_shared.errors import WireError
from muster_shared.ids import EventId
from muster_shared.link import AckToken, Connected, Delivered, Disconnected, LinkItem, PublishRefused, Received
from muster_shared.undecodable import UNDECODABLE

INBOX_MAX = 10_000  # Items; brokers hold back at a few hundred unacknowledged messages, far below this.
BATCH_MAX = 500  # Messages a commit.
CALL_TIMEOUT_S = 30.0
RETRY_S = 1.0
SAY_AGAIN_S = 5.0
ATTEMPTS = 20  # Of a command, when another controller keeps writing; the lease sees to it that it hardly ever does.

T = TypeVar("T")
log = structlog.get_logger()


@dataclass(frozen=True)
class Chore:
    """Something that the fleet thread does from time to time."""

    name: str
    every_s: float
    run: Callable[[], None]


@dataclass(frozen=True)
class _Command:
    """A call from another thread. `result` also carries its exception."""

    run: Callable[[Fleet], object]
    result: "Future[object]" = field(default_factory=Future)


class _Named(msgspec.Struct):
    """Of an event, only what it is called."""

    id: EventId


class FleetThread:
    """Owns `fleet` from `start` to `stop`."""

    def __init__(
        self,
        fleet: Fleet,
        ledger: SqlLedger,
        wire: LinkWire,
        standing: Standing,
        ack: Callable[[AckToken], None],
        chores: Sequence[Chore] = (),
        on_moved: Callable[[], None] = lambda: None,
        on_mixed: Callable[[Sequence[tuple[topics.MixedTopic, bytes]]], None] = lambda messages: None,
    ) -> None:
        """
        Args:
            on_moved: called when the ledger holds what this process did not write, or lacks what it was about to.
            on_mixed: takes what mixers say, in a transaction of its own; it may be given the same again.
        """
        self.faults = 0
        """Bugs that were survived."""
        self._fleet = fleet
        self._ledger = ledger
        self._wire = wire
        self._standing = standing
        self._ack = ack
        self._on_moved = on_moved
        self._on_mixed = on_mixed
        self._chores = [(chore, 0.0) for chore in chores]
        self._inbox: queue.Queue[LinkItem | _Command] = queue.Queue(INBOX_MAX)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._next_tick = 0.0
        self._say_again_at: float | None = None
        self._is_ledger_lost = False

    @property
    def standing(self) -> Standing:
        return self._standing

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Finish the batch under way and end; what is not acknowledged comes again at the next start."""
        self._stopping.set()
        self._thread.join(timeout_s)

    # -- from other threads ------------------------------------------------------------------------------------------

    def on_item(self, item: LinkItem) -> None:
        """Take what the link says. Raises queue.Full, at which the link cuts the connection."""
        match item:
            case Delivered(mid):
                self._wire.delivered(mid)
            case PublishRefused(mid, reason):
                self._wire.delivered(mid)
                log.error("publish_refused", reason=reason)
            case _:
                self._inbox.put_nowait(item)

    async def call(self, run: Callable[[Fleet], T]) -> T:
        """Run `run(fleet)` on the fleet thread and return its result, or raise what it raised.

        Raises:
            FleetUnavailable: the inbox is full, it takes too long, another controller leads, or the thread has ended.
            LedgerUnavailable: the database is away.
        """
        results: list[T] = []
        context = copy_context()  # Who acts, for what reason and in which request, for notes and logs.

        def attempt(fleet: Fleet) -> None:
            # What an attempt that did not come through has returned is forgotten.
            results[:] = [context.copy().run(run, fleet)]

        command = _Command(attempt)
        if self._stopping.is_set():
            raise FleetUnavailable("the controller is shutting down; try again when it is back")
        try:
            self._inbox.put_nowait(command)
        except queue.Full as error:
            raise FleetUnavailable("the controller has too much to do; try again in a moment") from error
        try:
            await asyncio.wait_for(asyncio.wrap_future(command.result), CALL_TIMEOUT_S)
        except TimeoutError as error:
            raise FleetUnavailable("the controller did not answer in time; look whether it was done") from error
        return results[0]

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            led = self._standing.leads
            if not led:
                self._refuse_rest(self._standing.refusal())  # What a former link brought cannot be acknowledged now.
            self._ask_who_leads()
            if not self._standing.leads:
                self._stand_by()
                continue
            if not led:
                self._on_moved()  # Somebody else may have led meanwhile.
            batch = self._next_batch()
            received: list[Received] = []
            for item in batch:
                if isinstance(item, Received):
                    received.append(item)
                    continue
                self._take(received)
                received = []
                self._handle(item)
            self._take(received)
            if self._standing.leads:
                self._on_time()
        self._guarded("standing_failed", self._standing.end)
        self._refuse_rest(FleetUnavailable("the controller is shutting down"))

    def _stand_by(self) -> None:
        """Refuse what comes until it is time to ask again who leads. Messages stay with the broker, for the leader."""
        wait_s = self._standing.wake_at - time.monotonic()
        with suppress(queue.Empty):
            self._refuse(self._inbox.get(timeout=min(RETRY_S, max(0.001, wait_s))), self._standing.refusal())

    def _next_batch(self) -> list[LinkItem | _Command]:
        """Return what has arrived, in order; nothing when something is due before anything arrives."""
        due = time.monotonic() if self._is_due() else min(self._next_tick, self._standing.wake_at)
        courier = self._fleet.courier.wake_at()
        if courier is not None and self._wire.has_room:
            # The courier's clock is the wall's; only the distance is of interest here.
            due = min(due, time.monotonic() + max(0.0, courier - time.time()))
        batch: list[LinkItem | _Command] = []
        with suppress(queue.Empty):
            batch.append(self._inbox.get(timeout=max(0.001, due - time.monotonic())))
            while len(batch) < BATCH_MAX:
                batch.append(self._inbox.get_nowait())
        return batch

    def _take(self, received: list[Received]) -> None:
        """Let the fleet have a batch of messages in one commit, then acknowledge them."""
        fleets, mixed = self._sorted(received)
        while received and self._standing.leads and not self._stopping.is_set():
            try:
                if mixed:
                    with self._survived("mixed_failed"):
                        self._on_mixed(mixed)
                self._ledger.expect(self._events(fleets))
                with self._wire.held(), self._ledger.transaction():
                    for item in fleets:
                        with self._survived("message_failed", topic=item.topic):
                            self._fleet.received(self._parse(item.topic), item.payload)
            except LedgerMoved as error:
                self._moved(error)
                continue
            except LedgerUnavailable as error:
                self._on_moved()
                self._say_lost(error)
                self._stopping.wait(RETRY_S)
                self._ask_who_leads()
                continue
            except LedgerRefused:
                if len(received) > 1:  # Only one of them is to blame, and the others are not to wait for it forever.
                    for item in received:
                        self._take([item])
                    return
                self.faults += 1
                log.exception("message_refused", topic=received[0].topic)
            self._say_back()
            for item in received:
                self._ack(item.token)
            return

    def _sorted(self, received: Sequence[Received]) -> tuple[list[Received], list[tuple[topics.MixedTopic, bytes]]]:
        """Return what the fleet takes, and what mixers say."""
        fleets: list[Received] = []
        mixed: list[tuple[topics.MixedTopic, bytes]] = []
        for item in received:
            topic = self._parse(item.topic) if "/mixed/" in item.topic else None
            if isinstance(topic, topics.MixedTopic):
                mixed.append((topic, item.payload))
            else:
                fleets.append(item)
        return fleets, mixed

    def _events(self, received: Sequence[Received]) -> list[EventId]:
        """Return the names of the events among them, so that the ledger may look them all up at once."""
        found: list[EventId] = []
        for item in received:
            match self._parse(item.topic):
                case topics.DeviceTopic(_, topics.Channel.EVENT):
                    with suppress(*UNDECODABLE):  # `decode` will say what it is.
                        found.append(msgspec.json.decode(item.payload, type=_Named).id)
                case _:
                    pass
        return found

    def _parse(self, topic: str) -> topics.Topic:
        try:
            return topics.parse(self._fleet.id, topic)
        except WireError:
            return topics.ControllerTopic()  # The fleet counts it as malformed, like any topic that is not for it.

    def _handle(self, item: LinkItem | _Command) -> None:
        match item:
            case _Command() as command:
                self._obey(command)
            case _ if not self._standing.leads:
                pass
            case Connected(protocol, session_present):
                log.info("broker_connected", protocol=protocol.value, session_present=session_present)
                self._guarded("connected_failed", self._fleet.connected)
            case Disconnected("stopped"):
                pass  # By us.
            case Disconnected(reason):
                self._wire.lost()
                log.warning("broker_lost", reason=reason)
            case _:
                pass

    def _obey(self, command: _Command) -> None:
        """Run a command as one transaction, from the start when another controller wrote meanwhile."""
        if not command.result.set_running_or_notify_cancel():
            return
        refusal = FleetUnavailable("other controllers keep changing the fleet; try again in a moment")
        for _ in range(ATTEMPTS):
            if not self._standing.leads:
                refusal = self._standing.refusal()
                break
            try:
                with self._wire.held(), self._ledger.transaction():
                    command.run(self._fleet)
            except LedgerMoved as error:
                self._moved(error)
                continue
            except BaseException as error:
                command.result.set_exception(error)
                return
            command.result.set_result(None)
            return
        command.result.set_exception(refusal)

    def _moved(self, error: LedgerMoved) -> None:
        """Another controller wrote: it may believe that it leads, or be right about it."""
        log.info("ledger_moved", seen=error.seen, found=error.found)
        self._on_moved()
        self._standing.ask_now()
        self._ask_who_leads()

    def _ask_who_leads(self) -> None:
        def turn() -> None:
            if self._standing.turn():
                self._say_back()

        self._guarded("standing_failed", turn)

    def _on_time(self) -> None:
        now = time.monotonic()
        if now >= self._next_tick or self._is_due():
            self._next_tick = now + TICK_S
            self._guarded("tick_failed", self._fleet.tick)
        elif self._wire.has_room:
            self._guarded("courier_failed", self._fleet.courier.tick)
        self._chores = [
            (chore, now + chore.every_s if now >= due and self._guarded(chore.name, chore.run) else due)
            for chore, due in self._chores
        ]
        if self._wire.overflowed:
            self._wire.overflowed = False
            self._say_again_at = now + SAY_AGAIN_S
            log.warning("wire_overflowed")
        if self._say_again_at is not None and now >= self._say_again_at:
            self._say_again_at = None
            self._guarded("connected_failed", self._fleet.connected)

    def _is_due(self) -> bool:
        """Return whether a rollout waits for a tick; not while another controller leads."""
        return self._standing.leads and self._fleet.is_due()

    def _guarded(self, event: str, run: Callable[[], None]) -> bool:
        """Run `run`; a full disk or a bug costs this one turn, never the loop. Always true: it had its turn."""
        for _ in range(ATTEMPTS):
            try:
                with self._survived(event):
                    run()
            except LedgerMoved as error:
                log.info("ledger_moved", seen=error.seen, found=error.found)
                self._on_moved()
                self._standing.ask_now()
                continue
            except LedgerUnavailable as error:
                self._on_moved()
                self._say_lost(error)
            return True
        return True

    @contextmanager
    def _survived(self, event: str, **facts: str) -> Iterator[None]:
        try:
            yield
        except (LedgerMoved, LedgerUnavailable):
            raise
        except Exception:
            self.faults += 1
            log.exception(event, **facts)

    def _say_lost(self, error: LedgerUnavailable) -> None:
        if not self._is_ledger_lost:
            self._is_ledger_lost = True
            log.error("ledger_lost", error=str(error))

    def _say_back(self) -> None:
        if self._is_ledger_lost:
            self._is_ledger_lost = False
            log.info("ledger_back")

    def _refuse_rest(self, refusal: FleetUnavailable) -> None:
        """Empty the inbox. Messages are not acknowledged, so the broker brings them again."""
        while True:
            try:
                self._refuse(self._inbox.get_nowait(), refusal)
            except queue.Empty:
                return

    def _refuse(self, item: LinkItem | _Command, refusal: FleetUnavailable) -> None:
        if isinstance(item, _Command) and item.result.set_running_or_notify_cancel():
            item.result.set_exception(refusal)
