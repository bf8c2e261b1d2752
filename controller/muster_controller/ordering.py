"""What operators order of rollouts: which devices, against which rivals, from which release, under which name.

Inside it nothing is waited for: a rollout that was ordered begins at the next tick. Belongs to the thread of the fleet.
"""

from collections import Counter
from collections.abc import Sequence
from random import Random

from muster_controller.acting import done_by
from muster_controller.core.policy import Policy, check, satisfiable
from muster_controller.core.rollout import machine
from muster_controller.core.rollout.events import DeviceLeft, Order, Ordered, Superseded
from muster_controller.core.rollout.state import Outcome, Rollout
from muster_controller.engine import Engine
from muster_controller.errors import Conflict, NotFound
from muster_controller.groups import can_run, device_class, selected
from muster_controller.mending import has_say
from muster_controller.ports import Device
from muster_controller.succession import declared, previous_release, should_run
from muster_shared.ids import ModelName, RolloutId
from muster_shared.messages import ReleaseRef

AT_ONCE = Policy(waves=("100%",), controls_per_device=0, success_required=0.0)
"""The policy of a rollback that waits for nothing."""


class Ordering:
    """One fleet's orders."""

    def __init__(self, engine: Engine, random: Random) -> None:
        """
        Args:
            random: draws the order of devices and the names of rollouts.
        """
        self._engine = engine
        self._random = random

    def create(self, model: ModelName, version: str, policy: Policy, actor: str) -> Rollout:
        """Start bringing `version` of `model` to the devices that the policy selects and that can run it.

        Raises:
            PolicyInvalid: the policy cannot be evaluated or satisfied.
            NotFound: no such release.
            Conflict: no device could run the release, or another rollout of the model has some of these devices and
                not a lower priority.
        """
        check(policy)
        release = self._release(model, version)
        with done_by(actor), self._engine.transaction():
            devices = self._eligible(release, policy.selector)
            if not devices:
                raise Conflict(f"no known device that the selector names can run {model} {version}")
            if all(should_run(self._engine.ledger.desired(device.id), release) for device in devices):
                raise Conflict(f"{model} {version} is what the fleet runs already, as far as the selector names it")
            satisfiable(policy, len(devices), Counter(device_class(device) for device in devices))
            rivals = self._rivals(model, devices, policy.priority)
            previous = self._previous(release, devices)
            before = None if previous is None else self._engine.registry.manifest(previous.bundle_sha256)
            policy, said = declared(policy, self._engine.registry.manifest(release.bundle_sha256), before)
            rollout = self._begin(release, previous, policy, devices, actor)
            if said:
                self._engine.note("latency_declared", rollout.id, said)
            self._take_over(rollout, rivals)
        return rollout

    def roll_back(
        self, model: ModelName, version: str, actor: str, reason: str, policy: Policy | None = None
    ) -> Rollout:
        """Bring the fleet to an earlier release of `model`: by a rollout of `policy`, or (None) at once and ungated.

        At once, every rollout of the model that is under way is superseded, and devices that are offline are told too.

        Raises:
            PolicyInvalid, NotFound, Conflict: as `create`.
        """
        if policy is not None:
            with done_by(actor, reason):
                return self.create(model, version, policy, actor)
        release = self._release(model, version)
        with done_by(actor, reason), self._engine.transaction():
            devices = self._eligible(release, "")
            if not devices:
                raise Conflict(f"no known device can run {model} {version}")
            rollout = self._begin(release, self._previous(release, devices), AT_ONCE, devices, actor, reason, True)
            for other in self._engine.ledger.rollouts(running=True):
                if other.model == model and other.id != rollout.id:
                    self._engine.advance(other, Superseded(rollout.id))
        return rollout

    def order(self, rollout_id: RolloutId, order: Order, actor: str, reason: str, seconds: float = 0.0) -> Rollout:
        """Do what an operator orders. Raises NotFound, OrderRefused, Conflict."""
        with done_by(actor, reason), self._engine.transaction():
            rollout = self._engine.ledger.rollout(rollout_id)
            if rollout is None:
                raise NotFound("rollout", rollout_id)
            if order is Order.ROLL_BACK:
                self._check_roll_back(rollout)
            rollout = self._engine.advance(rollout, Ordered(order, actor, reason, seconds))
            said = reason if order is not Order.EXTEND else f"by {seconds:g} s: {reason}"
            self._engine.note(f"rollout_{order.value}", rollout_id, said)
        self._engine.publish()
        return rollout

    def _check_roll_back(self, rollout: Rollout) -> None:
        newest = next(iter(self._engine.ledger.baselines(rollout.model)), None)
        if newest is None or newest.rollout != rollout.id:
            raise Conflict(
                f"{rollout.model} {rollout.release.version} is not what the fleet runs any more;"
                f" `muster rollback {rollout.model} --to VERSION` goes to any earlier release"
            )
        for other in self._engine.ledger.rollouts(running=True):
            if other.model == rollout.model and other.id != rollout.id:
                raise Conflict(f"rollout {other.id} of {rollout.model} is under way; finish or abort it first")

    def _release(self, model: ModelName, version: str) -> ReleaseRef:
        release = self._engine.registry.release(model, version)
        if release is None:
            raise NotFound("model", f"{model} {version}")
        return release

    def _new_id(self, release: ReleaseRef) -> RolloutId:
        """Return a name that no rollout has: with a seed, a controller that was restarted draws the same again."""
        while True:
            word = f"{self._random.getrandbits(24):06x}"
            name = RolloutId(f"{release.model}-{release.version.replace('.', '-').lower()}-{word}")
            if self._engine.ledger.rollout(name) is None:
                return name

    def _begin(
        self,
        release: ReleaseRef,
        previous: ReleaseRef | None,
        policy: Policy,
        devices: Sequence[Device],
        actor: str,
        reason: str = "",
        at_once: bool = False,
    ) -> Rollout:
        word = "rollback" if at_once else "rollout"
        rollout = machine.create(
            self._new_id(release),
            release,
            previous,
            policy,
            {device.id: device_class(device) for device in devices},
            now=self._engine.clock(),
            actor=actor,
            shuffle=self._random.shuffle,
            at_once=at_once,
        )
        self._engine.ledger.save_rollout(rollout, None, machine.everything(rollout))
        detail = f"{release.model} {release.version} to {len(devices)} devices" + (f": {reason}" if reason else "")
        self._engine.note(f"{word}_created", rollout.id, detail)
        return rollout

    def _rivals(self, model: ModelName, devices: Sequence[Device], priority: int) -> list[Rollout]:
        """Return the rollouts of lower priority that have some of `devices`. Raises Conflict for the others."""
        rivals: list[Rollout] = []
        for other in self._engine.ledger.rollouts(running=True):
            shared = sum(has_say(other, device.id) for device in devices) if other.model == model else 0
            if not shared:
                continue
            if other.policy.priority >= priority:
                raise Conflict(
                    f"rollout {other.id} of {model} is {other.state.value} and has {shared} of these devices;"
                    f" abort it, wait, select others, or give this one a priority above {other.policy.priority}"
                )
            rivals.append(other)
        return rivals

    def _take_over(self, rollout: Rollout, rivals: Sequence[Rollout]) -> None:
        for rival in rivals:
            shared = [device for device in sorted(rollout.members) if has_say(rival, device)]
            left = [member.device for member in rival.members.values() if member.outcome is not Outcome.LEFT]
            if all(has_say(rollout, device) for device in left):
                self._engine.advance(rival, Superseded(rollout.id))
                continue
            why = f"rollout {rollout.id} of priority {rollout.policy.priority} took it over"
            for device in shared:
                rival = self._engine.advance(rival, DeviceLeft(device, why, is_taken=True))
            self._engine.note("devices_taken_over", rival.id, f"{len(shared)} by {rollout.id}")

    def _eligible(self, release: ReleaseRef, selector: str) -> list[Device]:
        manifest = self._engine.registry.manifest(release.bundle_sha256)
        devices = (device for device in self._engine.ledger.devices() if not self._engine.is_out(device.id))
        return [device for device in devices if selected(device, selector) and can_run(device, manifest)]

    def _previous(self, release: ReleaseRef, devices: Sequence[Device]) -> ReleaseRef | None:
        return previous_release(release, devices, self._engine.ledger.baselines(release.model))
