"""The people of a fleet world: they publish releases, roll them out, and meddle. Random, within reason.

They go through the same calls as the API does, and find the controller down as often as a person would.
"""

from collections.abc import Callable
from functools import partial
from random import Random

from muster_controller.core.policy import Approval, Maintenance, Policy, PolicyInvalid, Ramp, Rate, Threshold
from muster_controller.core.rollout.events import Order, OrderRefused
from muster_controller.core.rollout.state import Pause, Rollout, RolloutState
from muster_controller.errors import Conflict, NotFound
from muster_controller.fleet import Fleet
from muster_shared.assignment import Trial
from muster_shared.ids import ModelName, RolloutId
from muster_shared.messages import ReleaseRef
from muster_simulator.clock import Timeline
from muster_simulator.fleet.controllers import Hall
from muster_simulator.fleet.scale import DAY_S, Scale
from muster_simulator.fleet.shape import RINGS, SITES, written
from muster_simulator.fleet.truth import Harm, Kind
from muster_simulator.fleet.watch import Watcher
from muster_simulator.hardware import CLASSES
from muster_simulator.history import History

LOOK_S = 1800.0
CREATOR, SECOND = "ada", "grace"
ROLLOUTS = 3
"""Of each model, in one run; what others plan beside them, and what meddling makes, comes on top."""
LONGEST_S, LAST_S = 4 * DAY_S, DAY_S
"""How long people bear with a rollout before they end it; and once no new ones are begun."""


class People:
    """Everybody who may give orders."""

    def __init__(
        self,
        timeline: Timeline,
        hall: Hall,
        watch: Watcher,
        history: History,
        random: Random,
        scale: Scale,
        models: tuple[ModelName, ...],
    ) -> None:
        self.creates = True
        """Whether new rollouts are begun."""
        self.selectors: dict[RolloutId, str] = {}
        """In the grammar of `shape.is_named`."""
        self._timeline = timeline
        self._hall = hall
        self._watch = watch
        self._history = history
        self._random = random
        self._scale = scale
        self._models = models
        self._numbers = dict.fromkeys(models, 0)
        self._next_at = {model: timeline.now + 600.0 for model in models}
        self._patience: dict[RolloutId, float] = {}

    def begin(self) -> None:
        self._timeline.after(600.0, self._look)

    def release(self, model: ModelName, harm: Harm) -> ReleaseRef:
        self._numbers[model] += 1
        ref = self._hall.registry.publish(model, self._numbers[model], CLASSES, harm)
        self._history.add("people", "publish", model, ref.version, harm.kind.value, harm.share, harm.device_class)
        self._hall.run(Fleet.publish_trust)
        return ref

    def roll_out(self, release: ReleaseRef, policy: Policy, selector: str = "") -> Rollout | None:
        """Start a rollout; None when it is refused, or nobody is there to start it."""
        model, version = release.model, release.version
        return self._begin(lambda fleet: fleet.create_rollout(model, version, policy, CREATOR), version, selector)

    def _begin(self, act: Callable[[Fleet], Rollout], version: str, selector: str) -> Rollout | None:
        known = {rollout.id for rollout in self._hall.ledger.rollouts(running=False)}
        try:
            rollout = self._hall.run(act)
        except (Conflict, NotFound, PolicyInvalid) as error:
            self._history.add("people", "refused", version, str(error)[:100])
            return None
        # It may have been begun by a controller that did not live to say so.
        for each in self._hall.ledger.rollouts(running=False):
            if each.id not in known:
                self.selectors[each.id] = selector
                self._history.add("people", "roll out", each.id, len(each.members), str(each.waves), selector)
        return rollout

    def order(self, rollout: Rollout, order: Order, actor: str = CREATOR, seconds: float = 0.0) -> None:
        self._history.add("people", order.value, rollout.id, actor)
        before = self._hall.ledger.rollout(rollout.id)
        try:
            self._hall.run(lambda fleet: fleet.order(rollout.id, order, actor, "by hand", seconds))
        except (OrderRefused, Conflict, NotFound) as error:
            self._history.add("people", "refused", str(error)[:100])
        else:
            if before is not None and self._hall.ledger.rollout(rollout.id) is not before:
                self._watch.ordered(before, order, actor)

    def meddle(self) -> None:
        """Do something that a person might do."""
        random, ledger = self._random, self._hall.ledger
        rollouts = ledger.rollouts(running=True) or ledger.rollouts(running=False)[:2]
        if not rollouts:
            return
        rollout = random.choice(rollouts)
        match rollout.state:
            case RolloutState.RUNNING | RolloutState.PAUSED:
                order = random.choices(
                    (Order.PAUSE, Order.RESUME, Order.SKIP, Order.RETRY, Order.EXTEND, Order.ABORT, Order.APPROVE),
                    (4, 2, 1, 4, 4, 1, 1),
                )[0]
                self.order(rollout, order, random.choice((CREATOR, SECOND)), seconds=random.uniform(60.0, 7200.0))
            case RolloutState.FINISHED if random.random() < 0.5:
                self.order(rollout, Order.ROLL_BACK)
            case _:
                if self.creates and random.random() < 0.3:
                    self._go_back(rollout.model)

    # ----------------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        now = self._timeline.now
        self._timeline.after(LOOK_S * self._random.uniform(0.5, 1.5), self._look)
        if self._hall.leader is None:
            return
        for rollout in list(self._hall.ledger.rollouts(running=True)):
            self._attend(rollout, now)
        if not self.creates:
            return
        for model in self._models:
            if now < self._next_at[model]:
                continue
            running = [each for each in self._hall.ledger.rollouts(running=True) if each.model == model]
            if running and self._random.random() < 0.8:
                continue  # Mostly one at a time.
            self._next_at[model] = now + self._random.uniform(0.5, 1.5) * self._scale.chaos_s / ROLLOUTS
            self._plan(model, running)
            if self._random.random() < 0.4:
                self._timeline.after(self._random.uniform(0.2, 8.0) * 3600.0, partial(self._plan_beside, model))

    def _plan_beside(self, model: ModelName) -> None:
        """Somebody else has plans with the same devices."""
        running = [each for each in self._hall.ledger.rollouts(running=True) if each.model == model]
        if running and self.creates and self._hall.leader is not None:
            self._plan(model, running)

    def _attend(self, rollout: Rollout, now: float) -> None:
        random = self._random
        if "waits for approval" in rollout.reason and random.random() < 0.5:
            self.order(rollout, Order.APPROVE, random.choice((CREATOR, SECOND, SECOND)))
        elif rollout.state is RolloutState.PAUSED and random.random() < 0.3:
            orders = (Order.SKIP, Order.ABORT) if rollout.pause is Pause.UNDECIDED else (Order.RESUME,)
            self.order(rollout, random.choice(orders))
        elif now - rollout.created_at > (LONGEST_S if self.creates else LAST_S) and rollout.state in (
            RolloutState.RUNNING,
            RolloutState.PAUSED,
        ):
            self.order(rollout, Order.ABORT)

    def _plan(self, model: ModelName, running: list[Rollout]) -> None:
        random = self._random
        ended = [each for each in self._hall.ledger.rollouts(running=False) if each.model == model]
        if not ended and not running:
            first = Policy(
                waves=("100%",),
                controls_per_device=0,
                success_required=0.0,
                failure_objective=0.2,
                deadline_s=6 * 3600.0,
            )
            self.roll_out(self.release(model, Harm()), first)
            return
        drawn = random.random()
        if drawn < 0.08 and not running:
            self._go_back(model)
            return
        aborted = [each.release for each in ended if each.state is RolloutState.ABORTED]
        once_more = aborted and drawn < 0.15
        release = random.choice(aborted) if once_more else self.release(model, make_harm(random))
        selector = make_selector(random)
        priority = max((each.policy.priority for each in running), default=0) + random.choice((0, 1, 1))
        self.roll_out(release, make_policy(random, self._scale, written(selector), priority), selector)

    def _go_back(self, model: ModelName) -> None:
        known = [each for each in self._hall.registry.releases() if each.model == model]
        release = self._random.choice(known)
        if self._random.random() < 0.5:
            self.roll_out(release, make_policy(self._random, self._scale, "", 9), "")
            return
        self._begin(lambda fleet: fleet.roll_back(model, release.version, CREATOR, "as it was"), release.version, "")


def make_harm(random: Random) -> Harm:
    if random.random() < 0.5:
        return Harm()
    kind = random.choice([kind for kind in Kind if kind is not Kind.GOOD])
    if random.random() < 0.3:
        return Harm(kind, 1.0, random.choice(CLASSES).device_class)
    return Harm(kind, random.choice((0.05, 0.2, 0.5, 1.0)))


def make_selector(random: Random) -> str:
    drawn = random.random()
    if drawn < 0.55:
        return ""
    if drawn < 0.8:
        return f"site={'|'.join(sorted(random.sample(SITES, random.choice((2, 4, 6)))))}"
    if drawn < 0.9:
        return f"ring={'|'.join(sorted(random.sample(RINGS, 2)))}"
    return f"site={'|'.join(sorted(random.sample(SITES, 6)))};ring={random.choice(RINGS)}"


def make_policy(random: Random, scale: Scale, selector: str, priority: int) -> Policy:
    """Draw a policy that suits the size of the fleet."""
    window_s = random.choice((120.0, 300.0, 600.0))
    trial = None
    if random.random() < 0.2:
        trial = Trial(
            mode=random.choice(("shadow", "canary")),
            share=0.5,
            requests_min=10,
            seconds_max=300.0,
            required=random.random() < 0.2,
            disagreement_max=0.05,
            latency_ratio_max=2.0,
        )
    is_deferred = random.random()
    maintenance: tuple[Maintenance, ...] = ()
    if is_deferred < 0.2:
        days, start, end = random.choice((("mon-sun", "22:00", "05:00"), ("mon-sun", "01:00", "04:00")))
        maintenance = (Maintenance(days=days, start=start, end=end),)
    consent = 0.1 < is_deferred < 0.3
    defer_s_max = 1.5 * DAY_S if maintenance or consent else 0.0
    is_ramp = random.random() < 0.5
    waves: tuple[int | str, ...] = random.choice(((5, "25%"), (20, "10%", "50%"), ("2%", "20%"), (10, "30%")))
    return Policy(
        selector=selector,
        priority=min(priority, 1000),
        late_joiners=random.choice(("last_wave", "afterwards", "afterwards", "never")),
        ramp=Ramp(first=random.choice((5, 10)), factor=random.choice((4.0, 8.0))) if is_ramp else None,
        **({} if is_ramp else {"waves": waves}),  # type: ignore[arg-type]
        rate=Rate(per_minute=max(2.0, scale.devices / 50), factor=1.5, every=max(20, scale.devices // 20))
        if random.random() < 0.5
        else None,
        concurrency=random.choice((None, None, "20%", "5%")),
        soak_s=random.choice((0.0, 0.0, 1800.0)),
        success_required=random.choice((0.6, 0.8, 0.8, 0.9)),
        abort_when=(Threshold(failures="40%", minimum=20),) if random.random() < 0.2 and scale.devices >= 1000 else (),
        on_abort=random.choices(("roll_back", "stop", "freeze"), (8, 1, 1))[0],
        failure_objective=random.choice((0.05, 0.1)),
        controls_per_device=random.choice((0, 1, 3, 10)),
        window_s=window_s,
        window_max_s=2 * window_s,
        requests_min=10,
        download_s=random.choice((None, None, 5400.0)),
        deadline_s=random.choice((2.0, 3.0)) * 3600.0,
        retries=random.choice((0, 0, 1, 2)),
        retry_wait_s=300.0,
        approvals=random.choice(
            ((), (), (), (Approval(before=2),), (Approval(before="finish", by=(SECOND,)),), (Approval(before="every"),))
        ),
        maintenance=maintenance,
        consent=consent,
        defer_s_max=defer_s_max,
        trial=trial,
    )
