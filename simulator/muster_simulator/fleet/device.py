"""One device of a fleet world: the shipped update core in a light shell.

    line ─▶ assignment, ack, session ─┐                     ┌▶ journal: state and outbox, whole or not at all
    time ─▶ wake-ups, answers ────────┼▶ update.advance ────┼▶ effects: answers come later, or never (power)
    power ─▶ start ───────────────────┘                     └▶ twin, events ─▶ line, until they are acknowledged

Fetching takes drawn time and no bytes, engines are the release's truth. It decides nothing about releases.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256 as digest_of
from random import Random
from typing import Any

import msgspec

from muster_agent.core import events, update
from muster_agent.core.state import DeviceState, ModelState
from muster_agent.core.trial import TrialReading
from muster_shared import assignment as assignments
from muster_shared.bundle import Slo
from muster_shared.ids import DeviceId, EventId, ModelName, Sha256
from muster_shared.messages import (
    Ack,
    ControllerSession,
    Event,
    EventBody,
    Hardware,
    Presence,
    Refusal,
    ReleaseRef,
    Twin,
    TwinModel,
    WindowReport,
    encode,
)
from muster_shared.topics import Channel
from muster_simulator.clock import Timeline
from muster_simulator.fleet.broker import Broker
from muster_simulator.fleet.registry import FleetRegistry
from muster_simulator.fleet.scale import FleetFaults
from muster_simulator.fleet.truth import Harm, Kind
from muster_simulator.fleet.watch import Watcher
from muster_simulator.history import History
from muster_simulator.ports.registry import SLO
from muster_simulator.stage import FLEET

RESEND_S = 900.0
"""How long an event waits for its acknowledgement before it is sent again over the same line. The real agent: 10 s."""
RETRY_S = 300.0
GOOD = Harm()


@dataclass
class Ground:
    """What all devices of a world share."""

    timeline: Timeline
    broker: Broker
    registry: FleetRegistry
    watch: Watcher
    history: History
    random: Random
    weather: FleetFaults
    traced: frozenset[DeviceId] = frozenset()
    is_calm: bool = False
    """Whoever is dark is visited soon."""
    is_peaceful: bool = False
    """Releases of the past take no device down any more."""


@dataclass
class Nature:
    """What a device is. Labels may change."""

    hardware: Hardware
    labels: dict[str, str]
    utc_offset_s: int
    requests_per_s: float
    latency_ms: float
    later_share: float
    """How often (0..1) its own rules say later when they are asked."""


class FleetDevice:
    """A device. `boot` starts it, `connect` gives it a line."""

    def __init__(self, ground: Ground, device: DeviceId, nature: Nature) -> None:
        self.id = device
        self.nature = nature
        self.state = DeviceState(FLEET, device)
        """What was committed last."""
        self.outbox: dict[int, bytes] = {}
        """Events by number, encoded, until they are acknowledged."""
        self.numbered = 0
        """Events committed in all its life."""
        self.stored: set[Sha256] = set()
        """Releases whose files are here."""
        self.offset_s = 0.0
        """How wrong its clock is, ..."""
        self.set_at = float("-inf")
        """... and when it was set last, in true time."""
        self.is_up = False
        self.is_dead = False
        """For good."""
        self.is_cut_off = False
        """It has no line, whatever it does."""
        self.has_identity = True
        """Without one no broker lets it in."""
        self.connection = 0
        self.connections = 0
        self.boots = 0
        self.boot_word = ""
        self._ground = ground
        self._now = ground.timeline
        self._sequence = 0
        self._raw = b""
        self._session: str | None = None
        self._said: tuple[object, ...] = ()
        self._waits: deque[events.Event] = deque()
        self._busy = False
        self._wakes: set[float] = set()
        self._wakes_at: float | None = None
        self._fetching: dict[Sha256, int] = {}
        self._loaded: set[Sha256] = set()
        self._serving: dict[ModelName, Sha256] = {}
        self._windows: dict[Sha256, float] = {}
        self._trying: dict[Sha256, float] = {}
        self._visited: set[Sha256] = set()
        self._is_resending = False

    def clock(self) -> float:
        return self._now.now + self.offset_s

    # -- power -------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        if self.is_up or self.is_dead:
            return
        self.is_up = True
        self.boots += 1
        self.boot_word = f"b{self.boots}"
        self._sequence = 0
        self._session = None
        self._raw = b""
        self._said = ()
        self._trace("boots")
        if self.state.counter:
            broken = {
                slot.bundle_sha256
                for model in self.state.models.values()
                for slot in (model.slots.active, model.slots.standby)
                if slot is not None and slot.bundle_sha256 not in self.stored
            }
            self.happen(events.PowerCameBack(frozenset(broken)))
        self.connect()

    def lose_power(self, off_s: float | None) -> None:
        """Go dark; what was not committed is gone. Without `off_s` it stays dark."""
        if not self.is_up:
            return
        self._trace("goes dark", off_s)
        self.is_up = False
        self.lose_line()
        self._waits.clear()
        self._wakes.clear()
        self._wakes_at = None
        self._fetching.clear()
        self._loaded.clear()
        self._serving.clear()
        self._windows.clear()
        self._trying.clear()
        if off_s is not None:
            self._now.after(off_s, self.boot)

    def die(self) -> None:
        self.is_dead = True
        self.lose_power(None)

    def set_clock(self, offset_s: float) -> None:
        """Set its clock to so much after the true time; it notices."""
        if offset_s == self.offset_s:
            return
        self._trace("clock", offset_s)
        self.offset_s = offset_s
        self.set_at = self._now.now
        self._wakes_at = None
        if self.is_up and self.state.counter:
            self.happen(events.TimeCame())

    def rot(self, random: Random) -> None:
        """A file of a slot is damaged; the next start finds it."""
        slots = [
            slot.bundle_sha256
            for model in self.state.models.values()
            for slot in (model.slots.active, model.slots.standby)
            if slot is not None
        ]
        if slots:
            bundle = random.choice(sorted(slots))
            self.stored.discard(bundle)
            self._trace("rots", bundle[:8])
            self._ground.watch.rotted(self.id, bundle)

    def relabel(self, labels: dict[str, str]) -> None:
        self.nature.labels = labels
        if self.connection:
            self._tell_twin(force=True)

    # -- the line ----------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        if not self.is_up or self.connection or self.is_cut_off or not self._ground.broker.is_up:
            return
        if not self.has_identity:
            return
        self.connections += 1
        self.connection = self.connections
        self._announce()
        self._ground.broker.connect(self)

    def lose_line(self) -> None:
        """The line breaks. Whoever cut it says when it is there again; see `connect`."""
        if not self.connection:
            return
        self.connection = 0
        broker = self._ground.broker
        broker.broken(self, self.boot_word, at_once=self._ground.random.random() < 0.5)
        if self.is_up and not self.is_cut_off and broker.is_up:
            self._now.after(self._ground.random.uniform(1.0, 120.0), self.connect)

    def lose_identity(self) -> None:
        """Its certificate is revoked: the broker closes its line, and its will is lost with its rights."""
        self.has_identity = False
        self.connection = 0

    def enrol(self) -> None:
        """Get another identity, by a clock that is right: no certificate is valid by another."""
        self.has_identity = True
        self.set_clock(0.0)
        self.connect()

    def take_assignment(self, envelope: bytes) -> None:
        if envelope == self._raw:
            return  # As the core finds by its digest.
        opened = self._ground.registry.online_key.open(envelope)
        if opened is None:
            return
        self._raw = envelope
        found = assignments.parse(opened)
        self.happen(
            events.AssignmentArrived(found, Sha256(digest_of(envelope).hexdigest()), self._ground.registry.targets)
        )

    def take_ack(self, payload: bytes) -> None:
        for name in msgspec.json.decode(payload, type=Ack).ids:
            self.outbox.pop(int(name.rpartition(".")[2]), None)

    def take_session(self, payload: bytes) -> None:
        session = msgspec.json.decode(payload, type=ControllerSession).session
        if session != self._session:
            self._session = session
            self._announce()

    def _announce(self) -> None:
        presence = Presence(device=self.id, boot=self.boot_word, online=True, sent_at=self.clock())
        self._ground.broker.publish(self, Channel.PRESENCE, encode(presence))
        self._tell_twin(force=True)
        self._send()

    def _send(self) -> None:
        for payload in self.outbox.values():
            self._ground.broker.publish(self, Channel.EVENT, payload)
        self._resend_later()

    def _resend_later(self) -> None:
        if not self._is_resending and self.outbox:
            self._is_resending = True
            self._now.after(RESEND_S, self._resend)

    def _resend(self) -> None:
        self._is_resending = False
        if self.outbox and self.connection:
            self._send()

    def tell_again(self) -> None:
        """Tell the twin as it is, as the real agent does every minute."""
        self._tell_twin(force=True)

    def _tell_twin(self, *, force: bool = False) -> None:
        """Tell the twin when something in it has changed that a controller goes by."""
        if not self.connection:
            return
        state = self.state
        said = (
            state.counter,
            *[(model.slots.active, model.slots.standby, model.update is None) for model in state.models.values()],
        )
        if said == self._said and not force:
            return
        self._said = said
        self._sequence += 1
        nature = self.nature
        twin = Twin(
            device=self.id,
            sent_at=self.clock(),
            boot=self.boot_word,
            sequence=self._sequence,
            agent_version="0.1.0",
            counter=state.counter,
            hardware=nature.hardware,
            labels=nature.labels,
            models=tuple(_twin_model(name, state.models[name]) for name in sorted(state.models)),
        )
        self._ground.broker.publish(self, Channel.TWIN, encode(twin))

    # -- the core ----------------------------------------------------------------------------------------------------

    def happen(self, event: events.Event) -> None:
        """Let the core decide about `event`; one that arises while effects are carried out waits for its turn."""
        self._waits.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._waits:
                self._step(self._waits.popleft())
        finally:
            self._busy = False
        if self.is_up:
            self._tell_twin()
            self._sleep()

    def _step(self, event: events.Event) -> None:
        before = self.state
        state, effects = update.advance(before, event, self.clock())
        bodies = [effect.body for effect in effects if isinstance(effect, events.Report)]
        if bodies or state is not before:
            self._commit(before, state, bodies)
            cut = self._ground.weather.power_cut_at_commit
            if cut and self._ground.random.random() < cut:
                self.lose_power(self._ground.random.uniform(5.0, self._ground.weather.off_s_max))
                return
        for effect in effects:
            if not self.is_up:
                return
            self._carry_out(effect)

    def _commit(self, before: DeviceState, state: DeviceState, bodies: Sequence[EventBody]) -> None:
        first = self.numbered + 1
        self.state = state
        for body in bodies:
            self.numbered += 1
            event = Event(id=EventId(f"{self.id}.{self.numbered}"), device=self.id, at=self.clock(), body=body)
            self.outbox[self.numbered] = payload = encode(event)
            self._trace("commits", type(body).__name__, *_words(body))
            if self.connection:
                self._ground.broker.publish(self, Channel.EVENT, payload)
        if bodies:
            self._resend_later()
        self._ground.watch.committed(self.id, before, state, bodies, first)

    def _carry_out(self, effect: events.Effect) -> None:
        random = self._ground.random
        match effect:
            case events.Report():
                pass
            case events.WakeAt(at):
                self._wakes.add(at)
            case events.FetchManifest(release):
                manifest = self._ground.registry.manifests[release.bundle_sha256]
                self.happen(events.ManifestReady(release.bundle_sha256, manifest, self.nature.hardware))
            case events.FetchFiles(release):
                self._fetch(release)
            case events.StopFetching(bundle):
                self._fetching.pop(bundle, None)
            case events.SelfTest(release):
                wait_s = 1.0 if release.bundle_sha256 in self._loaded else random.uniform(5.0, 40.0)
                self._later(wait_s, self._prove, release)
            case events.ReadClock(release):
                self.happen(events.ClockRead(release.bundle_sha256, *self.local()))
            case events.AskConsent(release, stage):
                if random.random() < self.nature.later_share:
                    wait_s = random.choice((600.0, 1800.0, 7200.0))
                    self.happen(events.ConsentDeferred(release.bundle_sha256, stage, "busy", wait_s))
                else:
                    self.happen(events.ConsentGiven(release.bundle_sha256, stage))
            case events.BeginTrial(release, _):
                self._trying[release.bundle_sha256] = self._now.now
                self._loaded.add(release.bundle_sha256)
                if self._truth(release.bundle_sha256) is Kind.CRASHING:
                    self._later(random.uniform(1.0, 8.0), self._fall, release.bundle_sha256)
            case events.ReadTrial(release):
                self._read_trial(release)
            case events.EndTrial(release):
                self._trying.pop(release.bundle_sha256, None)
            case events.MeasureBefore(release, serving, seconds, requests_min):
                used = seconds * self.nature.requests_per_s >= requests_min
                latency = self._latency(serving.bundle_sha256) if used else None
                self.happen(events.BeforeMeasured(release.bundle_sha256, latency))
            case events.Serve(release):
                if release.bundle_sha256 not in self.stored:
                    self.happen(events.ServeFailed(release.bundle_sha256, "its files are damaged"))
                else:
                    self._serving[release.model] = release.bundle_sha256
                    self._trying.pop(release.bundle_sha256, None)
            case events.Retire(model):
                self._serving.pop(model, None)
            case events.OpenWindow(release):
                self._open_window(release.bundle_sha256)
            case events.Measure(release):
                window, slo = self._measure(release.bundle_sha256)
                self.happen(events.WindowMeasured(release.bundle_sha256, window, slo))
            case events.Collect(keep, resting):
                self.stored &= keep
                self._loaded &= keep - resting
                self._windows = {bundle: at for bundle, at in self._windows.items() if bundle in keep}

    # -- what effects come to ----------------------------------------------------------------------------------------

    def _fetch(self, release: ReleaseRef) -> None:
        bundle, random = release.bundle_sha256, self._ground.random
        if bundle not in self.stored:
            self._ground.watch.asked(self.id, bundle)
        self._fetching[bundle] = token = self._fetching.get(bundle, 0) + 1
        seconds = 1.0 if bundle in self.stored else random.lognormvariate(5.0, 0.7)
        self._later(seconds, self._fetched, bundle, token)

    def _fetched(self, bundle: Sha256, token: int) -> None:
        if self._fetching.get(bundle) != token:
            return
        if bundle not in self.stored and not self.connection:
            self._later(RETRY_S, self._fetched, bundle, token)  # Nothing comes without a line.
            return
        del self._fetching[bundle]
        if self._ground.random.random() < self._ground.weather.fetch_fails:
            refusal = self._ground.random.choice((Refusal.TAMPERED, Refusal.DISK_FULL))
            self.happen(events.FetchFailed(bundle, refusal, "so it is drawn"))
            return
        length = 0 if bundle in self.stored else 1_000_000
        self.stored.add(bundle)
        self.happen(events.FilesReady(bundle, length))

    def _prove(self, release: ReleaseRef) -> None:
        bundle = release.bundle_sha256
        if bundle not in self.stored:
            self.happen(events.SelfTestDone(bundle, Refusal.TAMPERED, "its files are damaged"))
        elif self._truth(bundle) is Kind.UNPROVEN:
            self.happen(events.SelfTestDone(bundle, Refusal.SELF_TEST_FAILED, "case 3 of 8 differs"))
        else:
            self._loaded.add(bundle)
            self.happen(events.SelfTestDone(bundle, None, ""))

    def _open_window(self, bundle: Sha256) -> None:
        self._windows[bundle] = self._now.now
        match self._truth(bundle):
            case Kind.CRASHING:
                self._later(self._ground.random.uniform(5.0, 60.0), self._fall, bundle)
            case Kind.BRICKING:
                self._later(self._ground.random.uniform(5.0, 60.0), self._brick, bundle)
            case _:
                pass

    def _fall(self, bundle: Sha256) -> None:
        if (bundle in self._windows or bundle in self._trying) and not self._ground.is_peaceful:
            self.lose_power(self._ground.random.uniform(10.0, 120.0))

    def _brick(self, bundle: Sha256) -> None:
        if bundle in self._serving.values() and not self._ground.is_peaceful and bundle not in self._visited:
            self._visited.add(bundle)  # Who was visited once is watched then.
            days = self._ground.random.uniform(1.0, 4.0)
            self.lose_power(3600.0 if self._ground.is_calm else days * 86400.0)

    def _measure(self, bundle: Sha256) -> tuple[WindowReport, Slo]:
        seconds = self._now.now - self._windows.get(bundle, self._now.now)
        count = min(200, int(seconds * self.nature.requests_per_s))
        if not count:
            return WindowReport(seconds=seconds), SLO
        kind = self._truth(bundle)
        errors = count // 2 if kind is Kind.FAILING else 0
        labelled = min(40, count - errors)
        right = int(labelled * 0.3) if kind is Kind.INACCURATE else labelled - (labelled > 30)
        latency = self._latency(bundle)
        return WindowReport(
            seconds=seconds,
            requests=count - errors,
            errors=errors,
            labelled=labelled,
            right=right,
            latency_ms_p50=latency / 2,
            latency_ms_p95=latency,
        ), SLO

    def _read_trial(self, release: ReleaseRef) -> None:
        began = self._trying.get(release.bundle_sha256)
        model = self.state.models.get(release.model)
        if began is None or model is None or model.update is None or model.update.trial is None:
            return
        trial, kind = model.update.trial, self._truth(release.bundle_sha256)
        seconds = self._now.now - began
        count = min(400, int(seconds * self.nature.requests_per_s * trial.share))
        errors = count // 2 if kind is Kind.FAILING else 0
        answered = count - errors
        self.happen(
            events.TrialMeasured(
                release.bundle_sha256,
                TrialReading(
                    seconds=seconds,
                    compared=answered if trial.mode == "shadow" else 0,
                    disagreed=int(answered * 0.6) if kind is Kind.INACCURATE and trial.mode == "shadow" else 0,
                    answered=answered,
                    errors=errors,
                    latency_ms_p95=self._latency(release.bundle_sha256) if answered else None,
                    serving_answered=count,
                    serving_latency_ms_p95=self.nature.latency_ms if count else None,
                ),
            )
        )

    def _latency(self, bundle: Sha256) -> float:
        slower = 1.25 if self._truth(bundle) is Kind.SLOWER else 1.0
        return self.nature.latency_ms * slower * self._ground.random.lognormvariate(0.0, 0.05)

    def _truth(self, bundle: Sha256) -> Kind:
        harm = self._ground.registry.harms.get(bundle, GOOD)
        return harm.on(bundle, self.id, self.nature.hardware.device_class)

    # -- time --------------------------------------------------------------------------------------------------------

    def local(self) -> tuple[int, int]:
        """Return weekday (Monday is 0) and minute of the day of its clock on the wall."""
        minutes = int(self.clock() + self.nature.utc_offset_s) // 60
        return (minutes // 1440 + 3) % 7, minutes % 1440  # 1970 began on a Thursday.

    def _sleep(self) -> None:
        if not self._wakes:
            return
        first = min(self._wakes)
        if self._wakes_at is None or first < self._wakes_at:
            self._wakes_at = first
            self._now.at(first - self.offset_s, partial(self._wake, self.boots, first))

    def _wake(self, boots: int, at: float) -> None:
        if not self.is_up or boots != self.boots or self._wakes_at != at:
            return
        self._wakes_at = None
        now = self.clock()
        self._wakes = {each for each in self._wakes if each > now}
        self.happen(events.TimeCame())

    def _later(self, delay_s: float, act: Any, *facts: Any) -> None:
        self._now.after(delay_s, partial(self._act, self.boots, act, facts))

    def _act(self, boots: int, act: Any, facts: tuple[Any, ...]) -> None:
        if self.is_up and boots == self.boots:
            act(*facts)

    def _trace(self, what: str, *facts: str | int | float | bool | None) -> None:
        if self.id in self._ground.traced:
            self._ground.history.add(self.id, what, *facts)


def _twin_model(name: ModelName, model: ModelState) -> TwinModel:
    pending = model.update
    return TwinModel(
        model=name,
        phase="idle" if pending is None else pending.phase.value,
        active=model.slots.active,
        standby=model.slots.standby,
        desired=model.slots.active if pending is None else pending.release,
        last_error=model.last_error,
    )


def _words(body: EventBody) -> tuple[str, ...]:
    release = getattr(body, "release", None)
    words = [getattr(body, name, None) for name in ("step", "refusal", "good", "wave", "rollout", "reason", "detail")]
    named = [str(getattr(word, "value", word)) for word in words if word not in (None, "")]
    return (*((f"{release.model}-{release.version}",) if release else ()), *named)
