"""One rehearsal of one rollout: the shipped machine under virtual time, until it finishes, aborts or pauses.

    heap of arrivals ─▶ machine.advance ─▶ assignments ─▶ devices ─▶ arrivals
            tick at rollout.due_at ──┘

Numbers come from the seed, the scenario's name and the run's number alone: any run can be repeated by itself.
"""

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil, inf
from random import Random

from muster_controller.core.gate.evidence import HOLD
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.policy import Policy, check, satisfiable, windows
from muster_controller.core.rollout import machine
from muster_controller.core.rollout.approvals import AT_THE_END, all_awaited
from muster_controller.core.rollout.events import Assign, DeviceChanged, Event, Order, Ordered, OrderRefused, Tick
from muster_controller.core.rollout.state import Rollout, RolloutState
from muster_shared.ids import DeviceId, ModelName, RolloutId, Sha256
from muster_shared.messages import ReleaseRef
from muster_simulator.rehearsal.device_model import Arrival, Devices, Later, Look
from muster_simulator.rehearsal.fleet_shape import Fleet, Kind
from muster_simulator.rehearsal.scenarios import RehearsalRefused, Scenario

START = 1_799_625_600.0  # A Monday, 00:00 UTC.
WEEK_S = 7 * 86400.0
HORIZON_S = 120 * 86400.0
TICK_S = 0.25  # As the controller, ...
TICKS_A_WINDOW = 50  # ... but no finer than this: every report is judged as it comes, only what waits for it waits on.
OPERATOR = "operator"


def _release(number: int) -> ReleaseRef:
    return ReleaseRef(
        model=ModelName("model"),
        version=f"{number}.0.0",
        release=number,
        bundle_sha256=Sha256(f"{number:064x}"),
        bundle_length=1000,
    )


OLD, NEW = _release(1), _release(2)


@dataclass(frozen=True)
class People:
    """What those do whom the rollout waits for."""

    approve_after_s: float = 0.0
    skip_pauses: bool = False
    """Let every wave pass that the gate could not decide; else a pause is where a run ends."""


@dataclass(frozen=True)
class Result:
    """What came of one run."""

    ended: str
    """finished, aborted, paused, or (after 120 virtual days) unfinished."""
    why: str
    """The metric that stopped it, an error condition, or what was lacking; empty when it finished."""
    seconds: float
    """Of virtual time."""
    exposed: int
    """Devices that were told to run the release."""
    harmed: int
    """Devices that the release served on and did harm to."""
    pauses: int
    """Waves that the gate could not decide."""
    waves: int
    unreached: int
    """Devices that were never told: offline, or not yet their turn."""
    advances: int
    """Events that the machine took."""


class Rehearsal:
    """A policy on a fleet, ready to be run many times.

    Args:
        look_s: How often the machine looks around when nothing is due. Here no clock is set back and nothing is lost,
            so it finds nothing then: the results are those of `machine.LOOK_S`, sooner.
    Raises:
        PolicyInvalid: the policy cannot be evaluated, or not be satisfied by this fleet.
        RehearsalRefused: the scenario names a class that the fleet does not have.
    """

    def __init__(
        self, policy: Policy, fleet: Fleet, seed: int, people: People = People(), look_s: float = HORIZON_S
    ) -> None:
        check(policy)
        self.notes = (*fleet.notes, *satisfiable(policy, fleet.devices, fleet.classes))
        self.policy = policy
        self.fleet = fleet
        self.seed = seed
        self._people = people
        self._look_s = look_s
        self._by_class = {
            name: [DeviceId(f"{number}-{place}") for place in range(len(fleet.kinds[name]))]
            for number, name in enumerate(fleet.classes)
        }
        self._unlike = [name for name, kinds in fleet.kinds.items() if len(set(kinds)) > 1]
        """Classes whose devices differ."""
        self._alike: dict[DeviceId, Kind] = {
            device: fleet.kinds[name][0]
            for name, ids in self._by_class.items()
            if name not in self._unlike
            for device in ids
        }
        self._rollout = machine.create(
            RolloutId("rehearsal"),
            NEW,
            OLD,
            policy,
            {device: name for name, ids in self._by_class.items() for device in ids},
            now=START,
            actor=OPERATOR,
            shuffle=Random(seed).shuffle,
        )

    def run(self, scenario: Scenario, number: int) -> Result:
        """Return what comes of run `number`."""
        harmed = scenario.harm.only_class
        if harmed is not None and harmed not in self._by_class:
            raise RehearsalRefused(
                f"the policy selects no device of class {harmed!r}; there are {', '.join(self._by_class)}"
            )
        random = Random(f"{self.seed}/{scenario.name}/{number}")
        start = START + (random.random() * WEEK_S if windows(self.policy) else 0.0)
        # The order of devices is drawn once; who they are is drawn anew each time, which comes to the same.
        kinds = self._alike
        for name in self._unlike:
            those = self.fleet.kinds[name]
            kinds = kinds | dict(zip(self._by_class[name], random.sample(those, len(those)), strict=True))
        devices = Devices(self.fleet, kinds, scenario, OLD, NEW, start, random)
        with _looking_every(self._look_s):
            return _Run(
                replace(self._rollout, created_at=start, paced_at=start),
                devices,
                scenario,
                start,
                self._people,
            ).to_its_end()


class _Run:
    def __init__(self, rollout: Rollout, devices: Devices, scenario: Scenario, start: float, people: People) -> None:
        self._rollout = rollout
        self._devices = devices
        self._scenario = scenario
        self._start = start
        self._now = start
        self._tick_s = max(TICK_S, rollout.policy.window_s / TICKS_A_WINDOW)
        self._people = people
        self._pauses = 0
        self._heap: list[tuple[float, int, Later]] = []
        self._asked = 0
        self._advances = 0
        self._approved: set[tuple[int, bool]] = set()
        """Waves, and whether it is the end, for which people were asked."""

    def to_its_end(self) -> Result:
        tick_at = self._start
        while self._rollout.state is RolloutState.RUNNING:
            is_arrival = bool(self._heap) and self._heap[0][0] < tick_at
            at = self._heap[0][0] if is_arrival else tick_at
            if at >= self._start + HORIZON_S:
                return self._result("unfinished", "no end in sight")
            self._now = self._devices.now = at
            if is_arrival:
                self._arrived(heapq.heappop(self._heap)[2])
                tick_at = self._tick_at(tick_at)
            else:
                self._advance(Tick(self._devices))
                self._around_a_tick()
                self._paused()
                tick_at = self._tick_at(inf)
        match self._rollout.state:
            case RolloutState.FINISHED:
                return self._result("finished", "")
            case RolloutState.PAUSED:
                return self._result("paused", self._undecided())
            case _:
                return self._result("aborted", self._cause())

    def _tick_at(self, before: float) -> float:
        """Return when to tick: as soon as the machine says that it is due, in whole steps, and after now."""
        ticks = (self._rollout.due_at - self._start) / self._tick_s
        now = (self._now - self._start) / self._tick_s
        return min(before, self._start + max(ceil(ticks), int(now) + 1) * self._tick_s)

    def _arrived(self, later: Later) -> None:
        match later:
            case Arrival(event=event):
                self._advance(event)
            case Look():
                self._push(self._devices.looks(later))

    def _advance(self, event: Event) -> None:
        self._advances += 1
        try:
            advanced = machine.advance(self._rollout, event, self._now)
        except OrderRefused:  # An approval that is not waited for any more.
            return
        self._rollout = advanced.rollout
        if self._scenario.is_shocked and not self._devices.is_shocked and self._rollout.wave >= 1:
            self._devices.is_shocked = True
        for effect in advanced.effects:
            if isinstance(effect, Assign) and effect.watch is not None:
                self._push(self._devices.told(effect.device, effect.release, effect.watch))

    def _around_a_tick(self) -> None:
        """Do what people and absent devices do: approve, and come back when nobody else is there."""
        rollout = self._rollout
        is_finish = rollout.reason.startswith(AT_THE_END)
        gate = rollout.wave, is_finish
        if rollout.policy.approvals and gate not in self._approved:
            found = list(all_awaited(rollout, is_finish=is_finish))
            if any(said == rollout.reason for _, said in found):
                self._approved.add(gate)
                names = [name for approval, _ in found for name in approval.by or _anybody(approval.count)]
                at = self._now + self._people.approve_after_s
                for name in dict.fromkeys(names):
                    self._push([Arrival(at, Ordered(Order.APPROVE, name, "rehearsed"))])
        if rollout.wave < 0 and not self._heap:
            back = self._devices.next_return()
            if back is not None:
                at, device = back
                self._devices.now = at
                self._push([Arrival(at, DeviceChanged(device, self._devices[device]))])
                self._devices.now = self._now

    def _paused(self) -> None:
        if self._rollout.state is RolloutState.PAUSED:
            self._pauses += 1
            if self._people.skip_pauses:
                self._advance(Ordered(Order.SKIP, OPERATOR, "rehearsed"))

    def _push(self, later: list[Later]) -> None:
        for each in later:
            if each.at < inf:
                self._asked += 1
                heapq.heappush(self._heap, (each.at, self._asked, each))

    def _result(self, ended: str, why: str) -> Result:
        rollout, devices, harm = self._rollout, self._devices, self._scenario.harm
        served = [device for device, at in devices.switched.items() if at <= self._now]
        harmed = {device for device in served if devices.broken.get(device)}
        if harm.fails == "self_test":
            harmed = {device for device, is_broken in devices.broken.items() if is_broken}
        if harm.slower > 0:
            harmed |= {device for device in served if self._scenario.hits(rollout.members[device].device_class)}
        return Result(
            ended=ended,
            why=why,
            seconds=self._now - self._start,
            exposed=rollout.released,
            harmed=len(harmed),
            pauses=self._pauses,
            waves=rollout.wave + 1,
            unreached=len(rollout.members) - rollout.released,
            advances=self._advances,
        )

    def _cause(self) -> str:
        """Return the metric with most evidence of an abort, or that it was an error condition of the policy."""
        verdict = self._rollout.verdicts[-1]
        if verdict.kind is not VerdictKind.ABORT or verdict.evidence.e < 1 / self._rollout.policy.alpha:
            return "error condition"
        metrics = verdict.evidence.metrics
        return max(sorted(metrics), key=lambda name: metrics[name].e)

    def _undecided(self) -> str:
        found = self._rollout.verdicts[-1].evidence
        return "undecided" if found.hold_e >= HOLD else "too few succeeded"


def _anybody(count: int) -> list[str]:
    return [f"approver-{number}" for number in range(count)]


@contextmanager
def _looking_every(seconds: float) -> Iterator[None]:
    usual = machine.LOOK_S
    machine.LOOK_S = seconds
    try:
        yield
    finally:
        machine.LOOK_S = usual
