"""The simulated devices of one process: a conductor and a link each, and one thread that decides for all of them.

    link threads ── (device, item) ──▶ ┌───────┐
    labs         ── later ──▶ timers ─▶│ inbox │ ──▶ Conductor.received, .connected, .tick … ──▶ ack
                                       └───────┘

The agent's `inbox.ConductorThread` does this for one device; a thread for each conductor as well would cost fifty more.
"""

import heapq
import itertools
import queue
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog

from muster_agent import __version__
from muster_agent.conductor import Conductor, Identity
from muster_agent.identity.folder import IdentityFolder
from muster_agent.io.client_id import BYTES, client_id_of
from muster_agent.io.wire import MqttWire
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId, ModelName
from muster_shared.link import (
    BrokerAddress,
    Connected,
    Disconnected,
    Link,
    LinkConfig,
    LinkItem,
    Received,
    Will,
)
from muster_shared.messages import Hardware, Presence, encode
from muster_shared.metrics import metrics_time
from muster_shared.topics import Channel, DeviceTopic, build, device_filters, parse
from muster_simulator.load.lab import Tally, TruthLab
from muster_simulator.load.measuring import Measuring
from muster_simulator.load.memory import MemoryStore, NoSensors, Pool
from muster_simulator.load.trust import DeviceTrust, SharedTrust
from muster_simulator.load.truth import Truths
from muster_simulator.ports.journal import MemoryJournal

ITEMS_MAX = 40_000  # Of all devices together.
CHUNKS_WAITING_MAX = 32_000  # More are lost on purpose and asked for again; equal ones are one object in memory.
CHUNKS_SHARED_MAX = 512  # 60 KiB each: what is on its way to many devices at once.
WILL_DELAY_S = 15  # As a real agent's.
SESSION_EXPIRY_S = 60
STOP_TIMEOUT_S = 5.0
IDLE_S = 1.0
TICK_GAP_S = 0.02  # As a real agent's: however wrong the moments are that a conductor names, ticks stay rare.

log = structlog.get_logger()


@dataclass(frozen=True)
class LoadedDevice:
    """One device and its parts."""

    id: DeviceId
    conductor: Conductor
    link: Link
    wire: MqttWire
    lab: TruthLab
    store: MemoryStore
    measuring: Measuring


@dataclass(frozen=True)
class Counters:
    """What all devices have done so far."""

    devices: int
    connected: int
    requests: int
    self_tests: int
    bytes_fetched: int
    bytes_held: int
    """In memory, equal pieces counted once."""
    chunks_dropped: int
    metadata_verified: int
    active: Mapping[str, Mapping[str, int]]
    """model -> version -> devices."""
    updating: int
    tallies: Mapping[str, Mapping[str, Tally]]
    """model -> version -> what was asked and answered right."""


class LoadedFleet:
    """`start` it, look at `counters`, `stop` it."""

    def __init__(
        self,
        fleet: FleetId,
        devices: Mapping[DeviceId, Hardware],
        broker: BrokerAddress,
        bootstrap_root: bytes,
        trust_folder: Path,
        truths: Truths,
        *,
        requests_per_s: Callable[[ModelName], float],
        twin_every_s: float,
        seed: int,
        identities: Path | None = None,
        clock_speed: float = 1.0,
        clock_since: float = 0.0,
    ) -> None:
        """
        Args:
            clock_speed, clock_since: of the anonymous metrics, as in the agents' configuration.
            identities: holds an identity folder for each device; None: they call without a certificate.
        """
        self.chunks_dropped = 0
        self._fleet = fleet
        self._broker = broker
        self._identities = identities
        self._seed = seed
        self._requests_per_s = requests_per_s
        self._twin_every_s = twin_every_s
        self._truths = truths
        self._clock_speed = clock_speed
        self._clock_since = clock_since
        self._pool = Pool()
        self._trust = SharedTrust(trust_folder, bootstrap_root, time.time)
        self._inbox: queue.Queue[tuple[int, LinkItem] | Callable[[], None]] = queue.Queue(ITEMS_MAX)
        self._chunks: dict[str, bytes] = {}
        self._chunks_lock = threading.Lock()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._wakes: list[tuple[float, int]] = []
        self._wake_of: dict[int, float] = {}
        self._ticked_at: dict[int, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="devices", daemon=True)
        self.devices: Sequence[LoadedDevice] = [
            self._device(number, device, hardware) for number, (device, hardware) in enumerate(sorted(devices.items()))
        ]

    def start(self) -> None:
        self._thread.start()
        for device in self.devices:
            device.link.start()

    def stop(self) -> None:
        """Say goodbye for every device, then end the threads."""
        with suppress(queue.Full):
            self._inbox.put(self._farewell, timeout=STOP_TIMEOUT_S)
        self._ending.wait(STOP_TIMEOUT_S)
        self._ending.set()
        with ThreadPoolExecutor(max_workers=len(self.devices) or 1) as stopping:
            list(stopping.map(lambda device: device.link.stop(STOP_TIMEOUT_S), self.devices))
        self._thread.join(STOP_TIMEOUT_S)

    def counters(self, timeout_s: float = STOP_TIMEOUT_S) -> Counters:
        """Return the counters, read on the devices' thread. Raises queue.Full or queue.Empty when it is too busy."""
        answer: queue.Queue[Counters] = queue.Queue(1)
        self._inbox.put(lambda: answer.put_nowait(self._count()), timeout=timeout_s)
        return answer.get(timeout=timeout_s)

    # -- making a device ---------------------------------------------------------------------------------------------

    def _device(self, number: int, device: DeviceId, hardware: Hardware) -> LoadedDevice:
        chance = random.Random(f"{self._seed}-{device}")
        boot = secrets.token_hex(8)
        gone = Presence(device=device, boot=boot, online=False, sent_at=time.time())
        identity = None if self._identities is None else IdentityFolder(self._identities / device)
        link = Link(
            LinkConfig(
                self._broker,
                client_id=client_id_of(self._fleet, device, secrets.token_hex(BYTES)),  # Nothing of it outlives us.
                clean_start=True,
                session_expiry_s=SESSION_EXPIRY_S,
                will=Will(build(self._fleet, _presence(device)), encode(gone), delay_s=WILL_DELAY_S),
                ca_path=None if identity is None else identity.ca_path,
                cert_path=None if identity is None else identity.certificate_path,
                key_path=None if identity is None else identity.session_key_path,
            ),
            lambda item: self._heard(number, item),
            rng=random.Random(chance.getrandbits(64)),
        )
        link.subscribe(device_filters(self._fleet, device))
        store, trust = MemoryStore(self._pool), DeviceTrust(self._trust)
        wire = MqttWire(link, self._fleet)
        lab = TruthLab(
            store,
            self._truths,
            lambda delay_s, call: self._later(number, delay_s, call),
            requests_per_s=self._requests_per_s,
            clock=time.time,
            random=chance,
        )
        conductor = Conductor(
            Identity(
                fleet=self._fleet,
                device=device,
                boot=boot,
                agent_version=__version__,
                hardware=hardware,
                labels={"simulated": "yes"},
                twin_every_s=self._twin_every_s,
            ),
            journal=MemoryJournal(),
            store=store,
            trust=trust,
            wire=wire,
            lab=lab,
            host=NoSensors(),
            clock=time.time,
            random=random.Random(),  # Event ids must differ from those of an earlier run with this seed.
        )
        lab.self_test_done, lab.serve_failed = conductor.self_test_done, conductor.serve_failed
        measuring = Measuring(
            self._fleet,
            hardware.device_class,
            link,
            lab,
            trust.mixers,
            lambda: metrics_time(time.time(), self._clock_speed, self._clock_since),
            self._clock_speed,
            random.Random(),
        )
        return LoadedDevice(device, conductor, link, wire, lab, store, measuring)

    # -- from the links' threads -------------------------------------------------------------------------------------

    def _heard(self, number: int, item: LinkItem) -> None:
        """Queue what matters; a full inbox raises, which cuts the connection, rather than wait."""
        match item:
            case Received(qos=0) if self._inbox.qsize() >= CHUNKS_WAITING_MAX:
                self.chunks_dropped += 1
            case Received(qos=0):
                self._inbox.put_nowait((number, self._shared(item)))
            case Received() | Connected() | Disconnected():
                self._inbox.put_nowait((number, item))
            case _:
                self.devices[number].measuring.heard(item)

    def _shared(self, chunk: Received) -> Received:
        """Return `chunk` with the copy of its bytes that other devices were sent on the same topic, if it is equal."""
        with self._chunks_lock:
            known = self._chunks.get(chunk.topic)
            if known == chunk.payload:
                return replace(chunk, payload=known)
            self._chunks[chunk.topic] = chunk.payload
            if len(self._chunks) > CHUNKS_SHARED_MAX:
                del self._chunks[next(iter(self._chunks))]
            return chunk

    # -- on the devices' thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        for number, device in enumerate(self.devices):
            self._guarded(number, device.conductor.start)
            self._later(number, 0.0, partial(self._measure, number))
        while not self._ending.is_set():
            try:
                item = self._inbox.get(timeout=self._sleep_s())
            except queue.Empty:
                pass
            else:
                if isinstance(item, tuple):
                    self._handle(*item)
                else:
                    item()
                del item  # It may hold a chunk until the next one comes.
            self._do_what_is_due()

    def _handle(self, number: int, item: LinkItem) -> None:
        device = self.devices[number]
        match item:
            case Received(text, payload, _, _, token):
                self._guarded(number, lambda: self._received(device, text, payload))
                device.link.ack(token)
            case Connected():
                self._guarded(number, device.conductor.connected)
            case Disconnected():
                self._guarded(number, device.conductor.disconnected)
            case _:
                pass

    def _received(self, device: LoadedDevice, text: str, payload: bytes) -> None:
        try:
            topic = parse(self._fleet, text)
        except WireError:
            return  # Another's topic; a real agent counts it.
        device.conductor.received(topic, payload)

    def _later(self, number: int, delay_s: float, call: Callable[[], None]) -> None:
        at = time.time() + delay_s
        heapq.heappush(self._timers, (at, next(self._numbers), lambda: self._guarded(number, call)))

    def _measure(self, number: int) -> None:
        self._later(number, self.devices[number].measuring.look(), partial(self._measure, number))

    def _do_what_is_due(self) -> None:
        now = time.time()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        while self._wakes and self._wakes[0][0] <= now:
            at, number = heapq.heappop(self._wakes)
            if self._wake_of.get(number) == at:
                self._ticked_at[number] = now
                self._guarded(number, self.devices[number].conductor.tick)

    def _sleep_s(self) -> float:
        moments = [timers[0][0] for timers in (self._timers, self._wakes) if timers]
        return max(0.0, min([IDLE_S, *(at - time.time() for at in moments)]))

    def _guarded(self, number: int, act: Callable[[], None]) -> None:
        """One device's trouble must not stop the others; afterwards ask when it wants to be woken."""
        try:
            act()
        except Exception:
            log.exception("device_failed", device=self.devices[number].id)
        wake_at = self.devices[number].conductor.wake_at()
        if wake_at is None:
            self._wake_of.pop(number, None)
            return
        wake_at = max(wake_at, self._ticked_at.get(number, 0.0) + TICK_GAP_S)
        if self._wake_of.get(number) != wake_at:
            self._wake_of[number] = wake_at
            heapq.heappush(self._wakes, (wake_at, number))

    def _farewell(self) -> None:
        for device in self.devices:
            gone = Presence(device=device.id, boot=device.conductor.identity.boot, online=False, sent_at=time.time())
            device.wire.publish(_presence(device.id), encode(gone), qos=1, retain=True)
        self._ending.set()

    def _count(self) -> Counters:
        active: dict[str, Counter[str]] = {}
        tallies: dict[str, dict[str, Tally]] = {}
        updating = 0
        for device in self.devices:
            for name, model in device.conductor.state.models.items():
                updating += model.update is not None
                if model.slots.active is not None:
                    active.setdefault(name, Counter())[model.slots.active.version] += 1
            for (name, version), tally in device.lab.tallies().items():
                total = tallies.setdefault(name, {}).setdefault(version, Tally())
                total.requests += tally.requests
                total.right += tally.right
        return Counters(
            devices=len(self.devices),
            connected=sum(device.link.is_connected for device in self.devices),
            requests=sum(tally.requests for versions in tallies.values() for tally in versions.values()),
            self_tests=sum(device.lab.self_tests for device in self.devices),
            bytes_fetched=sum(device.store.bytes_written for device in self.devices),
            bytes_held=self._pool.size_bytes,
            chunks_dropped=self.chunks_dropped,
            metadata_verified=self._trust.verified,
            active=active,
            updating=updating,
            tallies=tallies,
        )


def _presence(device: DeviceId) -> DeviceTopic:
    return DeviceTopic(device, Channel.PRESENCE)
