"""What follows for rollouts when a device, its group or its hold is another than before: who takes it or lets it go,
what is called off, what is taken off the broker. It hears no devices: `fleet` does, on whose thread it is.
"""

from collections.abc import Iterable
from dataclasses import replace

from muster_controller.core.rollout.events import DeviceChanged, DeviceHeld, DeviceJoined, DeviceLeft
from muster_controller.core.rollout.state import Rollout
from muster_controller.engine import Engine
from muster_controller.groups import active, can_run, device_class, facts_of, labels_of, selected
from muster_controller.holds import Hold, HoldKind
from muster_controller.mending import Mender, has_say
from muster_controller.ports import Device
from muster_shared.assignment import ModelAssignment
from muster_shared.ids import DeviceId, ModelName
from muster_shared.messages import Twin
from muster_shared.topics import Channel, DeviceTopic


class Following:
    """Everything here stands inside a transaction of the engine."""

    def __init__(self, engine: Engine, mender: Mender) -> None:
        self._engine = engine
        self._mender = mender

    def save(self, before: Device, after: Device) -> None:
        """Save a device, and tell the rollouts what concerns them."""
        self._engine.ledger.save_device(after)
        if after.twin is None:
            return
        self._mender.due(after.id, self._engine.clock())
        is_regrouped = before.twin is None or (
            _seen_by_selectors(before.twin) != _seen_by_selectors(after.twin) and labels_of(before) != labels_of(after)
        )
        hold = self._engine.holds(after.id)
        held = "" if hold is None else hold.sentence
        for rollout in self._engine.ledger.rollouts(running=True):
            member = rollout.members.get(after.id)
            if is_regrouped and (member is None or not member.is_touched):
                self._regroup(rollout, after)
            elif member is not None and facts_of(before, rollout.model, held) != (
                facts := facts_of(after, rollout.model, held)
            ):
                self._engine.advance(rollout, DeviceChanged(after.id, facts))

    def held(self, devices: Iterable[DeviceId]) -> None:
        """Do what follows from holds that were set or lifted. The same once more changes nothing."""
        for device_id in sorted(devices):
            device, hold = self._engine.ledger.device(device_id), self._engine.holds(device_id)
            if device is None:
                if hold is not None and hold.kind is HoldKind.GONE:
                    self.withdraw(device_id)  # Whoever forgot it may not have lived to say so.
                continue
            if hold is None:
                self._let_go(device)
            elif hold.kind is not HoldKind.GONE or not _is_back(device, hold):
                self._hold(device, hold)

    def _hold(self, device: Device, hold: Hold) -> None:
        """Call off what is under way on it, and tell it to stay on what it runs.

        Who is revoked can be told nothing, and its will is lost with its rights: it is offline.
        Who is gone is forgotten.
        """
        called_off: set[ModelName] = set()
        for rollout in self._engine.ledger.rollouts(running=True):
            if device.id not in rollout.members:
                continue
            after = self._engine.advance(rollout, DeviceHeld(device.id))
            if after is not rollout:
                called_off.add(rollout.model)
            if hold.is_out:
                self._engine.advance(after, DeviceLeft(device.id, hold.sentence))
        desired = self._engine.ledger.desired(device.id)
        for wanted in desired.models.values():
            self._mender.settled(wanted.rollout, device.id)
        if hold.kind is HoldKind.REVOKED:
            if device.online:
                self.save(device, replace(device, online=False))
            return
        if hold.kind is HoldKind.GONE:
            self._engine.ledger.forget(device.id)
            self.withdraw(device.id)
            return
        models = dict(desired.models)
        for name, wanted in desired.models.items():
            running = active(device, name)
            if running is None:
                del models[name]
            elif wanted.assignment.release.bundle_sha256 != running.bundle_sha256 or name in called_off:
                models[name] = replace(wanted, assignment=ModelAssignment(release=running), at=self._engine.clock())
        if models != dict(desired.models):
            self._engine.issue([replace(desired, models=models)])

    def withdraw(self, device: DeviceId) -> None:
        """Take the assignment of a device that was decommissioned off the broker, unless it has a new one."""
        if not self._engine.ledger.desired(device).envelope:
            self._engine.send(DeviceTopic(device, Channel.ASSIGNMENT), b"", retain=True)

    def _let_go(self, device: Device) -> None:
        """Have rollouts, and what its group runs, see it again."""
        self._mender.due(device.id, self._engine.clock())
        for rollout in self._engine.ledger.rollouts(running=True):
            member = rollout.members.get(device.id)
            if member is None or not member.is_touched:
                self._regroup(rollout, device)
            found = self._engine.ledger.rollout(rollout.id)
            if found is not None and device.id in found.members:
                self._engine.advance(found, DeviceChanged(device.id, facts_of(device, rollout.model)))

    def _regroup(self, rollout: Rollout, device: Device) -> None:
        """Let a device into a rollout, or out of it, as its labels and hardware say now."""
        policy = rollout.policy
        is_in = has_say(rollout, device.id)
        fits = selected(device, policy.selector) and not self._engine.is_out(device.id)
        if is_in and not fits:
            why = f"it is not in the group {policy.selector!r} any more"
            self._engine.advance(rollout, DeviceLeft(device.id, why))
            self._engine.note("device_left_rollout", device.id, f"{rollout.id}: {why}")
        elif fits and not is_in and policy.late_joiners == "last_wave" and not rollout.at_once:
            others = (each for each in self._engine.ledger.rollouts(running=True) if each.model == rollout.model)
            taken = any(has_say(other, device.id) for other in others)
            if not taken and can_run(device, self._engine.registry.manifest(rollout.release.bundle_sha256)):
                self._engine.advance(rollout, DeviceJoined(device.id, device_class(device)))
                self._engine.note("device_joined_rollout", device.id, f"{rollout.id}: last wave")


def _is_back(device: Device, hold: Hold) -> bool:
    """Return whether it speaks since it was decommissioned; what was on its way at that moment is no sign of it."""
    return device.seen_at > hold.at and device.twin is not None and device.twin.sent_at > hold.at


def _seen_by_selectors(twin: Twin) -> tuple[object, ...]:
    """Return what labels are made of: compared first, because a twin hardly ever changes it."""
    return twin.labels, twin.hardware, twin.agent_version
