"""What devices are told to run: by whom, in which order, and what becomes of it when a rollout is called back."""

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256 as digest_of

from muster_agent.core.state import DeviceState
from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import ENDED, Outcome, Rollout, RolloutState
from muster_controller.ports import Desired, Wanted
from muster_shared.ids import DeviceId, ModelName, RolloutId, Sha256
from muster_shared.messages import EventBody, ReleaseRef
from muster_simulator.fleet.promises.scene import Promise, Scene, has_say, home_of


class CountersRise(Promise):
    """A device's assignment counter rises by one at a time and never falls, each counter is said once, nothing is said
    before it is in the ledger, and a device obeys only what was said to it. So a controller that takes the past for the
    present has no effect, and what a device was told before it was decommissioned counts when it is back.
    (No world brings back a backup, raises a counter with a stolen key or changes the assignment key: there counters
    jump and may fall, by rules that the unit tests of both sides hold.)"""

    name = "F1-counters-rise"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._said: dict[DeviceId, dict[int, str]] = defaultdict(dict)
        self._known: dict[DeviceId, set[bytes]] = defaultdict(set)
        self._obeyed: dict[DeviceId, int] = {}

    def desired(self, before: Desired, after: Desired) -> None:
        if after.envelope == before.envelope:
            return
        said = self._said[after.device]
        if after.counter != before.counter + 1 or after.counter in said:
            raise self.broken(f"{after.device} was at counter {before.counter} and is given {after.counter}")
        found = digest_of(after.envelope)
        said[after.counter] = found.hexdigest()
        self._known[after.device].add(found.digest()[:8])

    def published(self, device: DeviceId, envelope: bytes) -> None:
        if digest_of(envelope).digest()[:8] not in self._known[device]:
            raise self.broken(f"{device} is sent an assignment that is not in the ledger")

    def committed(
        self, device: DeviceId, before: DeviceState, after: DeviceState, bodies: Sequence[EventBody], first: int
    ) -> None:
        if after.assignment == before.assignment:
            return
        if after.counter <= self._obeyed.get(device, 0):
            raise self.broken(f"{device} obeys counter {after.counter} after {self._obeyed[device]}")
        self._obeyed[device] = after.counter
        if self._said[device].get(after.counter) != after.assignment:
            raise self.broken(f"{device} obeys counter {after.counter}, which was never said so")


class OneRolloutADevice(Promise):
    """No device is in two running rollouts of one model."""

    name = "F2-one-rollout-a-device"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._touched: set[tuple[ModelName, DeviceId]] = set()

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        owners = self.scene.owners[after.model]
        ended = after.state in ENDED
        if before is None or (before.state in ENDED) != ended:
            names: Sequence[DeviceId] | frozenset[DeviceId] = tuple(after.members)
        else:
            names = changes.members
        for device in names:
            if not ended and has_say(after.members[device]):
                owners[device].add(after.id)
                self._touched.add((after.model, device))
            else:
                owners[device].discard(after.id)

    def transacted(self) -> None:
        for model, device in self._touched:
            if len(self.scene.owners[model][device]) > 1:
                raise self.broken(f"{device} is in {' and '.join(sorted(self.scene.owners[model][device]))}")
        self._touched.clear()


class NeverFight(Promise):
    """What a device should run of a model is said by the rollout that has it, by no other, and by a decision of the
    past only where none has it. (To say once more what was said before, because its files rotted, moves nothing.)"""

    name = "F3-never-fight"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._said: list[tuple[DeviceId, ModelName, Wanted]] = []

    def desired(self, before: Desired, after: Desired) -> None:
        for name, wanted in after.models.items():
            was = before.models.get(name)
            is_again = was is not None and (was.rollout, was.assignment.release) == (
                wanted.rollout,
                wanted.assignment.release,
            )
            if was != wanted and not is_again:
                self._said.append((after.device, name, wanted))

    def transacted(self) -> None:
        said, self._said = self._said, []
        for device, name, wanted in said:
            others = self.scene.owners[name][device] - {wanted.rollout}
            if others and device not in self.scene.holds:
                raise self.broken(
                    f"{wanted.rollout} tells {device} to run {name} {wanted.assignment.release.version},"
                    f" but {' and '.join(sorted(others))} has it"
                )


class NothingAfterAbort(Promise):
    """Once a rollout is aborted, it gives its release to nobody; only a newer rollout may."""

    name = "F4-nothing-after-abort"

    def desired(self, before: Desired, after: Desired) -> None:
        for name, wanted in after.models.items():
            if before.models.get(name) == wanted or after.device in self.scene.holds:
                continue  # Who is held is told to stay on what it runs.
            rollout = self.scene.ledger.rollout(wanted.rollout)
            if rollout is None:
                raise self.broken(f"{after.device} is told by {wanted.rollout}, which nobody knows")
            is_off = rollout.state in (RolloutState.ABORTING, RolloutState.ABORTED)
            is_own = wanted.assignment.release.bundle_sha256 == rollout.release.bundle_sha256
            if rollout.at_once and (rollout.previous is None or rollout.reason.startswith("superseded")):
                continue  # What was decided at once stays decided when nothing, or nothing newer, came of the other.
            if is_off and is_own and home_of(rollout, after.device) != wanted.assignment.release:
                raise self.broken(f"{after.device} is given the release of {rollout.id}, which is aborted")


class TouchedComeHome(Promise):
    """Before a rollout that is called back has ended, it has told every device that it touched, in flight or not (with
    `stop`: in flight), what it ran before, unless a newer decision has the device, or an operator holds it."""

    name = "F5-touched-come-home"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._called: dict[RolloutId, frozenset[DeviceId]] = {}
        self._ended: list[Rollout] = []

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        if before is None or after.reason.startswith("superseded"):
            return
        if after.aborting_at is not None and before.aborting_at != after.aborting_at:
            only_in_flight = after.policy.on_abort == "stop" and before.state is not RolloutState.FINISHED
            self._called[after.id] = frozenset(
                device
                for device, member in after.members.items()
                if member.assigned_at is not None
                and device not in self.scene.holds
                and (member.outcome is Outcome.PENDING or not only_in_flight)
                and (before.state is RolloutState.FINISHED or after.policy.on_abort != "freeze")
            )
        if after.state is RolloutState.ABORTED:
            self._ended.append(after)

    def transacted(self) -> None:
        ended, self._ended = self._ended, []
        for rollout in ended:
            for device in sorted(self._called.pop(rollout.id, frozenset())):
                home, wanted = home_of(rollout, device), self.scene.ledger.desired(device).models.get(rollout.model)
                if device in self.scene.holds:
                    continue
                if home is None or wanted is None or not has_say(rollout.members[device]):
                    continue
                if wanted.rollout == rollout.id and wanted.assignment.release not in (home, rollout.previous):
                    raise self.broken(f"{rollout.id} was called back, but {device} was never told to go home")


class GoingBackIsFree(Promise):
    """A device that is called back to what it ran before downloads nothing: it is in standby."""

    name = "F6-going-back-is-free"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._ran_before: dict[tuple[DeviceId, ModelName], ReleaseRef] = {}
        self._rotten: set[tuple[DeviceId, Sha256]] = set()

    def rotted(self, device: DeviceId, bundle: Sha256) -> None:
        self._rotten.add((device, bundle))

    def committed(
        self, device: DeviceId, before: DeviceState, after: DeviceState, bodies: Sequence[EventBody], first: int
    ) -> None:
        for name in before.models.keys() - after.models.keys():
            self._ran_before.pop((device, name), None)
        for name, model in after.models.items():
            was = before.models.get(name)
            if was is None or was.slots is model.slots or was.slots.active in (None, model.slots.active):
                continue
            if model.slots.active is None or (model.slots.active == was.slots.standby and model.slots.standby is None):
                self._ran_before.pop((device, name), None)  # It went back by itself, and dropped what was bad.
            else:
                assert was.slots.active is not None
                self._ran_before[device, name] = was.slots.active

    def asked(self, device: DeviceId, bundle: Sha256) -> None:
        if (device, bundle) in self._rotten:
            return
        for name, model in self.scene.devices[device].state.models.items():
            update, before = model.update, self._ran_before.get((device, name))
            if update is None or update.release.bundle_sha256 != bundle or update.watch is not None:
                continue
            if before is not None and before.bundle_sha256 == bundle:
                raise self.broken(f"{device} downloads {name} {before.version} again, which it just had")
