"""What has come of everything in the end: nothing is lost, nobody is waited for, and all run what they should."""

from collections.abc import Sequence

from muster_agent.core.state import DeviceState
from muster_controller.core.rollout.state import Control, Member, Outcome, RolloutState
from muster_shared.ids import DeviceId
from muster_shared.messages import EventBody, FaultSeen, OutcomeReported, Step, StepReached
from muster_simulator.fleet.promises.scene import Promise

LATE_S = 4 * 3600.0
"""Longer than controllers are away and their clocks are wrong."""


class NothingLost(Promise):
    """Every event that a living device committed is in the ledger in the end."""

    name = "F15-nothing-lost"

    def ended(self) -> None:
        ledger = self.scene.ledger
        for device, it in self.scene.devices.items():
            if it.is_dead:
                continue
            for number in range(1, it.numbered + 1):
                if not ledger.has_event(f"{device}.{number}"):  # type: ignore[arg-type]  # As the device names it.
                    raise self.broken(f"event {number} of {it.numbered} of {device} never arrived")


class RolloutsEnd(Promise):
    """Once faults have stopped and people attend, every rollout ends. (The world says when it is too late.)"""

    name = "F16-rollouts-end"


class SilenceCounts(Promise):
    """A device that is silent until its deadline, treated or held back, counts as bad then; nobody is waited for beyond
    that."""

    name = "F20-silence-counts"

    def looked(self) -> None:
        late_at = self.scene.clock() - LATE_S
        for rollout in self.scene.ledger.rollouts(running=True):
            if rollout.state not in (RolloutState.RUNNING, RolloutState.PAUSED):
                continue
            each: Member | Control
            for each in (*rollout.members.values(), *rollout.controls.values()):
                if each.outcome is not Outcome.PENDING or each.deadline_at is None or each.deadline_at > late_at:
                    continue
                if isinstance(each, Control) or each.retry_at is None:
                    raise self.broken(
                        f"{rollout.id} waits for {each.device} {-each.deadline_at + late_at:.0f} s too long"
                    )


class Converges(Promise):
    """Once faults have stopped, every living device runs what the newest decision for it says, or has said why not
    (that the files rotted is a reason only for what was aborted since, which nobody is given again); and a good
    release reaches all of them. (The world looks.)"""

    name = "F17-converges"

    def committed(
        self, device: DeviceId, before: DeviceState, after: DeviceState, bodies: Sequence[EventBody], first: int
    ) -> None:
        for body in bodies:
            match body:
                case StepReached(step=Step.FAILED, release=release) | OutcomeReported(good=False, release=release):
                    self.scene.complaints.add((device, release.bundle_sha256))
                case FaultSeen(model=name) if name is not None and name in before.models:
                    lost = before.models[name].slots.active
                    if lost is not None:
                        self.scene.faults.add((device, lost.bundle_sha256))
                case _:
                    pass


class NeverSpins(Promise):
    """No part keeps another busy at one moment without end. (The world counts.)"""

    name = "F18-never-spins"


class NothingEscapes(Promise):
    """No exception leaves the fleet or the update core, but those that they declare. (The world catches.)"""

    name = "F19-nothing-escapes"
