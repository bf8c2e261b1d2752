"""The fleet: takes what devices say and operators order, lets the core decide, saves it, and publishes what follows.

    wire ─ received ─▶ parse at the edge ─▶ core.rollout.advance ─▶ ledger (one transaction) ─▶ wire
    api  ─ create_rollout, order ─▶   ▲                                                         assignments, acks
    time ─ tick ──────────────────────┘

Everything is computed from rows, and every step is idempotent, so that it may be killed between any two of them: what
was saved and not published is published again at the next connect. Ports only, so the simulator runs this very class.
Single-threaded: whoever owns it calls it from one thread.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random

import structlog

from muster_controller.core import rollout as machine
from muster_controller.core.policy import Policy, check
from muster_controller.core.rollout import DeviceFacts, Order, Rollout
from muster_controller.courier import Courier
from muster_controller.errors import Conflict, NotFound
from muster_controller.ports import Baseline, Desired, Device, Ledger, Note, Registry, Wire
from muster_shared.assignment import LIFETIME_S, Assignment, ModelAssignment, Watch
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId, ModelName, RolloutId
from muster_shared.messages import (
    Ack,
    AssignmentRefused,
    ControllerSession,
    Event,
    OutcomeReported,
    Presence,
    ReleaseRef,
    StepReached,
    Twin,
    Want,
    decode,
    encode,
)
from muster_shared.topics import Channel, ControllerTopic, DeviceTopic, Topic, TrustTopic, WantTopic
from muster_shared.variants import choose

log = structlog.get_logger()

LATE_WAVE = 1_000_000  # The wave of a device that gets the release after the rollout has finished.
TICK_S = 0.25
RECONCILE_S = 1.0
TRUST_EVERY_S = 300.0
RESEND_S = 60.0  # How long a device may take to obey before its assignment is published again.
RETRY_S = 3600.0
ANNOUNCE_S = 60.0  # By then, after a new session, every device that is there has said so.


@dataclass
class Counters:
    malformed: int = 0
    events: int = 0
    repeated_events: int = 0
    assignments: int = 0


class Fleet:
    """The controller's heart. Call `connected` and `received` as the broker speaks, `tick` as time passes."""

    def __init__(
        self,
        fleet: FleetId,
        *,
        ledger: Ledger,
        registry: Registry,
        wire: Wire,
        clock: Callable[[], float],
        random: Random,
        session: str,
    ) -> None:
        self.id = fleet
        self.counters = Counters()
        self.courier = Courier(registry, wire, clock)
        self._ledger = ledger
        self._registry = registry
        self._wire = wire
        self._clock = clock
        self._random = random
        self._session = session
        self._connects = 0
        self._outbox: list[tuple[Topic, bytes, bool]] = []
        self._trust_at = float("-inf")
        self._reconciled_at = float("-inf")
        self._connected_at: float | None = None
        """Of the newest connect, until who was not heard since has been taken for offline."""
        self._said_at: dict[DeviceId, float] = {}
        self._missed: set[DeviceId] = set()
        """Taken for offline because they did not answer in time, not because they or the broker said so."""

    # -- the broker --------------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """The broker is there, and may have forgotten everything: say it all again."""
        self._connects += 1
        self._connected_at = self._clock()
        self.publish_trust()
        with self._transaction():
            for desired in self._ledger.all_desired():
                if desired.envelope:
                    self._send(DeviceTopic(desired.device, Channel.ASSIGNMENT), desired.envelope, retain=True)
        session = ControllerSession(session=f"{self._session}-{self._connects}", sent_at=self._clock())
        self._send(ControllerTopic(), encode(session), retain=True)
        self._publish()

    def publish_trust(self) -> None:
        """Publish the TUF metadata; to be called whenever it changed."""
        self._trust_at = self._clock()
        for files in self._registry.trust_messages():
            self._wire.publish(TrustTopic(files.role), encode(files), qos=1, retain=True)

    def received(self, topic: Topic, payload: bytes) -> None:
        """One message, as it came. When this returns, it is in the database."""
        try:
            match topic:
                case DeviceTopic(device, Channel.PRESENCE):
                    self._presence(device, decode(payload, Presence))
                case DeviceTopic(device, Channel.TWIN):
                    self._twin(device, decode(payload, Twin))
                case DeviceTopic(device, Channel.EVENT):
                    self._event(device, decode(payload, Event))
                case WantTopic(sha256):
                    self.courier.wanted(sha256, decode(payload, Want))
                case _:
                    raise WireError("nothing that a controller listens to")
        except WireError as error:
            self.counters.malformed += 1
            if self.counters.malformed < 10:
                log.warning("message_malformed", topic=str(topic), error=str(error))

    def tick(self) -> None:
        """Do what is due: verdicts, waves, late devices, renewals, chunks."""
        now = self._clock()
        with self._transaction():
            for rollout in self._ledger.rollouts(running=True):
                self._advance(rollout, machine.Tick(self._facts(rollout)))
            if not self._reconciled_at <= now < self._reconciled_at + RECONCILE_S:
                self._reconciled_at = now
                self._reconcile(now)
        self._publish()
        self.courier.tick()
        if now >= self._trust_at + TRUST_EVERY_S or now < self._trust_at:
            self.publish_trust()

    # -- operators ---------------------------------------------------------------------------------------------------

    def create_rollout(self, model: ModelName, version: str, policy: Policy, actor: str) -> Rollout:
        """Start bringing `version` of `model` to the devices that the policy selects and that can run it.

        Raises:
            PolicyInvalid: the policy cannot be evaluated or satisfied.
            NotFound: no such release.
            Conflict: another rollout of the model is under way, or no device could run the release.
        """
        check(policy)
        release = self._registry.release(model, version)
        if release is None:
            raise NotFound("model", f"{model} {version}")
        with self._transaction():
            for other in self._ledger.rollouts(running=True):
                if other.model == model:
                    raise Conflict(f"rollout {other.id} of {model} is {other.state.value}; finish or abort it first")
            baseline = self._ledger.baseline(model)
            if baseline is not None and baseline.release.bundle_sha256 == release.bundle_sha256:
                raise Conflict(f"{model} {version} is what the fleet runs already")
            devices = self._eligible(release, policy.selector)
            if not devices:
                raise Conflict(f"no known device that the selector names can run {model} {version}")
            rollout = machine.create(
                RolloutId(f"{model}-{version.replace('.', '-').lower()}-{self._random.getrandbits(24):06x}"),
                release,
                None if baseline is None else baseline.release,
                policy,
                devices,
                now=self._clock(),
                actor=actor,
                shuffle=self._random.shuffle,
            )
            self._ledger.save_rollout(rollout, None)
            self._note("rollout_created", rollout.id, f"{model} {version} to {len(devices)} devices", actor)
        self.tick()
        return self._ledger.rollout(rollout.id) or rollout

    def order(self, rollout_id: RolloutId, order: Order, actor: str, reason: str) -> Rollout:
        """Pause, resume, abort or roll back. Raises NotFound, OrderRefused, Conflict."""
        with self._transaction():
            rollout = self._ledger.rollout(rollout_id)
            if rollout is None:
                raise NotFound("rollout", rollout_id)
            if order is Order.ROLL_BACK:
                baseline = self._ledger.baseline(rollout.model)
                if baseline is None or baseline.release != rollout.release:
                    raise Conflict(f"{rollout.model} {rollout.release.version} is not what the fleet runs any more")
                if any(other.model == rollout.model for other in self._ledger.rollouts(running=True)):
                    raise Conflict(f"another rollout of {rollout.model} is under way; finish or abort it first")
            rollout = self._advance(rollout, machine.Ordered(order, actor, reason))
            self._note(f"rollout_{order.value}", rollout_id, reason, actor)
        self._publish()
        return rollout

    # -- what devices say --------------------------------------------------------------------------------------------

    def _presence(self, device_id: DeviceId, presence: Presence) -> None:
        if presence.device != device_id:
            raise WireError(f"presence of {presence.device} on the topic of {device_id}")
        with self._transaction():
            device = self._ledger.device(device_id) or Device(device_id)
            if not presence.online and device.boot not in ("", presence.boot):
                return  # The will of a former life.
            if presence.online or device.online:
                log.debug("presence", device=device_id, online=presence.online)
            self._missed.discard(device_id)
            # It may be a retained copy, which is no sign of life: only a new twin is, and it follows at once.
            self._ledger.save_device(replace(device, online=presence.online, boot=presence.boot))

    def _twin(self, device_id: DeviceId, twin: Twin) -> None:
        if twin.device != device_id:
            raise WireError(f"twin of {twin.device} on the topic of {device_id}")
        with self._transaction():
            device = self._ledger.device(device_id) or Device(device_id)
            old = device.twin
            if old is not None and old.boot == twin.boot and old.sequence >= twin.sequence:
                return
            if old is not None and old.boot != twin.boot and old.sent_at > twin.sent_at and device.boot != twin.boot:
                return  # A late copy of a former life.
            # Only slow to answer after all: whoever was missed, and speaks, is there.
            online = device.online or device_id in self._missed
            self._missed.discard(device_id)
            self._ledger.save_device(replace(device, online=online, twin=twin, seen_at=self._clock()))

    def _event(self, device_id: DeviceId, event: Event) -> None:
        if event.device != device_id:
            raise WireError(f"event of {event.device} on the topic of {device_id}")
        with self._transaction():
            if self._ledger.take_event(event):
                self.counters.events += 1
                self._take(event)
            else:
                self.counters.repeated_events += 1
        # After the commit: until this arrives, the device keeps the event.
        self._send(DeviceTopic(device_id, Channel.ACK), encode(Ack(ids=(event.id,))), retain=False)
        self._publish()

    def _take(self, event: Event) -> None:
        match event.body:
            case OutcomeReported(rollout=rollout_id, wave=wave, good=good, reason=reason):
                self._tell(rollout_id, machine.OutcomeArrived(event.device, wave, good, reason))
            case StepReached() as body if body.rollout is not None:
                step = machine.StepArrived(
                    event.device, body.release.bundle_sha256, body.step, body.bytes_fetched, body.seconds
                )
                self._tell(body.rollout, step)
            case AssignmentRefused(refusal=refusal, detail=detail):
                self._note("assignment_refused", event.device, f"{refusal.value}: {detail}", event.device)
            case _:
                pass

    def _tell(self, rollout_id: RolloutId, event: machine.Event) -> None:
        rollout = self._ledger.rollout(rollout_id)
        if rollout is not None:
            self._advance(rollout, event)

    # -- carrying out ------------------------------------------------------------------------------------------------

    def _advance(self, rollout: Rollout, event: machine.Event) -> Rollout:
        """Let the core decide and save what it says. Inside a transaction."""
        after, effects = machine.advance(rollout, event, self._clock())
        if after is rollout and not effects:
            return rollout
        self._ledger.save_rollout(after, rollout)
        if after.state is not rollout.state:
            self._note(f"rollout_{after.state.value}", after.id, after.reason)
        elif after.wave != rollout.wave:
            self._note("wave_started", after.id, f"wave {after.wave + 1} of {len(after.waves)}")
        for effect in effects:
            match effect:
                case machine.Assign(device, release, watch):
                    self._assign(device, release, watch)
                case machine.SetBaseline(release):
                    self._ledger.save_baseline(Baseline(release, after.id, after.policy.selector))
        return after

    def _assign(self, device: DeviceId, release: ReleaseRef, watch: Watch | None) -> None:
        desired = self._ledger.desired(device)
        wanted = ModelAssignment(release=release, watch=watch)
        self._issue(replace(desired, models={**desired.models, release.model: wanted}))

    def _issue(self, desired: Desired) -> None:
        """Sign what a device should run with a higher counter, save it, and publish it after the commit."""
        now = self._clock()
        counter = desired.counter + 1  # From the row that this transaction writes.
        assignment = Assignment(
            fleet=self.id,
            device=desired.device,
            counter=counter,
            issued_at=now,
            expires_at=now + LIFETIME_S,
            models=tuple(desired.models[name] for name in sorted(desired.models)),
        )
        envelope = self._registry.sign_assignment(assignment)
        self._ledger.save_desired(
            replace(desired, counter=counter, expires_at=assignment.expires_at, envelope=envelope)
        )
        self.counters.assignments += 1
        self._said_at[desired.device] = now
        self._send(DeviceTopic(desired.device, Channel.ASSIGNMENT), envelope, retain=True)

    def _reconcile(self, now: float) -> None:
        """Give late devices the baseline, renew assignments at half their life, and repeat those that got lost."""
        self._miss_silent(now)
        busy: set[tuple[ModelName, DeviceId]] = set()
        for rollout in self._ledger.rollouts(running=True):
            busy.update((rollout.model, device) for device in rollout.members)
        baselines = self._ledger.baselines()
        wanted = {desired.device: desired for desired in self._ledger.all_desired()}
        for device in self._ledger.devices():
            if not device.online or device.twin is None:
                continue
            desired = wanted.get(device.id, Desired(device.id))
            missing = [
                baseline
                for name, baseline in sorted(baselines.items())
                if (name, device.id) not in busy
                and _selected(device, baseline.selector)
                and not _wants(desired, baseline.release)
                and self._runs(device, baseline.release)
            ]
            if missing:
                models = dict(desired.models)
                for baseline in missing:
                    watch = self._late_watch(baseline)
                    models[baseline.release.model] = ModelAssignment(release=baseline.release, watch=watch)
                self._issue(replace(desired, models=models))
            elif desired.counter and desired.expires_at - now < LIFETIME_S / 2:
                self._issue(desired)
            elif _gave_up(device, desired) and now >= self._said_at.setdefault(device.id, now) + RETRY_S:
                self._issue(desired)  # A full disk, a bad line: what nobody watches is tried again.
            elif device.twin.counter < desired.counter and now >= self._said_at.get(device.id, 0.0) + RESEND_S:
                # Whoever has the broker may have put something else in its place.
                self._said_at[device.id] = now
                self._send(DeviceTopic(device.id, Channel.ASSIGNMENT), desired.envelope, retain=True)

    def _miss_silent(self, now: float) -> None:
        """Take for offline who did not answer the last session: it went unseen, and a broker lost its will."""
        began_at = self._connected_at
        if began_at is None or now < began_at + ANNOUNCE_S:
            return
        self._connected_at = None
        for device in self._ledger.devices():
            if device.online and device.seen_at < began_at:
                self._missed.add(device.id)
                self._ledger.save_device(replace(device, online=False))

    def _late_watch(self, baseline: Baseline) -> Watch | None:
        """A device that joins late is watched for its own sake: probation and local rollback as in a wave."""
        rollout = self._ledger.rollout(baseline.rollout)
        if rollout is None or rollout.release.bundle_sha256 != baseline.release.bundle_sha256:
            return None
        return Watch(
            rollout=rollout.id,
            wave=LATE_WAVE,
            window_s=rollout.policy.window_s,
            window_max_s=rollout.policy.window_max_s,
            requests_min=rollout.policy.requests_min,
            deadline_s=rollout.policy.deadline_s,
        )

    def _facts(self, rollout: Rollout) -> dict[DeviceId, DeviceFacts]:
        return {
            device.id: DeviceFacts(online=device.online, active=_active(device, rollout.model))
            for device in self._ledger.devices()
            if device.id in rollout.members
        }

    def _eligible(self, release: ReleaseRef, selector: Mapping[str, str]) -> dict[DeviceId, str]:
        return {
            device.id: device.twin.hardware.device_class
            for device in self._ledger.devices()
            if device.twin is not None and _selected(device, selector) and self._runs(device, release)
        }

    def _runs(self, device: Device, release: ReleaseRef) -> bool:
        manifest = self._registry.manifest(release.bundle_sha256)
        return manifest is not None and device.twin is not None and choose(manifest, device.twin.hardware) is not None

    def _note(self, what: str, subject: str, detail: str, actor: str = "controller") -> None:
        log.info(what, subject=subject, detail=detail, actor=actor)
        self._ledger.note(Note(self._clock(), what, subject, detail, actor))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction of the ledger; what was to be said of it is said only if it was committed."""
        try:
            with self._ledger.transaction():
                yield
        except BaseException:
            self._outbox.clear()
            raise

    def _send(self, topic: Topic, payload: bytes, *, retain: bool) -> None:
        """Queue a publish until the transaction that it tells of is committed."""
        self._outbox.append((topic, payload, retain))

    def _publish(self) -> None:
        queued, self._outbox = self._outbox, []
        for topic, payload, retain in queued:
            self._wire.publish(topic, payload, qos=1, retain=retain)


def _active(device: Device, model: ModelName) -> ReleaseRef | None:
    if device.twin is None:
        return None
    for each in device.twin.models:
        if each.model == model and each.active is not None:
            return each.active
    return None


def _wants(desired: Desired, release: ReleaseRef) -> bool:
    current = desired.models.get(release.model)
    return current is not None and current.release.bundle_sha256 == release.bundle_sha256


def _gave_up(device: Device, desired: Desired) -> bool:
    """Return whether the device obeyed, failed an update that no rollout watches, and rests."""
    if device.twin is None or device.twin.counter != desired.counter:
        return False
    for model in device.twin.models:
        wanted = desired.models.get(model.model)
        if wanted is None or wanted.watch is not None or model.phase != "idle":
            continue
        if model.active is None or model.active.bundle_sha256 != wanted.release.bundle_sha256:
            return True
    return False


def _selected(device: Device, selector: Mapping[str, str]) -> bool:
    labels: Mapping[str, str] = {} if device.twin is None else device.twin.labels
    return all(labels.get(key) == value for key, value in selector.items())
