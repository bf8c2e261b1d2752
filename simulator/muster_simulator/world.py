"""One world: devices, a broker, a controller, an operator, an adversary, and a seed that decides everything.

    chaos (faults, rollouts) ─▶ calm: it must settle ─▶ one good release must reach everyone ─▶ end

It runs the shipped `Conductor`, `ContentStore`, `Fleet` and `Courier`. Nothing in it reads a real clock.
"""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from muster_agent.core.state import DeviceState
from muster_controller.core.policy import Policy
from muster_controller.core.rollout.state import ENDED, RolloutState
from muster_controller.fleet import ANNOUNCE_S
from muster_shared.ids import DeviceId, ModelName, RolloutId, Sha256
from muster_shared.messages import Event, FaultSeen, OutcomeReported, Step, StepReached
from muster_simulator.adversary import Adversary
from muster_simulator.chaos import Chaos
from muster_simulator.controller import SimulatedController
from muster_simulator.device import Nature, SimulatedDevice
from muster_simulator.faults import Faults
from muster_simulator.hardware import CLASSES
from muster_simulator.invariants import CONVERGES, ESCAPES, INVARIANTS, InvariantBroken, RolloutsEnd, Scene
from muster_simulator.observer import Observer
from muster_simulator.operator import Operator, hardware_classes
from muster_simulator.ports.broker import Broker
from muster_simulator.ports.lab import Truth
from muster_simulator.stage import Stage

SETTLE_S = 3600.0
"""By then, after the last fault, everything that was under way has ended."""
LOOK_S = 20.0
STEPS_MAX = 400_000
"""Far beyond what any world needs: whoever gets here spins."""

FINAL_POLICY = Policy(
    waves=(3, "50%"),
    success_required=0.8,
    failure_objective=0.1,
    window_s=15.0,
    window_max_s=30.0,
    requests_min=1,
    deadline_s=300.0,
)


@dataclass(frozen=True)
class Ran:
    """What a run came to."""

    seed: int
    digest: str
    steps: int
    virtual_s: float
    rollouts: int
    finished: int
    aborted: int
    broken: InvariantBroken | None = None


class World:
    """Build it and `run` it once."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.stage = Stage(seed, faults)
        random = self.stage.random("world")
        models = [ModelName("digits"), ModelName("magika")][: random.choice((1, 1, 2))]
        natures = _natures(random.randint(8, 14), random.choice((3, 4)), self.stage)
        self.truths: dict[Sha256, Truth] = {}
        self.broker = Broker(self.stage)
        self.controller = SimulatedController(self.stage, self.broker)
        registry = self.controller.registry
        keys = (registry.release_key, registry.online_key)
        self.devices = {
            nature.device: SimulatedDevice(self.stage, self.broker, nature, keys, self.truths) for nature in natures
        }
        self.models = models
        self.classes = hardware_classes(natures)
        self.operator = Operator(self.stage, self.controller, models, natures, self.truths)
        self.adversary = Adversary(
            self.stage, self.broker, registry, [nature.device for nature in natures], models, self.classes
        )
        self.chaos = Chaos(
            self.stage, self.broker, self.controller, list(self.devices.values()), self.operator, self.adversary
        )
        self.scene = Scene(
            self.stage, self.devices, self.controller, self.truths, {each: set() for each in self.devices}
        )
        self.complaints = _Complaints()
        self.stage.observers.join(_Rot(self.scene))
        self.stage.observers.join(self.complaints)
        for invariant in INVARIANTS:
            self.stage.observers.join(invariant(self.scene))

    def run(self) -> Ran:
        broken: InvariantBroken | None = None
        try:
            self._run()
        except InvariantBroken as error:
            broken = error
        except Exception as error:  # Whatever the shipped code lets out is its defect, or the world's.
            where = traceback.extract_tb(error.__traceback__)[-1]
            broken = InvariantBroken(
                ESCAPES, f"{type(error).__name__}: {error} ({where.name}, {where.filename}:{where.lineno})"
            )
        rollouts = self.controller.ledger.rollouts(running=False)
        return Ran(
            seed=self.stage.seed,
            digest=self.stage.history.digest(),
            steps=self.stage.timeline.steps,
            virtual_s=self.stage.timeline.elapsed_s,
            rollouts=len(rollouts),
            finished=sum(rollout.state is RolloutState.FINISHED for rollout in rollouts),
            aborted=sum(rollout.state is RolloutState.ABORTED for rollout in rollouts),
            broken=broken,
        )

    # ----------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        stage = self.stage
        random = stage.random("boots")
        self.controller.boot()
        for device in self.devices.values():
            late = random.random() < stage.faults.joins_late
            stage.timeline.after(random.uniform(0.0, stage.faults.chaos_s if late else 4.0), device.boot)
        self.operator.begin()
        self.chaos.begin()
        self._pass(stage.faults.chaos_s)

        stage.history.add("world", "faults_stop")
        self.operator.creates = False
        self.chaos.end()
        self._settle([])

        stage.history.add("world", "settled")
        self._pass(2 * ANNOUNCE_S)  # Whoever died unseen is missed by then: its will may have died with the broker.
        stage.is_peaceful = True
        final = [self._roll_out_to_all(model) for model in self.models]
        self._settle(final)
        stage.observers.ended()
        stage.history.add("world", "ends")

    def _pass(self, seconds: float) -> None:
        timeline = self.stage.timeline
        until = timeline.now + seconds
        while timeline.step(until):
            if timeline.steps > STEPS_MAX:
                raise InvariantBroken("I13-never-spins", f"{STEPS_MAX} steps in {timeline.elapsed_s:.0f} s")

    def _settle(self, final: list[RolloutId]) -> None:
        """Wait until nothing is under way; it must not take long."""
        until = self.stage.timeline.now + SETTLE_S
        while why := self._unsettled(final):
            if self.stage.timeline.now >= until:
                name = RolloutsEnd.name if "rollout" in why[0] else CONVERGES
                raise InvariantBroken(name, "; ".join(why[:4]))
            self._pass(LOOK_S)
        for rollout in self.controller.ledger.rollouts(running=False):
            if rollout.id in final and rollout.state is not RolloutState.FINISHED:
                raise InvariantBroken(
                    CONVERGES, f"{rollout.id}, which is good, ended as {rollout.state.value}: {rollout.reason}"
                )

    def _roll_out_to_all(self, model: ModelName) -> RolloutId:
        release = self.operator.release(model, Truth(), self.classes)
        rollout = self.operator.roll_out(release, FINAL_POLICY)
        if rollout is None:
            raise InvariantBroken(CONVERGES, f"a good release of {model} cannot be rolled out")
        return rollout.id

    def _unsettled(self, final: list[RolloutId]) -> list[str]:
        """Return what is still under way, or was not reached."""
        ledger = self.controller.ledger
        found = [
            f"rollout {rollout.id} is {rollout.state.value}: {rollout.reason}"
            for rollout in ledger.rollouts(running=True)
            if rollout.state not in ENDED
        ]
        if not self.controller.is_up or not self.broker.is_connected("controller"):
            found.append("the controller is not there")
        for device in self.devices.values():
            if not device.is_dead:
                found += [f"{device.id}: {problem}" for problem in self._behind(device, bool(final))]
        return found

    def _behind(self, device: SimulatedDevice, final: bool) -> list[str]:
        conductor, state = device.conductor, device.state
        if conductor is None or not self.broker.is_connected(device.id):
            return ["it is not there"]
        if state is None:
            return ["it was never given anything"] if final else []
        desired = self.controller.ledger.desired(device.id)
        row = self.controller.ledger.device(device.id)
        found: list[str] = []
        if len(device.journal):
            found.append(f"{len(device.journal)} events wait")
        if state.counter != desired.counter:
            found.append(f"it is at counter {state.counter}, not {desired.counter}")
        if row is None or not row.online:
            found.append("the controller takes it for offline")
        elif row.twin is None or row.twin.models != conductor.twin().models:
            found.append("the controller does not know how it is")
        for name, wanted in sorted(desired.models.items()):
            model = state.models.get(name)
            if model is None or model.update is not None:
                found.append(f"{name} is under way")
                continue
            release, active = wanted.assignment.release, model.slots.active
            bundle = release.bundle_sha256
            excused = not final and (device.id, bundle) in self.complaints.of
            if (active is None or active.bundle_sha256 != bundle) and not excused:
                found.append(f"{name} is not {release.version}, and nothing says why ({model.last_error})")
        if final:
            found += [f"it was never given {name}" for name in self.models if name not in desired.models]
        return found


class _Rot(Observer):
    """Keeps account of what rotted."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def rotted(self, device: DeviceId, sha256: Sha256) -> None:
        self._scene.rotten[device].add(sha256)


class _Complaints(Observer):
    """Keeps account of which device said of which release that it does not do."""

    def __init__(self) -> None:
        self.of: set[tuple[DeviceId, Sha256]] = set()

    def committed(
        self, device: DeviceId, before: DeviceState | None, after: DeviceState, events: Sequence[Event]
    ) -> None:
        for event in events:
            match event.body:
                case StepReached(step=Step.FAILED, release=release) | OutcomeReported(good=False, release=release):
                    self.of.add((device, release.bundle_sha256))
                case FaultSeen(model=name) if name is not None and before is not None and name in before.models:
                    active = before.models[name].slots.active
                    if active is not None:
                        self.of.add((device, active.bundle_sha256))
                case _:
                    pass


def _natures(count: int, classes: int, stage: Stage) -> list[Nature]:
    random = stage.random("natures")
    return [
        Nature(
            device=DeviceId(f"d{number:02d}"),
            hardware=CLASSES[number % classes],
            labels={"site": random.choice(("north", "south"))},
            requests_per_s=0.0 if random.random() < 0.1 else random.uniform(2.0, 8.0),
            later_share=random.choice((0.0, 0.0, 0.3)),
            utc_offset_s=random.choice((-5, 0, 2)) * 3600,
        )
        for number in range(count)
    ]
