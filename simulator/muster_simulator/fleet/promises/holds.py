"""What operators hold, rollouts leave alone: nothing of it is told, counted or awaited."""

from collections.abc import Collection
from typing import assert_never

from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import Control, Member, Outcome, Rollout, RolloutState
from muster_controller.groups import active
from muster_controller.holds import Hold, HoldKind
from muster_controller.ports import Desired
from muster_shared.ids import DeviceId
from muster_simulator.fleet.promises.scene import Kept, Promise

GRACE_S = 10.0
"""After that, a second controller has heard of a hold that the first one was told of."""
CUT_OFF_S = 3600.0


class HeldStay(Promise):
    """From when a hold is followed until it is lifted, the device is told nothing but what it ran then: by no rollout,
    no calling back, no baseline. Who was decommissioned is told nothing at all. (Afterwards it converges: F17.)"""

    name = "F21-held-stay"

    def held(self, device: DeviceId, hold: Hold | None) -> None:
        if hold is None:
            self.scene.holds.pop(device, None)
        else:
            self.scene.holds[device] = Kept(hold, self.scene.true_time())

    def reads(self, devices: Collection[DeviceId]) -> None:
        for device in devices:
            if device in self.scene.holds:
                self.scene.holds[device].is_read = True

    def followed(self, devices: Collection[DeviceId]) -> None:
        for device in devices:
            kept = self.scene.holds.get(device)
            if kept is None or kept.followed_at is not None:
                continue
            kept.followed_at = self.scene.true_time()
            row = self.scene.ledger.device(device)
            for name in {rollout.model for rollout in self.scene.ledger.rollouts(running=False)}:
                running = None if row is None else active(row, name)
                if running is not None:
                    kept.runs[name] = running.bundle_sha256

    def desired(self, before: Desired, after: Desired) -> None:
        kept = self.scene.holds.get(after.device)
        if kept is None or not self.is_sure(kept):
            return
        for name, wanted in after.models.items():
            bundle = wanted.assignment.release.bundle_sha256
            if before.models.get(name) != wanted and kept.runs.get(name) != bundle:
                raise self.broken(
                    f"{after.device}, which is {kept.hold.kind.value}, is told by {wanted.rollout} to run"
                    f" {name} {wanted.assignment.release.version}"
                )

    def is_sure(self, kept: Kept) -> bool:
        return kept.is_followed_for(GRACE_S, self.scene.true_time())


class HeldCountForNothing(Promise):
    """What a device comes to after it was quarantined, decommissioned or revoked counts in no gate, neither for a
    release nor against it, as one that is treated or as one that is held back; nor does what a pinned device comes to
    once the rollouts have let go of it. (What was counted before stays counted.)"""

    name = "F22-held-count-for-nothing"

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        if before is None or not self.scene.holds:
            return
        for device in changes.members:
            if device in self.scene.holds:
                self._look(after, before.members.get(device), after.members[device])
        for key in changes.controls:
            if key[1] in self.scene.holds:
                self._look(after, before.controls.get(key), after.controls[key])

    def _look(self, rollout: Rollout, before: Member | Control | None, after: Member | Control) -> None:
        kept = self.scene.holds[after.device]
        knows = kept.is_out and kept.is_read and self.scene.fleets() == 1
        if not knows and not kept.is_followed_for(GRACE_S, self.scene.true_time()):
            return
        if after.outcome in (Outcome.GOOD, Outcome.BAD) and (before is None or before.outcome is not after.outcome):
            raise self.broken(
                f"{rollout.id}: {after.device}, which is {kept.hold.kind.value}, counts as {after.outcome.value}"
            )


class NobodyAwaitsHeld(Promise):
    """No running rollout has a wave, or a control, that waits for a device that is held; and who is quarantined,
    decommissioned or revoked is no member of one that could be told yet. So rollouts finish without them."""

    name = "F23-nobody-awaits-held"

    def looked(self) -> None:
        now = self.scene.true_time()
        held = [(device, kept) for device, kept in self.scene.holds.items() if kept.is_followed_for(GRACE_S, now)]
        if not held:
            return
        for rollout in self.scene.ledger.rollouts(running=True):
            if rollout.state not in (RolloutState.RUNNING, RolloutState.PAUSED):
                continue
            for device, kept in held:
                self._look(rollout, device, kept)

    def _look(self, rollout: Rollout, device: DeviceId, kept: Kept) -> None:
        member = rollout.members.get(device)
        waits = member is not None and member.outcome is Outcome.PENDING
        if member is not None and waits and (member.wave is not None or kept.is_out):
            where = "is a member of" if member.wave is None else f"is awaited in wave {member.wave} of"
            raise self.broken(f"{device}, which is {kept.hold.kind.value}, {where} {rollout.id}")
        for wave in rollout.open:
            control = rollout.controls.get((wave, device))
            if control is not None and control.outcome is Outcome.PENDING:
                raise self.broken(f"{device}, which is {kept.hold.kind.value}, is held back in wave {wave}")


class CutOff(Promise):
    """Of a device that was decommissioned nothing is kept: neither what it should run, nor an assignment on the broker,
    whatever that forgot or brought back, once a controller is connected to it. One that was revoked is offline."""

    name = "F24-cut-off"

    def looked(self) -> None:
        now = self.scene.true_time()
        for device, kept in self.scene.holds.items():
            it = self.scene.devices[device]
            if it.has_identity or not kept.is_followed_for(CUT_OFF_S, now):
                continue
            match kept.hold.kind:
                case HoldKind.GONE:
                    if self.scene.ledger.desired(device).envelope:
                        raise self.broken(f"{device} was decommissioned, and is told what to run all the same")
                    if self.scene.retained(device):
                        raise self.broken(f"{device} was decommissioned, and its assignment is still retained")
                case HoldKind.REVOKED:
                    row = self.scene.ledger.device(device)
                    if row is not None and row.online and it.set_at < kept.since - CUT_OFF_S and not it.offset_s:
                        raise self.broken(f"{device} was revoked, and is taken for online")
                case HoldKind.PINNED | HoldKind.QUARANTINED:
                    pass
                case _:
                    assert_never(kept.hold.kind)
