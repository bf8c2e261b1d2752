"""The conductor's thread and its one finite queue: what the link heard, what the lab found, what time it is.

    Link ── heard ──▶ ┌───────┐
    lab  ── post ───▶ │ inbox │ ──▶ Conductor.received, .connected, .tick … ──▶ ack, after the commit
    HTTP ── ask ────▶ └───────┘

Callbacks only put; this thread blocks until something comes or until `Conductor.wake_at`. It decides nothing.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

import structlog

from muster_agent.conductor import Conductor
from muster_agent.errors import JournalFailed
from muster_shared.errors import WireError
from muster_shared.ids import FleetId
from muster_shared.link import (
    AckToken,
    Connected,
    Delivered,
    Disconnected,
    LinkItem,
    PublishRefused,
    Received,
    Subscribed,
)
from muster_shared.topics import parse

LINK_ITEMS_MAX = 1024
CHUNKS_WAITING_MAX = 192  # One window and a half of 60 KiB each: more is lost on purpose and asked for again.
POSTS_MAX = 128
POST_TIMEOUT_S = 30.0
TICK_GAP_S = 0.02  # However wrong the moments are that the conductor names, ticks stay rare.
SLEEP_S_MAX = 600.0
RETRY_S = 5.0
"""After the journal could not be written."""

log = structlog.get_logger()
T = TypeVar("T")


class Acknowledge(Protocol):
    def __call__(self, token: AckToken) -> None: ...


class ConductorThread:
    """Runs one conductor. `begin` it, put things into it from any thread, `end` it."""

    def __init__(self, fleet: FleetId, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self.chunks_dropped = 0
        self.topics_unknown = 0
        self._fleet = fleet
        self._clock = clock
        self._monotonic = monotonic
        self._queue: queue.Queue[LinkItem | Callable[[], None]] = queue.Queue(LINK_ITEMS_MAX + POSTS_MAX)
        self._thread: threading.Thread | None = None
        self._ending = False
        self._failing = False
        self._lost: str | None = None

    # -- from any thread ---------------------------------------------------------------------------------------------

    def heard(self, item: LinkItem) -> None:
        """Take an item of the link; it raises `queue.Full`, which cuts the connection, rather than wait."""
        match item:
            case Delivered() | Subscribed(refused=()):
                return
            case Received(qos=0) if self._queue.qsize() >= CHUNKS_WAITING_MAX:
                self.chunks_dropped += 1
                return
            case _:
                if self._queue.qsize() >= LINK_ITEMS_MAX:
                    raise queue.Full
                self._queue.put_nowait(item)

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` on the conductor's thread, soon."""
        self._queue.put(call, timeout=POST_TIMEOUT_S)

    def ask(self, question: Callable[[], T]) -> "Future[T]":
        """Return the future answer of `question`, asked on the conductor's thread."""
        answer: Future[T] = Future()

        def work() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(question())
            except Exception as error:
                answer.set_exception(error)

        self._queue.put_nowait(work)
        return answer

    def begin(self, conductor: Conductor, ack: Acknowledge) -> None:
        self._thread = threading.Thread(target=self._run, args=(conductor, ack), name="conductor", daemon=True)
        self._thread.start()

    def end(self, farewell: Callable[[], None], timeout_s: float) -> bool:
        """Finish what is being handled, call `farewell` on the thread, and end it. Whether it ended in time."""
        assert self._thread is not None, "it never began"

        def last() -> None:
            self._ending = True
            farewell()

        self.post(last)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self, conductor: Conductor, ack: Acknowledge) -> None:
        self._guarded(conductor.start)
        ticked_at = self._monotonic()
        while not self._ending:
            sleep_s = self._sleep_s(conductor, ticked_at)
            due_at = self._monotonic() + sleep_s
            try:
                item = self._queue.get(timeout=sleep_s)
            except queue.Empty:
                pass
            else:
                self._handle(conductor, item, ack)
                del item  # It may hold a chunk until the next one comes.
            if self._monotonic() >= due_at:
                ticked_at = self._monotonic()
                self._guarded(conductor.tick)

    def _sleep_s(self, conductor: Conductor, ticked_at: float) -> float:
        """Return how long nothing needs to be done, in seconds."""
        since_s = self._monotonic() - ticked_at
        if self._failing:
            return max(0.0, RETRY_S - since_s)
        wake_at = conductor.wake_at()
        if wake_at is None:
            return SLEEP_S_MAX
        return min(SLEEP_S_MAX, max(0.0, wake_at - self._clock(), TICK_GAP_S - since_s))

    def _handle(self, conductor: Conductor, item: LinkItem | Callable[[], None], ack: Acknowledge) -> None:
        match item:
            case Received(text, payload, _, _, token):
                self._guarded(lambda: self._received(conductor, text, payload))
                # Also when it failed: what is desired is retained and asked again, and an unacknowledged message would
                # hold up all that follow it.
                ack(token)
            case Connected(protocol):
                log.info("broker_back" if self._lost is not None else "broker_connected", protocol=protocol.value)
                self._lost = None
                self._guarded(conductor.connected)
            case Disconnected(reason):
                log.warning("broker_lost" if self._lost is None else "broker_unreachable", reason=reason)
                self._lost = reason
                self._guarded(conductor.disconnected)
            case PublishRefused(mid, reason):
                log.warning("publish_refused", mid=mid, reason=reason)
            case Subscribed(_, refused):
                log.error("subscription_refused", filters=refused)
            case Delivered():
                pass
            case _:
                self._guarded(item)

    def _received(self, conductor: Conductor, text: str, payload: bytes) -> None:
        try:
            topic = parse(self._fleet, text)
        except WireError as error:
            self.topics_unknown += 1
            if self.topics_unknown == 1:
                log.warning("topic_unknown", error=str(error))
            return
        conductor.received(topic, payload)

    def _guarded(self, act: Callable[[], None]) -> None:
        """The thread outlives whatever `act` raises: a device that stops listening cannot be repaired from afar."""
        try:
            act()
        except JournalFailed as error:
            if not self._failing:
                log.error("journal_lost", error=str(error))  # noqa: TRY400  # The cause is the disk, not the code.
            self._failing = True
        except Exception:
            log.exception("conductor_failed")
        else:
            if self._failing:
                log.info("journal_back")
            self._failing = False
