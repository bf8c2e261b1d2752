"""The fleet: takes what devices say and operators order, and lets the engine decide and carry out.

    wire ─ received ─▶ parse at the edge ─▶ events of the rollouts that the device is in ─┐
    api  ─ orders (`ordering`), holds (`following`) ──────────────────────────────────────┼▶ engine ─▶ ledger ─▶ wire
    time ─ tick: rollouts that are due, devices that are due (`mending`), chunks, trust ──┘

Ports only, so the simulator runs this very class. Single-threaded: whoever owns it calls it from one thread.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import log as ln
from random import Random

import msgspec
import structlog

from muster_controller.acting import CONTROLLER, act_as, acting, done_by
from muster_controller.core.policy import Policy
from muster_controller.core.rollout import machine
from muster_controller.core.rollout.events import (
    Order,
    OutcomeArrived,
    StepArrived,
    Tick,
)
from muster_controller.core.rollout.state import ENDED, Rollout
from muster_controller.courier import Courier
from muster_controller.engine import Engine
from muster_controller.following import Following
from muster_controller.holds import FindHold, nobody
from muster_controller.mending import LATE_WAVE, Mender
from muster_controller.ordering import Ordering
from muster_controller.ports import Device, Ledger, Registry, Wire
from muster_shared.assignment import KEYS_TARGET, parse_keys
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId, ModelName, RolloutId
from muster_shared.messages import (
    ANSWER_BYTES_MAX,
    Ack,
    Answer,
    AssignmentRefused,
    ControllerSession,
    Event,
    FaultSeen,
    OutcomeReported,
    Presence,
    StepReached,
    Twin,
    Want,
    WindowReport,
    decode,
    encode,
)
from muster_shared.topics import Channel, ControllerTopic, DeviceTopic, Topic, TrustTopic, WantTopic

log = structlog.get_logger()

TICK_S = 0.25
CROWD = 500  # Devices told in one turn, from which on everything that can wait does until the next.
TRUST_EVERY_S = 300.0
MISSED = "-"
"""The boot of a device that is taken for offline because it did not answer, not because it or the broker said so."""
ANNOUNCE_S = 60.0  # By then, after a new session, every device that is there has said so.
LATENCY_RATIO_MAX = 1e3  # Beyond this a device measured nonsense; the gate clips far below it.


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
        labels: Callable[[DeviceId], Mapping[str, str]] = lambda device: {},
        heard: Callable[[Device, Twin], None] = lambda before, twin: None,
        holds: FindHold = nobody,
        gone: Callable[[], Iterable[DeviceId]] = tuple,
        answered: Callable[[Answer], None] = lambda answer: None,
    ) -> None:
        """
        Args:
            labels: what operators gave to a device, which it cannot take off: they go before those that it reports.
            heard: is told of each new twin, with what was known before; the same again where a batch is taken again.
            answered: takes what devices say to calls, asked for or not.
            holds: which devices operators keep out of rollouts; `held` is to be called when that changes.
            gone: those that were decommissioned: what is retained of them is taken off the broker at every connect.
        """
        self.id = fleet
        self._labels = labels
        self._heard = heard
        self._holds = holds
        self._gone = gone
        self._answered = answered
        self.courier = Courier(registry, wire, clock)
        self._counters = Counters()
        self._mender = Mender()
        self._engine = Engine(
            fleet,
            ledger=ledger,
            registry=registry,
            wire=wire,
            clock=clock,
            told=lambda desired: self._mender.told(desired, clock()),
            rearranged=self._mender.all_due,
            holds=holds,
        )
        self._ordering = Ordering(self._engine, random)
        self._following = Following(self._engine, self._mender)
        self._registry = registry
        self._wire = wire
        self._clock = clock
        self._session = session
        self._connects = 0
        self._trust_at = float("-inf")
        self._ticked_at = float("-inf")
        self._connected_at: float | None = None
        """Of the newest connect, until who was not heard since has been taken for offline."""

    @property
    def _ledger(self) -> Ledger:
        return self._engine.ledger

    @property
    def counters(self) -> Counters:
        return replace(self._counters, assignments=self._engine.assignments)

    # -- the broker --------------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """The broker is there, and may have forgotten everything: say it all again."""
        self._connects += 1
        self._connected_at = self._clock()
        self.publish_trust()
        with self._engine.transaction():
            for desired in self._ledger.all_desired():
                if desired.envelope:
                    self._engine.send(DeviceTopic(desired.device, Channel.ASSIGNMENT), desired.envelope, retain=True)
            for device in sorted(self._gone()):
                self._following.withdraw(device)
        session = ControllerSession(session=f"{self._session}-{self._connects}", sent_at=self._clock())
        self._engine.send(ControllerTopic(), encode(session), retain=True)
        self._engine.publish()

    def publish_trust(self) -> None:
        """Publish the TUF metadata; to be called whenever it changed."""
        self._trust_at = self._clock()
        for files in self._registry.trust_messages():
            if KEYS_TARGET in files.files:
                self._mender.trusted(frozenset(parse_keys(files.files[KEYS_TARGET].encode()).keys))
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
                case DeviceTopic(device, Channel.ANSWER):
                    self._answer(device, payload)
                case WantTopic(sha256):
                    self.courier.wanted(sha256, decode(payload, Want))
                case _:
                    raise WireError("nothing that a controller listens to")
        except WireError as error:
            self._counters.malformed += 1
            if self._counters.malformed < 10:
                log.warning("message_malformed", topic=str(topic), error=str(error))

    # -- time --------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due: verdicts, waves, late devices, renewals, chunks."""
        now = self._clock()
        is_set_back = now < self._ticked_at
        self._ticked_at = now
        if is_set_back and self._connected_at is not None:
            self._connected_at = now  # Or who has answered by the other clock would be taken for silent by this one.
        said = self._engine.assignments
        try:
            with act_as(CONTROLLER), self._engine.transaction():  # Whoever made it tick decides none of this.
                for rollout in self._ledger.rollouts(running=True):
                    # A look is never further away than LOOK_S, unless the clock was set back while we were not there.
                    if is_set_back or now >= rollout.due_at or rollout.due_at > now + machine.LOOK_S:
                        self._engine.advance(rollout, Tick(self._engine.facts(rollout)))
                self._miss_silent(now)
                # A call-back that goes on comes first, and a crowd that was just told is not kept waiting for the rest.
                if not self.is_due() and self._engine.assignments - said < CROWD:
                    self._mender.turn(self._engine)
        except BaseException:
            self.moved()
            raise
        self._engine.publish()
        self.courier.tick()
        if now >= self._trust_at + TRUST_EVERY_S or now < self._trust_at:
            self.publish_trust()

    def sign_anew(self) -> None:
        """Sign what every device should run again, with a higher counter: the assignment key is another.

        What the old key signed, devices that follow the new one refuse.
        """
        with self._engine.transaction():
            self._engine.issue([desired for desired in self._ledger.all_desired() if desired.envelope])
        self._engine.publish()

    def note(self, what: str, subject: str, detail: str, actor: str | None = None) -> None:
        """Write a line into the fleet's history: of what `actor` did, or (None) whoever is `acting`."""
        with done_by(actor or acting().actor), self._engine.transaction():
            self._engine.note(what, subject, detail)

    def is_due(self) -> bool:
        """Return whether a rollout waits for `tick`: a wave has ended, or there is more to tell than one turn did."""
        now = self._clock()
        return any(now >= rollout.due_at for rollout in self._ledger.rollouts(running=True))

    def moved(self) -> None:
        """The database is not what it was thought to be: look at every device anew."""
        self._mender.all_due()

    def wake_at(self) -> float:
        """Return when `tick` is next worth calling, in the clock's seconds; the courier has its own."""
        moments = [self._trust_at + TRUST_EVERY_S]
        moments += [rollout.due_at for rollout in self._ledger.rollouts(running=True)]
        if self._connected_at is not None:
            moments.append(self._connected_at + ANNOUNCE_S)
        mending_at = self._mender.wake_at()
        return min(moments if mending_at is None else [*moments, mending_at])

    def _miss_silent(self, now: float) -> None:
        """Take for offline who did not answer the last session: it went unseen, and a broker lost its will."""
        began_at = self._connected_at
        if began_at is None or now < began_at + ANNOUNCE_S:
            return
        self._connected_at = None
        for device in self._ledger.devices():
            if device.online and device.seen_at < began_at:
                self._following.save(device, replace(device, online=False, boot=MISSED))

    # -- operators ---------------------------------------------------------------------------------------------------

    def create_rollout(self, model: ModelName, version: str, policy: Policy, actor: str) -> Rollout:
        """Start bringing `version` of `model` to the devices that the policy selects. Raises as `Ordering.create`."""
        rollout = self._ordering.create(model, version, policy, actor)
        self.tick()
        return self._ledger.rollout(rollout.id) or rollout

    def roll_back(
        self, model: ModelName, version: str, actor: str, reason: str, policy: Policy | None = None
    ) -> Rollout:
        """Bring the fleet to an earlier release of `model`. As `Ordering.roll_back`."""
        rollout = self._ordering.roll_back(model, version, actor, reason, policy)
        self.tick()
        return self._ledger.rollout(rollout.id) or rollout

    def order(self, rollout_id: RolloutId, order: Order, actor: str, reason: str, seconds: float = 0.0) -> Rollout:
        """Do what an operator orders. Raises NotFound, OrderRefused, Conflict."""
        return self._ordering.order(rollout_id, order, actor, reason, seconds)

    # -- what devices say --------------------------------------------------------------------------------------------

    def _presence(self, device_id: DeviceId, presence: Presence) -> None:
        if presence.device != device_id:
            raise WireError(f"presence of {presence.device} on the topic of {device_id}")
        if self._is_gone(device_id, presence.sent_at):
            return
        with self._engine.transaction():
            device = self._ledger.device(device_id) or Device(device_id)
            if not presence.online and device.boot not in ("", presence.boot):
                return  # The will of a former life, or of one that is missed already.
            if presence.online or device.online:
                log.debug("presence", device=device_id, online=presence.online)
            # It may be a retained copy, which is no sign of life: only a new twin is, and it follows at once.
            self._following.save(device, replace(device, online=presence.online, boot=presence.boot))
        self._engine.publish()

    def _twin(self, device_id: DeviceId, twin: Twin) -> None:
        if twin.device != device_id:
            raise WireError(f"twin of {twin.device} on the topic of {device_id}")
        if self._is_gone(device_id, twin.sent_at):
            return
        with self._engine.transaction():
            device = self._ledger.device(device_id) or Device(device_id)
            old = device.twin
            if old is not None and old.boot == twin.boot and old.sequence >= twin.sequence:
                return
            if old is not None and old.boot != twin.boot and old.sent_at > twin.sent_at and device.boot != twin.boot:
                return  # A late copy of a former life.
            # Only slow to answer after all: whoever was missed, by this controller or another, and speaks, is there.
            boot = twin.boot if device.boot == MISSED else device.boot
            online = device.online or device.boot == MISSED
            labelled = self._labelled(twin)
            self._following.save(
                device, replace(device, online=online, boot=boot, twin=labelled, seen_at=self._clock())
            )
            self._heard(device, labelled)
        self._engine.publish()

    def _is_gone(self, device: DeviceId, sent_at: float) -> bool:
        """Return whether that is what the broker still keeps of a device that was decommissioned or revoked since."""
        hold = self._holds(device)
        return hold is not None and hold.is_cut and sent_at <= hold.at

    def held(self, devices: Iterable[DeviceId]) -> None:
        """Do what follows from holds that were set or lifted. The same once more changes nothing."""
        with self._engine.transaction():
            self._following.held(devices)
        self._engine.publish()

    def relabel(self, devices: Iterable[DeviceId]) -> None:
        """Take the labels of these devices from `labels` again, because they changed there."""
        with self._engine.transaction():
            for device_id in sorted(devices):
                device = self._ledger.device(device_id)
                if device is None or device.twin is None:
                    continue
                twin = self._labelled(device.twin)
                if twin != device.twin:
                    self._following.save(device, replace(device, twin=twin))
        self._engine.publish()

    def _labelled(self, twin: Twin) -> Twin:
        given = self._labels(twin.device)
        if all(twin.labels.get(key) == value for key, value in given.items()):
            return twin
        return msgspec.structs.replace(twin, labels={**twin.labels, **given})

    def call(self, device: DeviceId, envelope: bytes) -> None:
        """Publish a signed call; nobody keeps it for a device that is not there."""
        with self._engine.transaction():
            self._engine.send(DeviceTopic(device, Channel.CALL), envelope, retain=False)
        self._engine.publish()

    def _answer(self, device: DeviceId, payload: bytes) -> None:
        if len(payload) > ANSWER_BYTES_MAX:
            raise WireError(f"an answer of {len(payload)} bytes; the limit is {ANSWER_BYTES_MAX}")
        answer = decode(payload, Answer)
        if answer.device != device:
            raise WireError(f"an answer of {answer.device} on the topic of {device}")
        self._answered(answer)

    def _event(self, device_id: DeviceId, event: Event) -> None:
        if event.device != device_id:
            raise WireError(f"event of {event.device} on the topic of {device_id}")
        with self._engine.transaction():
            if self._ledger.take_event(event):
                self._counters.events += 1
                self._take(event)
            else:
                self._counters.repeated_events += 1
        # After the commit: until this arrives, the device keeps the event.
        self._engine.send(DeviceTopic(device_id, Channel.ACK), encode(Ack(ids=(event.id,))), retain=False)
        self._engine.publish()

    def _take(self, event: Event) -> None:
        match event.body:
            case OutcomeReported() as body:
                self._outcome(event.device, body)
            case StepReached() as body if body.rollout is not None:
                step = StepArrived(
                    event.device,
                    body.release.bundle_sha256,
                    body.step,
                    body.bytes_fetched,
                    body.seconds,
                    refusal=body.refusal,
                    attempt=body.attempt,
                    detail=body.detail,
                    wait_s=None if body.until is None else body.until - event.at,
                )
                self._engine.tell(body.rollout, step)
            case FaultSeen(model=model, detail=detail) if model is not None:
                self._engine.note("fault_seen", event.device, f"{model}: {detail}", event.device)
                self._mender.repair(self._engine, event.device, model)
            case AssignmentRefused(refusal=refusal, detail=detail):
                self._engine.note("assignment_refused", event.device, f"{refusal.value}: {detail}", event.device)
            case _:
                pass

    def _outcome(self, device: DeviceId, body: OutcomeReported) -> None:
        rollout = self._ledger.rollout(body.rollout)
        if rollout is None:
            return
        if body.wave == LATE_WAVE:
            self._mender.settled(body.rollout, device)
            return
        if rollout.state in ENDED or self._engine.is_out(device):
            return
        trial = rollout.policy.trial
        window = body.window
        disagreed = None
        if trial is not None and window is not None and window.compared:
            disagreed = window.disagreed > trial.disagreement_max * window.compared
        self._engine.advance(
            rollout,
            OutcomeArrived(
                device,
                body.wave,
                body.good,
                body.reason,
                latency=None if window is None else latency_change(window),
                disagreed=disagreed,
                bundle=body.release.bundle_sha256,
                attempt=body.attempt,
            ),
        )


def latency_change(window: WindowReport) -> float | None:
    """Return log(p95 after / p95 before), finite; None where either is unknown."""
    before, after = window.latency_ms_p95_before, window.latency_ms_p95
    if before is None or after is None or not (before > 0 and after > 0):
        return None
    ratio = min(max(after / before, 1 / LATENCY_RATIO_MAX), LATENCY_RATIO_MAX)
    return ln(ratio)
