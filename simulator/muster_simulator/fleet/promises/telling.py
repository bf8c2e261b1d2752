"""Who is told, and when a device may change what serves."""

from collections.abc import Sequence

from muster_agent.core.state import DeviceState, Phase, Update
from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import Outcome, Rollout, RolloutState
from muster_controller.ports import Desired
from muster_shared.assignment import DAY_MINUTES, MaintenanceWindow
from muster_shared.ids import DeviceId
from muster_shared.messages import EventBody, Step, StepReached
from muster_simulator.fleet.promises.scene import LATE_WAVE, Promise, newly_told
from muster_simulator.fleet.shape import is_named


class OnlyThoseOfTheWave(Promise):
    """While a rollout runs, its release is given to nobody but devices of its waves, which are there, and are in its
    group as the controller knows them then; no control, no late joiner, nobody who is offline."""

    name = "F13-only-those-of-the-wave"

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        if before is None or after.at_once:
            return
        selector = self.scene.selectors.get(after.id, "")
        for member in newly_told(before, after, changes):
            device = self.scene.ledger.device(member.device)
            if device is None or not device.online:
                raise self.broken(f"{after.id} tells {member.device}, which is offline")
            if device.twin is None or not is_named(selector, device.twin.labels):
                raise self.broken(f"{after.id} tells {member.device}, which is not in its group {selector!r}")
            control = after.controls.get((after.wave, member.device))
            if control is not None and control.outcome is Outcome.PENDING and control.assigned_at is not None:
                raise self.broken(f"{after.id} tells {member.device}, which it holds back")

    def desired(self, before: Desired, after: Desired) -> None:
        for name, wanted in after.models.items():
            if before.models.get(name) == wanted or after.device in self.scene.holds:
                continue  # Who is held is told to stay on what it runs.
            rollout, watch = self.scene.ledger.rollout(wanted.rollout), wanted.assignment.watch
            if (
                rollout is None
                or rollout.at_once
                or rollout.release.bundle_sha256 != wanted.assignment.release.bundle_sha256
            ):
                continue
            member = rollout.members.get(after.device)
            if watch is not None and watch.wave == LATE_WAVE:
                if rollout.state is not RolloutState.FINISHED:
                    raise self.broken(f"{after.device} is given {name} before {rollout.id} has passed")
                if member is None and rollout.policy.late_joiners == "never":
                    raise self.broken(f"{after.device} came late, and {rollout.id} is not for those")
            elif watch is None and rollout.state not in (RolloutState.RUNNING, RolloutState.PAUSED):
                continue  # A calling back, or what was decided at once.
            elif member is None or member.wave is None or member.assigned_at is None:
                raise self.broken(f"{after.device} is given {name} by {rollout.id} before its wave")


class WindowsAreKept(Promise):
    """A device changes what serves only within the maintenance windows of the policy, by its own clock on the wall;
    called back it does so at once."""

    name = "F14-windows-are-kept"

    def committed(
        self, device: DeviceId, before: DeviceState, after: DeviceState, bodies: Sequence[EventBody], first: int
    ) -> None:
        for body in bodies:
            if not isinstance(body, StepReached) or body.step not in (Step.SWITCHED, Step.ROLLED_BACK):
                continue
            was = before.models.get(body.release.model)
            if was is None or was.update is None or was.update.activation is None or was.slots.active is None:
                continue
            if was.update.phase is Phase.PROBATION or not was.update.activation.windows:
                continue
            it, slack_s = self.scene.devices[device], _slack_s(was.update)
            if self.scene.true_time() - it.set_at <= slack_s:
                continue
            now = it.clock() + it.nature.utc_offset_s
            if not any(_is_open(was.update.activation.windows, at) for at in (now, now - slack_s)):
                day, minute = it.local()
                raise self.broken(
                    f"{device} changes to {body.release.version} on day {day} at {minute // 60:02d}:{minute % 60:02d}"
                )


def _is_open(windows: Sequence[MaintenanceWindow], local_s: float) -> bool:
    minutes = int(local_s // 60)
    day, minute = (minutes // DAY_MINUTES + 3) % 7, minutes % DAY_MINUTES  # 1970 began on a Thursday.
    for window in windows:
        today = day in window.days and 0 <= minute - window.start_minute < window.minutes
        over_night = minute + DAY_MINUTES - window.start_minute < window.minutes and (day - 1) % 7 in window.days
        if today or over_night:
            return True
    return False


def _slack_s(update: Update) -> float:
    """Return how long the last steps take once a window was found open: an answer, a self-test, a trial."""
    return 180.0 + (0.0 if update.trial is None else update.trial.seconds_max + 120.0)
