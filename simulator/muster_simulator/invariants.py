"""What must hold in every world, whatever goes wrong. Each is a class; its docstring is the promise.

They watch the shipped code from outside: what is committed, tested, served, asked for, published. `Truth` tells them
what no controller can know. A broken one raises `InvariantBroken`, which ends the run.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from muster_agent.conductor import OUTBOX_IN_FLIGHT, REMEMBERED_REFUSALS
from muster_agent.core.state import DeviceState
from muster_agent.io.store import blob
from muster_controller.core.gate.evidence import HOLD
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.rollout.state import ENDED, Outcome, Rollout, RolloutState, Verdict
from muster_controller.courier import FILES_MAX
from muster_controller.ports import Desired
from muster_shared.assignment import Assignment
from muster_shared.bundle import Manifest, Variant, digest
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId, Sha256
from muster_shared.messages import Event, OutcomeReported, ReleaseRef
from muster_shared.variants import eligible, files_of
from muster_simulator.controller import SimulatedController
from muster_simulator.device import SimulatedDevice
from muster_simulator.observer import Observer
from muster_simulator.ports.journal import OUTBOX_EVENTS_MAX
from muster_simulator.ports.lab import Kind, Truth
from muster_simulator.stage import Stage

WAKES_MAX = 256


class InvariantBroken(Exception):
    """A promise does not hold. Not a MusterError: the code under test must not catch it."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name
        self.detail = detail

    def __reduce__(self) -> tuple[type["InvariantBroken"], tuple[str, str]]:
        return type(self), (self.name, self.detail)


@dataclass(frozen=True)
class Scene:
    """What an invariant may look at."""

    stage: Stage
    devices: Mapping[DeviceId, SimulatedDevice]
    controller: SimulatedController
    truths: Mapping[Sha256, Truth]
    rotten: dict[DeviceId, set[Sha256]]
    """Files in which a bit flipped, by device."""


class Invariant(Observer):
    """One promise. `name` is what a failing seed prints."""

    name = ""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def broken(self, detail: str) -> InvariantBroken:
        return InvariantBroken(self.name, detail)


class AlwaysRunnable(Invariant):
    """A device that ever had a runnable release always has one: what its slots name is whole and durable, after any
    crash, and something serves. Only bit rot may take a slot."""

    name = "I1-always-runnable"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._changed: set[DeviceId] = set()
        self._served: set[tuple[DeviceId, int, ModelName]] = set()

    def committed(
        self, device: DeviceId, before: DeviceState | None, after: DeviceState, events: Sequence[Event]
    ) -> None:
        self._changed.add(device)
        for name, model in (before.models if before else {}).items():
            if model.slots.active is None or self.scene.rotten[device]:
                continue
            if name not in after.models or after.models[name].slots.active is None:
                raise self.broken(f"{device} gave up the release of {name} that served")

    def device_stepped(self, device: DeviceId) -> None:
        if device in self._changed:
            self._changed.discard(device)
            self._look(device)
        it = self.scene.devices[device]
        if it.lab is None or self.scene.rotten[device]:
            return
        for name in it.lab.serving:
            self._served.add((device, it.boots, name))
        for name in it.state.models if it.state else ():
            if (device, it.boots, name) in self._served and name not in it.lab.serving:
                raise self.broken(f"{device} stopped to serve {name}")

    def lost_power(self, device: DeviceId) -> None:
        self._look(device)

    def _look(self, device: DeviceId) -> None:
        """Compare what the slots name with the worst that power loss could leave."""
        it, registry = self.scene.devices[device], self.scene.controller.registry
        for name, model in (it.state.models if it.state else {}).items():
            for release in (model.slots.active, model.slots.standby):
                if release is None:
                    continue
                files = _files(release, registry.manifests, it)
                if not self.scene.rotten[device].isdisjoint(files):
                    continue
                for sha256 in files:
                    for durable in (False, True):
                        if it.disk.peek(blob(sha256), durable=durable) != registry.blobs[sha256]:
                            where = "on the platter" if durable else "on the disk"
                            raise self.broken(
                                f"{device}: {sha256[:8]} of {name} {release.version} is not whole {where}"
                            )


class OnlyTrusted(Invariant):
    """Nothing is tested or served that the release keys did not sign, to the byte."""

    name = "I2-only-trusted"

    def tested(self, device: DeviceId, release: ReleaseRef, manifest: Manifest, variant: Variant) -> None:
        self._look(device, release, manifest, variant)

    def served(self, device: DeviceId, release: ReleaseRef, manifest: Manifest, variant: Variant) -> None:
        self._look(device, release, manifest, variant)

    def _look(self, device: DeviceId, release: ReleaseRef, manifest: Manifest, variant: Variant) -> None:
        registry = self.scene.controller.registry
        if registry.release(release.model, release.version) != release:
            raise self.broken(f"{device} runs {release.model} {release.version}, which nobody signed")
        disk = self.scene.devices[device].disk
        for file in manifest.files_for(variant):
            if file.sha256 in self.scene.rotten[device]:
                continue
            if disk.peek(blob(file.sha256)) != registry.blobs.get(file.sha256):
                raise self.broken(f"{device} runs {release.version} with a {file.path} that is not what was signed")


class CountersRise(Invariant):
    """A device's assignment counter never falls, each counter is said once, and a device only obeys what the controller
    said to it."""

    name = "I3-counters-rise"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._highest: dict[DeviceId, int] = defaultdict(int)
        self._said: dict[tuple[DeviceId, int], Sha256] = {}

    def published(self, device: DeviceId, envelope: bytes) -> None:
        found = digest(envelope)
        said = msgspec.json.decode(envelope.partition(b"\n")[2], type=Assignment)
        if said.device != device:
            raise self.broken(f"{device} was sent what is for {said.device}")
        if self._said.setdefault((device, said.counter), found) != found:
            raise self.broken(f"{device} was given two assignments with counter {said.counter}")

    def committed(
        self, device: DeviceId, before: DeviceState | None, after: DeviceState, events: Sequence[Event]
    ) -> None:
        if after.counter < self._highest[device]:
            raise self.broken(f"{device} went back to counter {after.counter} from {self._highest[device]}")
        if after.assignment != (before.assignment if before else None) and after.counter == self._highest[device]:
            raise self.broken(f"{device} obeyed two assignments with counter {after.counter}")
        if after.counter > self._highest[device]:
            self._highest[device] = after.counter
            if self._said.get((device, after.counter)) != after.assignment:
                raise self.broken(f"{device} obeyed counter {after.counter}, which the controller never said")


class RolloutsEnd(Invariant):
    """Once faults have stopped, every rollout ends. (World.settle says when it is too late.)"""

    name = "I4-rollouts-end"

    def ended(self) -> None:
        for rollout in self.scene.controller.ledger.rollouts(running=False):
            if rollout.state not in ENDED:
                raise self.broken(f"{rollout.id} is {rollout.state.value}: {rollout.reason}")


class NoPromotionOnSilence(Invariant):
    """A wave is promoted only when each of its devices either said truthfully that it does well, or counts as bad; when
    enough do well, and E is below what holds; and no wave begins before the last one was promoted."""

    name = "I5-no-promotion-on-silence"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._said_good: dict[tuple[RolloutId, int, DeviceId], set[EventId]] = defaultdict(set)

    def committed(
        self, device: DeviceId, before: DeviceState | None, after: DeviceState, events: Sequence[Event]
    ) -> None:
        for event in events:
            if isinstance(event.body, OutcomeReported) and event.body.good:
                self._said_good[event.body.rollout, event.body.wave, device].add(event.id)

    def rollout_saved(self, before: Rollout | None, after: Rollout) -> None:
        if before is None or after.at_once:
            return
        for verdict in after.verdicts[len(before.verdicts) :]:
            if verdict.kind is VerdictKind.PROMOTE:
                self._promoted(after, verdict)
        moved_on = after.wave > before.wave >= 0
        finished = after.state is RolloutState.FINISHED and before.state is not RolloutState.FINISHED
        promoted = {each.wave for each in after.verdicts if each.kind is VerdictKind.PROMOTE}
        if (moved_on or finished) and before.wave not in promoted:
            raise self.broken(f"{after.id} went on after wave {before.wave}, which was never promoted")

    def _promoted(self, after: Rollout, verdict: Verdict) -> None:
        wave = [member for member in after.members.values() if member.wave == verdict.wave and member.is_touched]
        wave = [member for member in wave if member.outcome is not Outcome.LEFT]
        good = [member for member in wave if member.outcome is Outcome.GOOD]
        ledger = self.scene.controller.ledger
        for member in good:
            said = self._said_good[after.id, verdict.wave, member.device]
            if not any(ledger.has_event(event) for event in said):
                raise self.broken(
                    f"{after.id}: {member.device} counts as good in wave {verdict.wave}, but never said so"
                )
        if after.confirmed_wave >= verdict.wave:
            return  # An operator took it upon himself.
        for member in wave:
            if member.outcome is Outcome.PENDING:
                raise self.broken(f"{after.id}: wave {verdict.wave} was promoted before {member.device} said anything")
        if len(good) < after.policy.success_required * len(wave):
            raise self.broken(f"{after.id}: wave {verdict.wave} was promoted with {len(good)} of {len(wave)} good")
        if verdict.evidence.hold_e >= HOLD:
            raise self.broken(f"{after.id}: wave {verdict.wave} was promoted with E = {verdict.evidence.hold_e:.1f}")


class CallingBackIsFree(Invariant):
    """A device that is called back to the release it ran before asks for none of its bytes: they are in standby."""

    name = "I6-calling-back-is-free"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._ran_before: dict[tuple[DeviceId, ModelName], ReleaseRef] = {}
        self._called_back: dict[tuple[DeviceId, ModelName], frozenset[Sha256]] = {}

    def committed(
        self, device: DeviceId, before: DeviceState | None, after: DeviceState, events: Sequence[Event]
    ) -> None:
        if before is None:
            return
        it, registry = self.scene.devices[device], self.scene.controller.registry
        for name, model in after.models.items():
            old = before.models[name].slots.active if name in before.models else None
            if old is not None and model.slots.active != old:
                if model.slots.active == before.models[name].slots.standby and model.slots.standby is None:
                    self._ran_before.pop((device, name), None)  # It went back by itself, and dropped what was bad.
                else:
                    self._ran_before[device, name] = old
            if after.counter == before.counter:
                continue
            self._called_back.pop((device, name), None)
            if model.update is None or model.update.watch is not None:
                continue  # Nothing to do; or a rollout, of an older release perhaps, but no calling back.
            target = model.update.release
            if self._ran_before.get((device, name)) == target:
                self._called_back[device, name] = frozenset(_files(target, registry.manifests, it))

    def asked(self, device: DeviceId, sha256: Sha256) -> None:
        if self.scene.rotten[device]:
            return
        for (who, name), files in self._called_back.items():
            if who == device and sha256 in files:
                raise self.broken(f"{device} fetches {sha256[:8]} of {name} again, to go back to what it just had")


class NothingLost(Invariant):
    """Each event that a device committed takes effect in the ledger exactly once, unless the full outbox dropped it as
    declared."""

    name = "I7-nothing-lost"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._committed: dict[DeviceId, list[EventId]] = defaultdict(list)

    def committed(
        self, device: DeviceId, before: DeviceState | None, after: DeviceState, events: Sequence[Event]
    ) -> None:
        self._committed[device] += [event.id for event in events]

    def ended(self) -> None:
        taken = self.scene.controller.ledger.taken
        for device, events in sorted(self._committed.items()):
            it = self.scene.devices[device]
            dropped = set(it.journal.dropped)
            for event in events:
                if taken[event] > 1:
                    raise self.broken(f"event {event[:6]} of {device} took effect {taken[event]} times")
                if not taken[event] and event not in dropped and not it.is_dead:
                    raise self.broken(f"event {event[:6]} of {device} never arrived")


class HarmIsStopped(Invariant):
    """A device that a release truly harms never counts as good for it; so no wave with more harm than its policy bears
    is promoted unless an operator says so."""

    name = "I8-harm-is-stopped"

    def rollout_saved(self, before: Rollout | None, after: Rollout) -> None:
        truth = self.scene.truths[after.release.bundle_sha256]
        if before is None or truth.kind is Kind.GOOD or after.members is before.members or after.at_once:
            return
        for member in after.members.values():
            was = before.members.get(member.device)
            if member.outcome is not Outcome.GOOD or (was is not None and was.outcome is Outcome.GOOD):
                continue
            it = self.scene.devices[member.device]
            if member.device in truth.harmed and (it.nature.requests_per_s or truth.kind in _HARMS_UNUSED):
                raise self.broken(f"{after.id}: {member.device}, which it harms ({truth.kind.value}), counts as good")


_HARMS_UNUSED = (Kind.CRASHING, Kind.BRICKING, Kind.UNPROVEN)
"""What harms a device that nobody uses, too."""


class HeldBack(Invariant):
    """While a rollout runs, nobody is given its release but the devices of its waves: no control, no late joiner."""

    name = "I9-held-back"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._finished: set[Sha256] = set()

    def rollout_saved(self, before: Rollout | None, after: Rollout) -> None:
        if after.state is RolloutState.FINISHED:
            self._finished.add(after.release.bundle_sha256)

    def desired_saved(self, before: Desired, after: Desired) -> None:
        for name, wanted in after.models.items():
            if before.models.get(name) == wanted or wanted.assignment.release.bundle_sha256 in self._finished:
                continue
            for rollout in self.scene.controller.ledger.rollouts(running=True):
                if rollout.release == wanted.assignment.release and not rollout.at_once:
                    member = rollout.members.get(after.device)
                    if member is None or member.wave is None:
                        raise self.broken(f"{after.device} is given {name} {rollout.release.version} before its wave")


class Bounded(Invariant):
    """Every queue has an end."""

    name = "I10-bounded"

    def device_stepped(self, device: DeviceId) -> None:
        it = self.scene.devices[device]
        conductor = it.conductor
        if conductor is None:
            return
        for what, length, most in (
            ("events in flight", len(conductor._sent), OUTBOX_IN_FLIGHT),
            ("refusals", len(conductor._refused), REMEMBERED_REFUSALS),
            ("wake-ups", len(conductor._wakes), WAKES_MAX),
            ("fetches", len(conductor._fetches), len(conductor.state.models)),
            ("events", len(it.journal), OUTBOX_EVENTS_MAX),
        ):
            if length > most:
                raise self.broken(f"{device} has {length} {what}; {most} are the limit")

    def controller_stepped(self) -> None:
        fleet = self.scene.controller.fleet
        if fleet is None:
            return
        if fleet._engine._outbox:
            raise self.broken(f"{len(fleet._engine._outbox)} messages of the controller wait for nothing")
        if len(fleet.courier._deliveries) > FILES_MAX:
            raise self.broken(f"{len(fleet.courier._deliveries)} deliveries")


class ProvenFirst(Invariant):
    """A release takes traffic only after its golden cases passed on this very device, or to go back to standby."""

    name = "I12-proven-first"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._passed: set[tuple[DeviceId, Sha256]] = set()

    def test_passed(self, device: DeviceId, bundle: Sha256) -> None:
        self._passed.add((device, bundle))

    def committed(
        self, device: DeviceId, before: DeviceState | None, after: DeviceState, events: Sequence[Event]
    ) -> None:
        for name, model in after.models.items():
            active = model.slots.active
            slots = before.models[name].slots if before is not None and name in before.models else None
            if active is None or (slots is not None and active in (slots.active, slots.standby)):
                continue
            if (device, active.bundle_sha256) not in self._passed:
                raise self.broken(f"{device} switched to {name} {active.version} before it was proven")


INVARIANTS: tuple[type[Invariant], ...] = (
    AlwaysRunnable,
    OnlyTrusted,
    CountersRise,
    RolloutsEnd,
    NoPromotionOnSilence,
    CallingBackIsFree,
    NothingLost,
    HarmIsStopped,
    HeldBack,
    Bounded,
    ProvenFirst,
)
ESCAPES = "I0-nothing-escapes"
"""No exception leaves the conductor or the fleet, but those that they declare."""
CONVERGES = "I11-converges"
"""Checked by the world itself: after faults, every living device runs what it is assigned, or has said why not; and a
good release reaches all of them."""


def _files(release: ReleaseRef, manifests: Mapping[Sha256, Manifest], device: SimulatedDevice) -> list[Sha256]:
    """Return what `device` needs to run `release`: the manifest and its files."""
    manifest = manifests.get(release.bundle_sha256)
    variants = () if manifest is None else eligible(manifest, device.nature.hardware)
    if manifest is None or not variants:
        return []
    return [release.bundle_sha256, *(file.sha256 for file in files_of(manifest, variants))]
