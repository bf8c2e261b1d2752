"""The operator's script: publishes releases, starts rollouts, and deals with those that pause. Random, within reason.

It goes through the same calls as the API does, and finds the controller down as often as a person would.
"""

from collections.abc import Sequence
from random import Random

from muster_controller.core.policy import Policy, PolicyInvalid, Rate
from muster_controller.core.rollout.events import Order, OrderRefused
from muster_controller.core.rollout.state import Pause, Rollout, RolloutState
from muster_controller.errors import Conflict
from muster_shared.assignment import Trial
from muster_shared.ids import DeviceId, ModelName, RolloutId, Sha256
from muster_shared.messages import Hardware, ReleaseRef
from muster_simulator.controller import SimulatedController
from muster_simulator.device import Nature
from muster_simulator.ports.lab import Kind, Truth
from muster_simulator.stage import Stage

LOOK_S = 15.0
ACTOR = "op"
EXTENSION_S = 60.0


class Operator:
    """One person with two hands: one rollout a model at a time."""

    def __init__(
        self,
        stage: Stage,
        controller: SimulatedController,
        models: Sequence[ModelName],
        natures: Sequence[Nature],
        truths: dict[Sha256, Truth],
    ) -> None:
        self.creates = True
        """Whether new rollouts are begun."""
        self.rollouts: list[RolloutId] = []
        self._stage = stage
        self._controller = controller
        self._models = models
        self._natures = natures
        self._truths = truths
        self._random = stage.random("operator")
        self._numbers = dict.fromkeys(models, 0)
        self._next_at = {model: stage.timeline.now + self._random.uniform(5.0, 120.0) for model in models}
        self._waiting: dict[ModelName, tuple[ReleaseRef, Policy]] = {}
        self._paused_at: dict[RolloutId, float] = {}

    def begin(self) -> None:
        self._stage.timeline.after(LOOK_S, self._look)

    def release(self, model: ModelName, truth: Truth, fits: Sequence[Hardware]) -> ReleaseRef:
        """Publish the next release of `model`."""
        self._numbers[model] += 1
        ref = self._controller.registry.publish_release(model, self._numbers[model], fits)
        self._truths[ref.bundle_sha256] = truth
        self._stage.history.add("operator", "publishes", model, ref.version, truth.kind.value, len(truth.harmed))
        self._controller.run(lambda fleet: fleet.publish_trust())
        return ref

    def roll_out(self, release: ReleaseRef, policy: Policy) -> Rollout | None:
        """Start a rollout; None when it is refused, or the controller is not there."""
        try:
            rollout = self._controller.run(
                lambda fleet: fleet.create_rollout(release.model, release.version, policy, ACTOR)
            )
        except (Conflict, PolicyInvalid) as error:
            self._stage.history.add("operator", "refused", release.version, str(error))
            return None
        if rollout is not None:
            self.rollouts.append(rollout.id)
            self._stage.history.add("operator", "rolls_out", rollout.id, len(rollout.members), str(rollout.waves))
        return rollout

    def order(self, rollout: Rollout, order: Order) -> None:
        self._stage.history.add("operator", order.value, rollout.id)
        try:
            obeyed = self._controller.run(lambda fleet: fleet.order(rollout.id, order, ACTOR, "by hand", EXTENSION_S))
        except (OrderRefused, Conflict) as error:
            self._stage.history.add("operator", "refused", str(error))
        else:
            if obeyed is not None:
                self._stage.observers.ordered(rollout.id, order.value)

    def meddle(self) -> None:
        """Do something to a rollout that a person might do."""
        rollouts = self._controller.ledger.rollouts(running=False)
        if not rollouts:
            return
        rollout = self._random.choice(rollouts)
        match rollout.state:
            case RolloutState.RUNNING:
                orders = (Order.PAUSE, Order.PAUSE, Order.ABORT, Order.SKIP, Order.RETRY, Order.EXTEND)
                self.order(rollout, self._random.choice(orders))
            case RolloutState.PAUSED:
                self.order(rollout, self._random.choice((Order.RESUME, Order.SKIP, Order.ABORT)))
            case RolloutState.FINISHED:
                self.order(rollout, Order.ROLL_BACK)
            case _:
                self.order(rollout, Order.RESUME)  # Which is refused.

    # ----------------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        now = self._stage.timeline.now
        self._stage.timeline.after(LOOK_S, self._look)
        if not self._controller.is_up:
            return
        for rollout in self._controller.ledger.rollouts(running=True):
            if rollout.state is not RolloutState.PAUSED:
                self._paused_at.pop(rollout.id, None)
            elif now >= self._paused_at.setdefault(rollout.id, now + self._random.uniform(10.0, 120.0)):
                del self._paused_at[rollout.id]
                go_on = Order.SKIP if rollout.pause is Pause.UNDECIDED else Order.RESUME
                # An honest release may well be held: in peace people know that it is good, and let it pass.
                self.order(rollout, go_on if self._stage.is_peaceful else self._random.choice((go_on, Order.ABORT)))
        if not self.creates:
            return
        running = {rollout.model for rollout in self._controller.ledger.rollouts(running=True)}
        for model in self._models:
            if model in running or now < self._next_at[model]:
                continue
            if model not in self._waiting:
                self._waiting[model] = self._plan(model)
            if self.roll_out(*self._waiting[model]) is not None or self._random.random() < 0.2:
                del self._waiting[model]
                self._next_at[model] = now + self._random.uniform(30.0, 300.0)

    def _plan(self, model: ModelName) -> tuple[ReleaseRef, Policy]:
        random = self._random
        aborted = [
            rollout.release
            for rollout in self._controller.ledger.rollouts(running=False)
            if rollout.model == model and rollout.state is RolloutState.ABORTED
        ]
        if aborted and random.random() < 0.15:
            return random.choice(aborted), make_policy(random)  # Once more.
        classes = hardware_classes(self._natures)
        fits = [hardware for hardware in classes if random.random() > 0.07] or classes
        return self.release(model, self._truth(classes), fits), make_policy(random)

    def _truth(self, classes: Sequence[Hardware]) -> Truth:
        random = self._random
        if random.random() < 0.5:
            return Truth()
        kind = random.choice([kind for kind in Kind if kind is not Kind.GOOD])
        if random.random() < 0.25:
            only = random.choice(classes).device_class
            return Truth(kind, self._some(only, 1.0))
        share = random.choice((0.4, 0.4, 0.7, 1.0))
        harmed: frozenset[DeviceId] = frozenset().union(*(self._some(each.device_class, share) for each in classes))
        return Truth(kind, harmed)

    def _some(self, device_class: str, share: float) -> frozenset[DeviceId]:
        devices = [nature.device for nature in self._natures if nature.hardware.device_class == device_class]
        return frozenset(self._random.sample(devices, max(1, round(share * len(devices)))))


def make_policy(random: Random) -> Policy:
    window_s = random.uniform(15.0, 30.0)
    trial, consent = None, random.random() < 0.2
    if random.random() < 0.2:
        trial = Trial(
            mode=random.choice(("shadow", "canary")),
            share=0.5,
            requests_min=10,
            seconds_max=15.0,
            disagreement_max=0.05,
            latency_ratio_max=2.0,
        )
    return Policy(
        waves=random.choice(((2,), (3, "30%"), (1, "25%", "50%"), ("20%", "50%"), (5, "25%"))),
        failure_objective=random.choice((0.02, 0.05, 0.1)),
        success_required=random.choice((0.6, 0.8, 0.9, 1.0)),
        controls_per_device=random.choice((0, 1, 3, 10)),
        window_s=window_s,
        window_max_s=window_s * 2,
        requests_min=10,
        deadline_s=random.uniform(120.0, 300.0),
        soak_s=random.choice((0.0, 0.0, 20.0)),
        on_abort="stop" if random.random() < 0.1 else "roll_back",
        selector=random.choice(("", "", "", "site=north")),
        rate=Rate(per_minute=random.choice((6.0, 30.0))) if random.random() < 0.2 else None,
        concurrency=random.choice((None, None, None, 3)),
        retries=random.choice((0, 0, 1)),
        retry_wait_s=10.0,
        late_joiners=random.choice(("afterwards", "afterwards", "last_wave", "never")),
        consent=consent,
        defer_s_max=300.0 if consent else 0.0,
        trial=trial,
    )


def hardware_classes(natures: Sequence[Nature]) -> list[Hardware]:
    """Return one hardware of each class, in order."""
    found = {nature.hardware.device_class: nature.hardware for nature in natures}
    return [found[name] for name in sorted(found)]
