"""The mixer's process: its link to the broker, its one thread, its clock, and the lock on its folder.

    link ─ on_item ─▶ inbox ─▶ windows of a batch in one commit ─▶ acknowledged to the broker, in order
    time ────────────────────▶ periods that are due ─▶ outbox ─▶ mixed/<mixer>, until the controller acknowledges
                               each minute ─▶ mixed/<mixer>/state, retained

When the disk refuses, the batch is tried again until it works: it is not acknowledged, so the broker holds the rest
back. What a window held is decided by `Mixer` alone.
"""

import fcntl
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import structlog

from muster_controller.mixer.config import MixerConfig
from muster_controller.mixer.errors import MixerError, MixLedgerUnavailable
from muster_controller.mixer.ledger import LEDGER_FILE, MixLedger
from muster_controller.mixer.mixer import Mixer
from muster_controller.mixer.noise import OsRandom, RandBelow
from muster_controller.mixer.place import Place
from muster_shared import topics
from muster_shared.errors import WireError
from muster_shared.link import (
    AckToken,
    Connected,
    Disconnected,
    Link,
    LinkConfig,
    LinkItem,
    LinkStopped,
    Mid,
    OutboundQueueFull,
    PublishRefused,
    Qos,
    Received,
    Subscribed,
)
from muster_shared.messages import decode, encode
from muster_shared.metrics import MixedAck, metrics_time
from muster_shared.sealing import open_sealed
from muster_shared.topics import MetricsTopic, MixedChannel, MixedTopic

LOCK_FILE: Final = "mixer.lock"
SESSION_S: Final = 24 * 3600  # The broker keeps for a day what devices send while the mixer is away.
INBOX_MAX: Final = 10_000  # Items; the broker holds back at IN_FLIGHT unacknowledged messages.
IN_FLIGHT: Final = 1000
BATCH_MAX: Final = 500  # Windows a commit.
TICK_S: Final = 1.0
STATE_EVERY_S: Final = 60.0  # Of measured time, where a lab's clock is fast; no more often than TICK_S.
RETRY_S: Final = 1.0
AGAIN_S: Final = 60.0  # What is not acknowledged is sent again after so long, and after each connect.
SENT_AT_ONCE: Final = 100
STOP_S: Final = 5.0

log = structlog.get_logger()


def _now(config: MixerConfig) -> float:
    return metrics_time(time.time(), config.clock_speed, config.clock_since)


def run(config: MixerConfig, place: Place, stopping: threading.Event, *, below: RandBelow | None = None) -> None:
    """Mix until `stopping` is set.

    Raises:
        MixerError: the folder is in use, or the ledger cannot be opened.
    """
    with locked(place.data):
        ledger = MixLedger(place.data / LEDGER_FILE)
        mixer = Mixer(config, ledger, partial(open_sealed, keys=place.keys), below or OsRandom(), partial(_now, config))
        loop = MixerLoop(config, mixer, place.key)
        link = Link(_link_config(place.link), loop.on_item, rng=random.Random())
        loop.attach(link)
        link.subscribe(topics.mixer_filters(config.fleet, config.mixer, config.cohorts))
        log.info(
            "mixer_started",
            mixer=config.mixer,
            fleet=config.fleet,
            cohorts=list(config.cohorts),
            rho_day=config.rho_day,
        )
        link.start()
        try:
            loop.run(stopping)
        finally:
            link.stop(STOP_S)
            ledger.close()
            log.info("mixer_stopped")


def state_every_s(clock_speed: float) -> float:
    """Return after how many seconds a mixer says how it is: each minute that its clock shows, and each of ours."""
    return min(STATE_EVERY_S, max(TICK_S, STATE_EVERY_S / clock_speed))


class Outlet(Protocol):
    """The part of `Link` that is needed here."""

    def ack(self, token: AckToken) -> None: ...

    def publish(self, topic: str, payload: bytes, *, qos: Qos, retain: bool = False) -> Mid: ...


class MixerLoop:
    """What the one thread does; `on_item` alone is the link's."""

    def __init__(self, config: MixerConfig, mixer: Mixer, key: str) -> None:
        self._config = config
        self._mixer = mixer
        self._key = key
        self._link: Outlet | None = None
        self._inbox: queue.Queue[LinkItem] = queue.Queue(INBOX_MAX)
        self._heard_at: float | None = None
        """When we were let in, or when last something came that the broker had kept; monotonic; None: not connected."""
        self._sent_to = 0
        """In the outbox: sent in this lap."""
        self._lap_at = self._tick_at = self._state_at = float("-inf")
        self._is_ledger_lost = False

    def attach(self, link: Outlet) -> None:
        self._link = link

    def on_item(self, item: LinkItem) -> None:
        """Take what the link says. Raises queue.Full, at which the link cuts the connection."""
        match item:
            case Received() | Connected() | Disconnected() | Subscribed() | PublishRefused():
                self._inbox.put_nowait(item)
            case _:
                pass

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            received: list[Received] = []
            for item in self._next_batch():
                if isinstance(item, Received):
                    received.append(item)
                else:
                    self._handle(item)
            self._take(received, stopping)
            if time.monotonic() >= self._tick_at + TICK_S:
                self._tick_at = time.monotonic()
                self._survived(self._turn)

    def _turn(self) -> None:
        self._mixer.turn(settled=self._is_settled())
        self._send_outbox()
        self._say_state()

    def _next_batch(self) -> list[LinkItem]:
        batch: list[LinkItem] = []
        with suppress(queue.Empty):
            batch.append(self._inbox.get(timeout=max(0.001, self._tick_at + TICK_S - time.monotonic())))
            while len(batch) < BATCH_MAX:
                batch.append(self._inbox.get_nowait())
        return batch

    def _handle(self, item: LinkItem) -> None:
        match item:
            case Connected(protocol, session_present):
                self._heard_at = time.monotonic()
                self._lap_at = self._state_at = float("-inf")
                log.info("broker_connected", protocol=protocol.value, session_present=session_present)
            case Disconnected(reason):
                self._heard_at = None
                log.warning("broker_lost", reason=reason)
            case Subscribed(_, refused) if refused:
                log.error("subscription_refused", filters=list(refused))
            case PublishRefused(_, reason):
                log.error("publish_refused", reason=reason)
            case _:
                pass

    def _take(self, received: Sequence[Received], stopping: threading.Event) -> None:
        """Commit a batch, then acknowledge it. What the disk refuses is tried again for as long as it takes."""
        windows: list[tuple[int, bytes]] = []
        acks: list[str] = []
        for item in received:
            match self._topic(item.topic):
                case MetricsTopic(cohort):
                    windows.append((cohort, item.payload))
                case MixedTopic(mixer, MixedChannel.ACK) if mixer == self._config.mixer:
                    acks += _batches(item.payload)
                case _:
                    pass
        while received and not stopping.is_set():
            fault = ""
            try:
                done = self._survived(partial(self._commit, windows, acks))
            except MixerError:
                raise
            except Exception as error:
                done, fault = True, type(error).__name__  # What it says may quote a window.
            if fault and len(received) > 1:  # Only one of them is to blame.
                for item in received:
                    self._take([item], stopping)
                return
            if fault:
                log.error("window_failed", error=fault)
            if done:
                self._ack([item.token for item in received])
                return
            stopping.wait(RETRY_S)

    def _commit(self, windows: Sequence[tuple[int, bytes]], acks: Sequence[str]) -> None:
        if acks:
            self._mixer.acknowledged(acks)
        if windows and self._mixer.take(windows) and self._heard_at is not None:
            self._heard_at = time.monotonic()

    def _ack(self, tokens: Sequence[AckToken]) -> None:
        assert self._link is not None
        for token in tokens:
            self._link.ack(token)

    def _topic(self, text: str) -> topics.Topic | None:
        with suppress(WireError):
            return topics.parse(self._config.fleet, text)
        return None

    def _is_settled(self) -> bool:
        quiet = self._heard_at is not None and time.monotonic() >= self._heard_at + self._config.settle_s
        return quiet and self._inbox.empty()

    def _send_outbox(self) -> None:
        """Send the next of what is not acknowledged; from the front again when the last time is long ago."""
        now = time.monotonic()
        if now >= self._lap_at + AGAIN_S:
            self._lap_at, self._sent_to = now, 0
        while self._heard_at is not None:
            some = self._mixer.outbox(self._sent_to, SENT_AT_ONCE)
            for one in some:
                if not self._publish(MixedChannel.SUMS, one.body):
                    return
                self._sent_to = one.seq
            if len(some) < SENT_AT_ONCE:
                return

    def _say_state(self) -> None:
        if self._heard_at is None or time.monotonic() < self._state_at + state_every_s(self._config.clock_speed):
            return
        if self._publish(MixedChannel.STATE, encode(self._mixer.state(self._key, time.time())), retain=True):
            self._state_at = time.monotonic()

    def _publish(self, channel: MixedChannel, payload: bytes, *, retain: bool = False) -> bool:
        assert self._link is not None
        topic = topics.build(self._config.fleet, MixedTopic(self._config.mixer, channel))
        with suppress(OutboundQueueFull, LinkStopped):
            self._link.publish(topic, payload, qos=1, retain=retain)
            return True
        return False

    def _survived(self, run: Callable[[], object]) -> bool:
        """Run `run`; False when the disk refuses, said once when that begins, and once when it is over."""
        try:
            run()
        except MixLedgerUnavailable as error:
            said = str(error)
        else:
            if self._is_ledger_lost:
                log.info("ledger_back")
            self._is_ledger_lost = False
            return True
        if not self._is_ledger_lost:
            log.error("ledger_lost", error=said)
        self._is_ledger_lost = True
        return False


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Hold the folder for this process. Raises MixerError: another has it, or it cannot be written."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MixerError(f"{data} cannot be written: {error.strerror}; choose another with --data") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MixerError(f"another mixer uses {data}; end it, or choose another with --data") from error
        yield
    finally:
        os.close(descriptor)


def _batches(payload: bytes) -> Sequence[str]:
    try:
        return decode(payload, MixedAck).batches
    except WireError as error:
        log.warning("acknowledgement_malformed", error=str(error))
        return ()


def _link_config(link: LinkConfig) -> LinkConfig:
    return replace(link, session_expiry_s=SESSION_S, max_inflight=IN_FLIGHT, reconnect_min_s=0.2, reconnect_max_s=10.0)
