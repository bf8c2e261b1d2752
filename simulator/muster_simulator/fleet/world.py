"""One fleet world: devices, a broker, controllers, people, chaos, and a seed that decides everything.

    chaos (faults, rollouts) ─▶ calm: it must settle ─▶ one good release of each model must reach everyone, whoever is
                             still held by an operator after that one is let go
                             ─▶ peace, until the days are over: nothing may change any more ─▶ end

Virtual time jumps from one thing that happens to the next. Nothing in it reads a real clock but `Ran.seconds`.
"""

import time
import traceback
from dataclasses import dataclass
from itertools import islice

from muster_controller.core.policy import Policy
from muster_controller.core.rollout.events import Order
from muster_controller.core.rollout.state import Outcome, Pause, RolloutState
from muster_shared.ids import DeviceId, ModelName, RolloutId
from muster_simulator.faults import Faults
from muster_simulator.fleet.broker import Broker
from muster_simulator.fleet.chaos import Chaos
from muster_simulator.fleet.controllers import Hall
from muster_simulator.fleet.device import FleetDevice, Ground
from muster_simulator.fleet.holds import HoldDesk, Wardens
from muster_simulator.fleet.ledger import FleetLedger
from muster_simulator.fleet.people import People
from muster_simulator.fleet.promises import (
    PROMISES,
    Converges,
    NeverSpins,
    NothingEscapes,
    RolloutsEnd,
    Scene,
)
from muster_simulator.fleet.registry import FleetRegistry
from muster_simulator.fleet.scale import DAY_S, FleetFaults, Scale
from muster_simulator.fleet.shape import nature
from muster_simulator.fleet.truth import Harm
from muster_simulator.fleet.watch import Watchers
from muster_simulator.invariants import InvariantBroken
from muster_simulator.stage import Stage

SETTLE_S = 3 * DAY_S
"""By then, after the last fault, everything that was under way has ended: deadlines, deferrals, gates, and retries."""
LOOK_S = 1800.0
TWIN_EVERY_S = 3600.0
AT_ONE_MOMENT_MAX = 100
"""Things that happen at one moment, for each device: far beyond what any world needs."""
STATED_MAX = 6
FINAL_POLICY = Policy(
    waves=(20, "20%"),
    success_required=0.5,
    failure_objective=0.2,
    controls_per_device=0,
    window_s=300.0,
    window_max_s=600.0,
    requests_min=5,
    deadline_s=6 * 3600.0,
    retries=2,
)


@dataclass(frozen=True)
class Ran:
    """What a run came to."""

    seed: int
    digest: str
    devices: int
    virtual_s: float
    seconds: float
    """Real ones, of this process."""
    messages: int
    rollouts: int
    finished: int
    aborted: int
    refused: int
    """Transactions of stale controllers."""
    broken: InvariantBroken | None = None

    @property
    def device_days_per_s(self) -> float:
        """Simulated devices times virtual days, per second of one core."""
        return self.devices * self.virtual_s / DAY_S / max(self.seconds, 1e-9)


class FleetWorld:
    """Build it and `run` it once."""

    def __init__(self, seed: int, scale: Scale, faults: FleetFaults, traced: frozenset[DeviceId] = frozenset()) -> None:
        self.seed = seed
        self.scale = scale
        self.faults = faults
        stage = Stage(seed, Faults.none())
        self.timeline, self.history = stage.timeline, stage.history
        self.watch = Watchers()
        self.broker = Broker(self.timeline, stage.random("broker"))
        self.registry = FleetRegistry(stage)
        self.ledger = FleetLedger(self.watch)
        self.desk = HoldDesk(self.watch)
        self.hall = Hall(
            seed,
            self.timeline,
            self.broker,
            self.registry,
            self.ledger,
            self.desk,
            self.watch,
            self.history,
            stage.random("controllers"),
            scale.tick_gap_s,
        )
        self.ground = Ground(
            self.timeline,
            self.broker,
            self.registry,
            self.watch,
            self.history,
            stage.random("devices"),
            FleetFaults.none(),
            traced,
        )
        drawn = stage.random("natures")
        names = [DeviceId(f"d{number:05d}") for number in range(scale.devices)]
        self.devices = {name: FleetDevice(self.ground, name, nature(drawn)) for name in names}
        self.broker.lines = dict(self.devices)
        self.models = (ModelName("digits"), ModelName("magika"))
        self.people = People(
            self.timeline, self.hall, self.watch, self.history, stage.random("people"), scale, self.models
        )
        self.wardens = Wardens(
            self.timeline,
            self.hall,
            self.desk,
            self.devices,
            self.history,
            stage.random("wardens"),
            scale,
            faults,
        )
        self.chaos = Chaos(
            self.timeline,
            self.broker,
            self.hall,
            self.ground,
            self.devices,
            self.people,
            self.history,
            stage.random("chaos"),
            scale,
            faults,
        )
        self.scene = Scene(
            self.devices,
            self.ledger,
            self.registry,
            self.people.selectors,
            self.hall.clock,
            lambda: self.timeline.now,
            fleets=lambda: len(self.hall.processes),
            retained=lambda device: self.hall.is_said and device in self.broker.retained.assignment,
        )
        for promise in PROMISES:
            self.watch.join(promise(self.scene))
        self._boots = stage.random("boots")
        self._moment, self._at_moment = 0.0, 0

    def run(self) -> Ran:
        broken: InvariantBroken | None = None
        began = time.process_time()
        try:
            self._run()
        except InvariantBroken as error:
            broken = error
        except Exception as error:  # Whatever the shipped code lets out is its defect, or the world's.
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            where = " < ".join(
                f"{frame.name} {frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames[::-1]
            )
            broken = InvariantBroken(NothingEscapes.name, f"{type(error).__name__}: {error} ({where})")
        rollouts = self.ledger.rollouts(running=False)
        return Ran(
            seed=self.seed,
            digest=f"{self.history.digest()[:16]}{self.broker.digest:08x}",
            devices=self.scale.devices,
            virtual_s=self.timeline.elapsed_s,
            seconds=time.process_time() - began,
            messages=self.broker.delivered,
            rollouts=len(rollouts),
            finished=sum(rollout.state is RolloutState.FINISHED for rollout in rollouts),
            aborted=sum(rollout.state is RolloutState.ABORTED for rollout in rollouts),
            refused=self.hall.refused,
            broken=broken,
        )

    # ----------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self.hall.start()
        for device in self.devices.values():
            late = self._boots.random() < self.faults.joins_late
            self.timeline.after(self._boots.uniform(0.0, self.scale.chaos_s if late else 300.0), device.boot)
        self.people.begin()
        self.chaos.begin()
        self.wardens.begin()
        self.timeline.after(TWIN_EVERY_S, self._look)
        self._pass(self.scale.chaos_s)

        self.history.add("world", "faults_stop")
        self.people.creates = False
        self.chaos.end()
        self.wardens.end()
        self._settle([])

        self.history.add("world", "settled")
        self.ground.is_peaceful = True
        final = [self._roll_out_to_all(model) for model in self.models]
        self._settle(final)
        if not self.wardens.is_idle:
            self.history.add("world", "lets_go")
            self.wardens.lift_all()
            self._until_nobody_is_held()
            self._settle(final)

        self.history.add("world", "rests")
        self._pass(self.scale.days * DAY_S - self.timeline.elapsed_s)
        if left := self._unsettled(final):
            raise InvariantBroken(Converges.name, "; ".join(left))
        self.watch.ended()
        self.history.add("world", "ends")

    def _look(self) -> None:
        """Let the hour pass. Devices tell their twins again; of whom the controller knows to be there that changes
        nothing, so only the others do."""
        self.timeline.after(TWIN_EVERY_S, self._look)
        for device in self.devices.values():
            if device.connection:
                row = self.ledger.device(device.id)
                is_unknown = row is None and device.id in self.wardens.held_ever
                if is_unknown or (row is not None and not row.online):
                    device.tell_again()
        self.watch.looked()

    def _pass(self, seconds: float) -> None:
        timeline, deliver = self.timeline, self.broker.deliver
        until = timeline.now + seconds
        most = AT_ONE_MOMENT_MAX * (len(self.devices) + 100)
        while True:
            if timeline.now != self._moment:
                self._moment, self._at_moment = timeline.now, 0
            self._at_moment += 1
            if self._at_moment > most:
                raise InvariantBroken(NeverSpins.name, f"{most} things at {timeline.elapsed_s:.3f} s")
            if not deliver() and not timeline.step(until):
                return

    def _until_nobody_is_held(self) -> None:
        until = self.timeline.now + SETTLE_S
        while not self.wardens.is_idle:
            if self.timeline.now >= until:
                raise InvariantBroken(Converges.name, f"{len(self.desk.all())} devices are held still")
            self._pass(LOOK_S)

    def _settle(self, final: list[RolloutId]) -> None:
        """Wait until nothing is under way; it must not take long."""
        until = self.timeline.now + SETTLE_S
        while why := self._unsettled(final):
            if self.timeline.now >= until:
                name = RolloutsEnd.name if why[0].startswith("rollout") else Converges.name
                raise InvariantBroken(name, "; ".join(why))
            self._pass(LOOK_S)
        for rollout in self.ledger.rollouts(running=False):
            if rollout.id in final and rollout.state is not RolloutState.FINISHED:
                said = f"{rollout.id}, which is good, ended as {rollout.state.value}: {rollout.reason}"
                raise InvariantBroken(Converges.name, said)

    def _roll_out_to_all(self, model: ModelName) -> RolloutId:
        release = self.people.release(model, Harm())
        for _ in range(10):
            rollout = self.people.roll_out(release, FINAL_POLICY)
            if rollout is not None:
                return rollout.id
            self._pass(60.0)
        raise InvariantBroken(Converges.name, f"a good release of {model} cannot be rolled out")

    def _unsettled(self, final: list[RolloutId]) -> list[str]:
        """Return the first few of what is still under way, or was not reached."""
        found: list[str] = []
        for rollout in self.ledger.rollouts(running=True):
            if rollout.state is RolloutState.PAUSED and rollout.id in final and rollout.pause is Pause.UNDECIDED:
                self.people.order(rollout, Order.SKIP)
            found.append(f"rollout {rollout.id} is {rollout.state.value}: {rollout.reason}")
        leader = self.hall.leader
        if leader is None or not leader.is_connected:
            found.append("no controller is there")
        if found:
            return found[:STATED_MAX]
        behind = (
            f"{device.id}: {problem}"
            for device in self.devices.values()
            if not device.is_dead and device.has_identity
            for problem in self._behind(device, bool(final))
        )
        return list(islice(behind, STATED_MAX))

    def _behind(self, device: FleetDevice, is_final: bool) -> list[str]:
        if not device.connection:
            return ["it is not there"]
        desired, row = self.ledger.desired(device.id), self.ledger.device(device.id)
        found: list[str] = []
        if device.outbox:
            found.append(f"{len(device.outbox)} events wait")
        if device.id in self.desk.ordered or device.id in self.desk.revoked:
            return found  # What it may be told `HeldStay` says, and it is let go later.
        if device.state.counter != desired.counter:
            found.append(f"it is at counter {device.state.counter}, not {desired.counter}")
        if row is None or not row.online:
            found.append("the controller takes it for offline")
        for name, wanted in sorted(desired.models.items()):
            model, release = device.state.models.get(name), wanted.assignment.release
            if model is None or model.update is not None:
                found.append(f"{name} is under way")
                continue
            runs_it = model.slots.active is not None and model.slots.active.bundle_sha256 == release.bundle_sha256
            has_said = (device.id, release.bundle_sha256) in self.scene.complaints
            if (device.id, release.bundle_sha256) in self.scene.faults:
                source = self.ledger.rollout(wanted.rollout)
                has_said |= source is not None and source.state is RolloutState.ABORTED
            if not runs_it and (is_final or not has_said):
                found.append(f"{name} is not {release.version}, and nothing says why")
        for name in self.models:
            target = self._decided(device, name)
            told = desired.models.get(name)
            if target is not None and (told is None or told.assignment.release.bundle_sha256 != target):
                found.append(f"the newest decision on {name} is not what it is told")
            if is_final and told is None:
                found.append(f"it was never given {name}")
        return found

    def _decided(self, device: FleetDevice, model: ModelName) -> str | None:
        """Return what the newest decision says that `device` should run, where that is plain: after the last rollout
        over everything, it is its release."""
        rollouts = [each for each in self.ledger.rollouts(running=False) if each.model == model]
        newest = max(rollouts, key=lambda each: (each.created_at, each.id), default=None)
        if newest is None or newest.state is not RolloutState.FINISHED or self.people.selectors.get(newest.id):
            return None
        member = newest.members.get(device.id)
        if member is not None and member.outcome is Outcome.LEFT and device.id not in self.wardens.held_ever:
            return None
        if member is None and newest.policy.late_joiners == "never":
            return None
        return newest.release.bundle_sha256
