"""One device: what lasts (disk, journal, trust), and a process that can be killed between any two of its calls.

It is the in-memory counterpart of `muster_agent.daemon`: it builds the shipped `Conductor` and `ContentStore` from
ports and feeds them; it decides nothing about releases.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

from muster_agent.conductor import Conductor, Identity
from muster_agent.core.state import DeviceState
from muster_agent.core.state import Stage as Asked
from muster_agent.core.trial import TrialReading
from muster_agent.errors import JournalFailed
from muster_agent.io.store import ContentStore
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, Sha256
from muster_shared.messages import Event, Hardware, HostTelemetry, Presence, Refusal, ReleaseRef, encode
from muster_shared.topics import Channel, DeviceTopic, Topic, WantTopic, build, chunk_filter, device_filters, parse
from muster_simulator.clock import SkewedClock
from muster_simulator.ports.broker import Broker, Client, Publish, Will
from muster_simulator.ports.disk import MemoryDisk
from muster_simulator.ports.fuse import Fuse, SimulatedCrash, fused
from muster_simulator.ports.journal import MemoryJournal
from muster_simulator.ports.lab import ScriptedLab, Truth
from muster_simulator.ports.registry import Secret
from muster_simulator.ports.trust import MemoryTrust
from muster_simulator.stage import FLEET, Stage

WILL_DELAY_S = 15.0
TICK_GAP_S = 0.1
SLEEP_S_MAX = 600.0
RETRY_S = 5.0
"""As in `muster_agent.inbox`."""
TWIN_EVERY_S = 60.0


@dataclass(frozen=True)
class Nature:
    """What a device is and does, fixed by the seed."""

    device: DeviceId
    hardware: Hardware
    labels: Mapping[str, str]
    requests_per_s: float
    """0: nobody uses it."""
    later_share: float = 0.0
    """How often (0..1) its own rules say later when they are asked."""
    retry_s: float = 60.0
    """When it looks again then."""
    utc_offset_s: int = 0
    """Of its local clock."""


class SimulatedDevice:
    """A device of one world."""

    def __init__(
        self, stage: Stage, broker: Broker, nature: Nature, keys: tuple[Secret, Secret], truths: Mapping[Sha256, Truth]
    ) -> None:
        self.id = nature.device
        self.nature = nature
        self.clock = SkewedClock(stage.timeline)
        self.disk = MemoryDisk()
        self.fuse = Fuse()
        self.trust = MemoryTrust(*keys, clock=self.clock)
        self.conductor: Conductor | None = None
        self.lab: ScriptedLab | None = None
        self.client: Client | None = None
        self.is_dead = False
        """For good."""
        self.boots = 0
        self._stage = stage
        self._broker = broker
        self._truths = truths
        self._random = stage.random(f"device/{self.id}")
        self._tick_at: float | None = None
        self._failing = False
        self._taken_down_by: set[Sha256] = set()
        self.journal = _WatchedJournal(self.id, stage)

    @property
    def is_up(self) -> bool:
        return self.conductor is not None

    @property
    def state(self) -> DeviceState | None:
        """What a start would find."""
        return self.journal.load()

    # -- power -------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        if self.is_up or self.is_dead:
            return
        self.boots += 1
        word = f"boot{self.boots}"
        self._stage.history.add(self.id, "boots", self.boots)
        self.fuse.left = None
        self.trust.restart()
        self._failing = False
        store = ContentStore(fused(self.disk, self.fuse))
        topic = build(FLEET, DeviceTopic(self.id, Channel.PRESENCE))
        gone = Presence(device=self.id, boot=word, online=False, sent_at=self.clock())
        self.client = Client(
            self._stage,
            self._broker,
            self.id,
            device_filters(FLEET, self.id),
            Will(topic, encode(gone), WILL_DELAY_S),
            connected=self._connected,
            lost=self._lost,
            received=self._received,
        )
        self.lab = ScriptedLab(
            self._stage,
            self.id,
            store,
            self,
            self._truths,
            requests_per_s=self.nature.requests_per_s,
            random=self._stage.random(f"lab/{self.id}/{self.boots}"),
        )
        self.conductor = Conductor(
            Identity(
                fleet=FLEET,
                device=self.id,
                boot=word,
                agent_version="0.1.0",
                hardware=self.nature.hardware,
                labels=dict(self.nature.labels),
                timezone=_written(self.nature.utc_offset_s),
                twin_every_s=TWIN_EVERY_S,
            ),
            journal=fused(self.journal, self.fuse),
            store=store,
            trust=fused(self.trust, self.fuse),
            wire=_DeviceWire(self.id, self.client, self.fuse, self._stage),
            lab=fused(self.lab, self.fuse),
            host=_Host(),
            clock=self.clock,
            random=self._stage.random(f"conductor/{self.id}/{self.boots}"),
            consent=fused(
                _Consent(
                    self._stage, self.nature, self.clock, self, self._stage.random(f"consent/{self.id}/{self.boots}")
                ),
                self.fuse,
            ),
            trials=fused(self.lab, self.fuse),
            lately=fused(self.lab, self.fuse),
        )
        self._run(self.conductor.start)
        if self.client is not None:
            self.client.open()

    def crash(self, why: str, off_s: float | None, *, power: bool) -> None:
        """Kill the process; with `power`, what was not synced is lost too. It boots after `off_s`, or is visited."""
        if not self.is_up:
            return
        self._stage.history.add(self.id, "dies", why, "power" if power else "process", off_s)
        assert self.lab is not None
        assert self.client is not None
        self.lab.stop()
        self.client.close(noticed_after_s=self._random.choice((0.05, 60.0)))
        self.conductor = self.lab = self.client = None
        self._tick_at = None
        self.fuse.left = None
        if power:
            self.disk.lose_power(self._random)
            self._stage.observers.lost_power(self.id)
        if off_s is not None:
            self._stage.timeline.after(off_s, self.boot)

    def set_clock(self, offset_s: float) -> None:
        """Set the wall clock to so much after the true time. The process is not told."""
        if offset_s != self.clock.offset_s:
            self._stage.history.add(self.id, "clock", offset_s)
            self.clock.offset_s = offset_s

    def rot(self, path: str, random: Random) -> None:
        """A bit of a file flips."""
        self.disk.rot(path, random)
        self._stage.observers.rotted(self.id, Sha256(path.rpartition("/")[2]))

    # -- Answers of the lab ------------------------------------------------------------------------------------------

    def self_test_done(self, bundle: Sha256, refusal: Refusal | None, detail: str) -> None:
        assert self.conductor is not None
        self._stage.history.add(self.id, "self_test", bundle[:8], "passed" if refusal is None else refusal.value)
        self.conductor.self_test_done(bundle, refusal, detail)

    def serve_failed(self, bundle: Sha256, detail: str) -> None:
        assert self.conductor is not None
        self._stage.history.add(self.id, "serve_failed", bundle[:8])
        self.conductor.serve_failed(bundle, detail)

    def trial_measured(self, bundle: Sha256, reading: TrialReading) -> None:
        assert self.conductor is not None
        self.conductor.trial_measured(bundle, reading)

    def trial_refused(self, bundle: Sha256, detail: str) -> None:
        assert self.conductor is not None
        self._stage.history.add(self.id, "trial_refused", bundle[:8])
        self.conductor.trial_refused(bundle, detail)

    def taken_down(self, by: ReleaseRef, off_s: float) -> None:
        if by.bundle_sha256 in self._taken_down_by:
            off_s = min(off_s, 5.0)  # Who was visited once is watched now.
        self._taken_down_by.add(by.bundle_sha256)
        self.crash(f"{by.model} {by.version}", off_s, power=True)

    def run(self, act: Callable[[], None]) -> None:
        self._run(act)

    # -- Answers of its own rules ------------------------------------------------------------------------------------

    def consent_answered(self, bundle: Sha256, stage: Asked, *, given: bool) -> None:
        assert self.conductor is not None
        self._stage.history.add(self.id, "consent", bundle[:8], stage.value, given)
        if given:
            self.conductor.consent_given(bundle, stage)
        else:
            self.conductor.consent_deferred(bundle, stage, "busy", self.nature.retry_s)

    # -- the process -------------------------------------------------------------------------------------------------

    def _connected(self) -> None:
        if self.conductor is not None:
            self._stage.history.add(self.id, "connected")
            self._run(self.conductor.connected)

    def _lost(self) -> None:
        if self.conductor is not None:
            self._run(self.conductor.disconnected)

    def _received(self, text: str, payload: bytes) -> None:
        conductor = self.conductor
        if conductor is None:
            return
        try:
            topic = parse(FLEET, text)
        except WireError:
            return
        self._run(lambda: conductor.received(topic, payload))

    def _run(self, act: Callable[[], None]) -> None:
        """Let the process do one thing. It may die in it; it outlives a journal that refuses, as the daemon does."""
        try:
            act()
            self._failing = False
        except JournalFailed:
            self._failing = True
        except SimulatedCrash:
            weather = self._stage.faults
            power = self._random.random() < weather.power_lost
            self.crash("between two calls", self._random.uniform(1.0, weather.device_off_s_max), power=power)
            return
        self._stage.observers.device_stepped(self.id)
        self._sleep()

    def _sleep(self) -> None:
        """Wake for the next tick when the conductor says so."""
        conductor = self.conductor
        if conductor is None:
            return
        now = self._stage.timeline.now
        wake_at = conductor.wake_at()
        sleep_s = SLEEP_S_MAX if wake_at is None else min(SLEEP_S_MAX, max(TICK_GAP_S, wake_at - self.clock()))
        if self._failing:
            sleep_s = RETRY_S
        moment = now + sleep_s
        if self._tick_at is not None and now <= self._tick_at <= moment:
            return
        self._tick_at = moment

        def tick() -> None:
            if self.conductor is conductor and self._tick_at == moment:
                self._tick_at = None
                self._run(conductor.tick)

        self._stage.timeline.at(moment, tick)


class _DeviceWire:
    """`ports.Wire` over the line."""

    def __init__(self, device: DeviceId, client: Client, fuse: Fuse, stage: Stage) -> None:
        self._device = device
        self._client = client
        self._fuse = fuse
        self._observers = stage.observers

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None:
        self._fuse.burn()
        if isinstance(topic, WantTopic):
            self._observers.asked(self._device, topic.sha256)
        self._client.publish(Publish(build(FLEET, topic), payload, qos, retain))

    def listen(self, sha256: Sha256) -> None:
        self._fuse.burn()
        self._client.subscribe(chunk_filter(FLEET, sha256))

    def unlisten(self, sha256: Sha256) -> None:
        self._fuse.burn()
        self._client.unsubscribe(chunk_filter(FLEET, sha256))


class _WatchedJournal(MemoryJournal):
    """Tells the world what was committed."""

    def __init__(self, device: DeviceId, stage: Stage) -> None:
        super().__init__()
        self._device = device
        self._stage = stage

    def commit(self, state: DeviceState, events: Sequence[Event]) -> None:
        before = self.load()
        super().commit(state, events)
        history = self._stage.history
        for event in events:
            body = event.body
            history.add(self._device, type(body).__name__, *_facts(event))
        history.add(self._device, "commits", state.counter, *_phases(state))
        self._stage.observers.committed(self._device, before, state, events)


class _Consent:
    """`ports.Consent`, as the device's nature has it. What was asked is forgotten with the process."""

    def __init__(
        self, stage: Stage, nature: Nature, clock: Callable[[], float], device: SimulatedDevice, random: Random
    ) -> None:
        self._stage = stage
        self._nature = nature
        self._clock = clock
        self._device = device
        self._boots = device.boots
        self._random = random
        self._asked: set[tuple[Sha256, Asked]] = set()

    def local(self) -> tuple[int, int]:
        there = datetime.fromtimestamp(self._clock() + self._nature.utc_offset_s, UTC)
        return there.weekday(), there.hour * 60 + there.minute

    def ask(self, release: ReleaseRef, stage: Asked) -> None:
        question = (release.bundle_sha256, stage)
        if question in self._asked:
            return
        self._asked.add(question)
        given = self._random.random() >= self._nature.later_share

        def answer() -> None:
            self._asked.discard(question)
            self._device.consent_answered(*question, given=given)

        def arrive() -> None:
            if self._device.is_up and self._device.boots == self._boots:
                self._device.run(answer)

        self._stage.timeline.after(self._random.uniform(0.05, 2.0), arrive)


class _Host:
    def telemetry(self) -> HostTelemetry:
        return HostTelemetry()


def _written(offset_s: int) -> str:
    minutes = abs(offset_s) // 60
    return f"{'-' if offset_s < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}"


def _facts(event: Event) -> tuple[str | int | bool | None, ...]:
    body = event.body
    release = getattr(body, "release", None)
    words = [getattr(body, name, None) for name in ("step", "refusal", "good", "wave", "reason", "detail")]
    named = [getattr(word, "value", word) for word in words if word not in (None, "")]
    return (event.id[:6], *((release.model, release.version) if release else ()), *named)


def _phases(state: DeviceState) -> tuple[str, ...]:
    return tuple(
        f"{name}:{_version(model.slots.active)}/{_version(model.slots.standby)}"
        + (f">{model.update.release.version}:{model.update.phase.value}" if model.update else "")
        for name, model in sorted(state.models.items())
    )


def _version(release: ReleaseRef | None) -> str:
    return "-" if release is None else release.version
