"""A rollout and its fleet, told step by step: what the tests of the rollout machine speak in.

Every step is checked for what must hold at each: counts that are kept true, rows that are named, nothing mutated. Time
passes only when a test says so.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from random import Random

import msgspec

from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.policy import Policy
from muster_controller.core.rollout import machine, state
from muster_controller.core.rollout.events import (
    Advanced,
    Assign,
    DeviceChanged,
    DeviceFacts,
    DeviceJoined,
    DeviceLeft,
    Event,
    Order,
    Ordered,
    OutcomeArrived,
    Plot,
    SetBaseline,
    StepArrived,
    Tick,
)
from muster_controller.core.rollout.state import Control, Member, Outcome, Rollout, RolloutState
from muster_shared.bundle import digest
from muster_shared.ids import DeviceId, ModelName, RolloutId
from muster_shared.messages import Refusal, ReleaseRef, Step

START = 1_000_000.0
POLICY = Policy(waves=(2, 3), deadline_s=100.0, window_s=10.0, window_max_s=20.0, controls_per_device=1)


def release(number: int) -> ReleaseRef:
    return ReleaseRef(
        model=ModelName("digits"),
        version=f"{number}.0.0",
        release=number,
        bundle_sha256=digest(str(number).encode()),
        bundle_length=10,
    )


CHECKED_MAX = 100  # Counting everything again after every event takes as long as there are devices.
OLDER, OLD, NEW, OTHER = release(0), release(1), release(2), release(3)


def policy(**changes: object) -> Policy:
    """Return POLICY with `changes`."""
    return msgspec.structs.replace(POLICY, **changes)


def names(devices: int) -> list[DeviceId]:
    return [DeviceId(f"d{number:05}") for number in range(devices)]


@dataclass(frozen=True)
class Report:
    """What a device will say of an assignment, and how long after it."""

    after_s: float
    good: bool = True
    refusal: Refusal | None = None
    """Why its update failed before it switched; None: it switched."""


def obedient(assign: Assign) -> Report | None:
    """Switch, and do well."""
    return Report(10.0)


class Story:
    """`now` is the time; `online` and `active` are the fleet; `assigned` all that was ever told, in order."""

    def __init__(
        self,
        devices: int = 10,
        policy: Policy = POLICY,
        *,
        classes: int = 2,
        at_once: bool = False,
        previous: ReleaseRef | None = OLD,
        shuffle: Callable[[list[DeviceId]], None] = lambda devices: None,
    ) -> None:
        self.now = START
        self.online = set(names(devices))
        self.active: dict[DeviceId, ReleaseRef | None] = dict.fromkeys(names(devices), previous)
        self.assigned: list[Assign] = []
        self.assigned_at: list[float] = []
        self.baseline: ReleaseRef | None = None
        self.plots: list[Plot] = []
        self.ticks = 0
        self.rollout = machine.create(
            RolloutId("r1"),
            NEW,
            previous,
            policy,
            {device: ("nuc", "pi5", "x86")[int(device[1:]) % classes] for device in names(devices)},
            now=self.now,
            actor="ada",
            shuffle=shuffle,
            at_once=at_once,
        )

    # -- what happens ------------------------------------------------------------------------------------------------

    def tell(self, event: Event, after_s: float = 0.0) -> Advanced:
        """Let `event` happen. Raises OrderRefused."""
        self.now += after_s
        before = self.rollout
        result = machine.advance(before, event, self.now)
        if len(before.members) <= CHECKED_MAX:
            check_step(before, result)
        self.rollout = result.rollout
        for effect in result.effects:
            match effect:
                case Assign():
                    self.assigned.append(effect)
                    self.assigned_at.append(self.now)
                case SetBaseline(found):
                    self.baseline = found
                case Plot():
                    self.plots.append(effect)
        return result

    def tick(self, after_s: float = 0.0) -> Advanced:
        self.ticks += 1
        self.now += after_s
        return self.tell(Tick(self.facts()))

    def facts(self) -> Mapping[DeviceId, DeviceFacts]:
        return {device: DeviceFacts(device in self.online, self.active[device]) for device in sorted(self.active)}

    def order(self, order: Order, actor: str = "ada", seconds: float = 0.0) -> Advanced:
        return self.tell(Ordered(order, actor, "because", seconds))

    def report(
        self,
        device: DeviceId,
        good: bool,
        wave: int | None = None,
        *,
        latency: float | None = None,
        disagreed: bool | None = None,
    ) -> Advanced:
        number = self.rollout.wave if wave is None else wave
        return self.tell(OutcomeArrived(device, number, good, "as measured", latency, disagreed))

    def step(
        self, device: DeviceId, step: Step, refusal: Refusal | None = None, *, of: ReleaseRef = NEW, wait_s: float = 0.0
    ) -> Advanced:
        return self.tell(
            StepArrived(device, of.bundle_sha256, step, 5, 1.0, refusal=refusal, detail="so", wait_s=wait_s)
        )

    def fail(self, device: DeviceId, refusal: Refusal = Refusal.SELF_TEST_FAILED) -> None:
        """Its update fails before it switches."""
        wave = self.rollout.members[device].wave
        self.step(device, Step.FAILED, refusal)
        self.report(device, False, wave)

    def all_report(self, *, bad: int = 0) -> None:
        """Everyone in this wave who was told reports, `bad` of the treated badly; every control reports well."""
        for number, device in enumerate(self.treated()):
            self.report(device, number >= bad)
        for device in self.held():
            self.report(device, True)

    def go_on(self) -> None:
        """Let all do well until it neither runs nor goes on."""
        while self.rollout.state is RolloutState.RUNNING:
            before = (self.rollout.wave, self.rollout.released)
            self.all_report()
            self.tick(1.0)
            if (self.rollout.wave, self.rollout.released) == before and self.rollout.state is RolloutState.RUNNING:
                self.tick(1000.0)
                if (self.rollout.wave, self.rollout.released) == before:
                    return

    def leave(self, device: DeviceId, *, is_taken: bool = False) -> None:
        self.tell(DeviceLeft(device, "regrouped", is_taken))

    def join(self, device: str, device_class: str = "nuc") -> DeviceId:
        name = DeviceId(device)
        self.online.add(name)
        self.active.setdefault(name, OLD)
        self.tell(DeviceJoined(name, device_class))
        return name

    def runs(self, device: DeviceId, found: ReleaseRef) -> None:
        """The device says that it runs `found` now."""
        self.active[device] = found
        self.tell(DeviceChanged(device, DeviceFacts(device in self.online, found)))

    def play(
        self,
        until_s: float,
        answer: Callable[[Assign], Report | None] = obedient,
        *,
        every_s: float | None = None,
    ) -> None:
        """Let time pass for `until_s`, devices answering to what they are told; ticks come when they are due.

        It stops when the rollout has ended, or rests and awaits no device.


        Args:
            every_s: Tick every so many seconds instead.
        """
        end, seen, ordinals = self.now + until_s, 0, count()
        queue: list[tuple[float, int, Event]] = []
        ticks_at = self.now
        while self.now <= end and self.rollout.state not in state.ENDED:
            if self.rollout.state is RolloutState.PAUSED and not self.rollout.open and not queue:
                return
            for number, assign in enumerate(self.assigned[seen:], seen):
                for at, event in self._answers(assign, self.assigned_at[number], answer):
                    heapq.heappush(queue, (at, next(ordinals), event))
            seen = len(self.assigned)
            tick_at = self.rollout.due_at if every_s is None else ticks_at
            if queue and queue[0][0] <= max(tick_at, self.now):
                at, _, event = heapq.heappop(queue)
                self.now = max(self.now, at)
                if isinstance(event, DeviceChanged):
                    self.active[event.device] = event.facts.active
                self.tell(event)
                continue
            if tick_at > end:
                return
            self.now = max(self.now, tick_at)
            ticks_at = self.now + (every_s or 0.0)
            self.tick()

    def _answers(
        self, assign: Assign, at: float, answer: Callable[[Assign], Report | None]
    ) -> Iterable[tuple[float, Event]]:
        watch = assign.watch
        if watch is None:
            yield at + 1.0, DeviceChanged(assign.device, DeviceFacts(True, assign.release))
            return
        report = answer(assign)
        if report is None:
            return
        then = at + report.after_s
        if report.refusal is None:
            yield then, DeviceChanged(assign.device, DeviceFacts(True, assign.release))
        else:
            step = Step.FAILED
            yield then, StepArrived(assign.device, assign.release.bundle_sha256, step, 0, 1.0, refusal=report.refusal)
        yield then, OutcomeArrived(assign.device, watch.wave, report.good, "as measured")

    # -- what has become of it ---------------------------------------------------------------------------------------

    def treated(self, wave: int | None = None) -> list[DeviceId]:
        """Those of a wave that were told, in order."""
        number = self.rollout.wave if wave is None else wave
        return [member.device for member in state.touched(self.rollout) if member.wave == number]

    def held(self, wave: int | None = None) -> list[DeviceId]:
        """Those held back beside a wave, as long as they are watched."""
        number = self.rollout.wave if wave is None else wave
        return [
            device
            for (of, device), control in sorted(self.rollout.controls.items())
            if of == number and control.outcome is not Outcome.LEFT and control.assigned_at is not None
        ]

    def member(self, device: DeviceId) -> Member:
        return self.rollout.members[device]

    def said(self) -> list[VerdictKind]:
        return [verdict.kind for verdict in self.rollout.verdicts]

    def told(self, found: ReleaseRef = NEW) -> list[DeviceId]:
        """Who was ever told to run `found`, controls included, in the order of telling."""
        return [assign.device for assign in self.assigned if assign.release == found]

    def last_told(self) -> dict[DeviceId, ReleaseRef]:
        return {assign.device: assign.release for assign in self.assigned}


def reread(rollout: Rollout) -> Rollout:
    """Return `rollout` as it comes back from rows."""
    latency = {key: stratum.latency for key, stratum in rollout.strata.items() if stratum.latency}
    header = replace(
        rollout,
        members=type(rollout.members)(),
        controls=type(rollout.controls)(),
        strata={},
        open={},
        due={},
        failures={},
        queue=(),
        in_flight=-1,
        released=-1,
        settled=-1,
    )
    members: list[Member] = list(rollout.members.values())
    controls: list[Control] = list(rollout.controls.values())
    Random(1).shuffle(members)  # Rows come in any order.
    Random(2).shuffle(controls)
    return state.assembled(header, members, controls, latency)


def check_step(before: Rollout, result: Advanced) -> None:
    """Assert what must hold after every event: counts are true, and exactly those rows are named that differ."""
    after = result.rollout
    found = reread(after)
    for name in ("strata", "open", "due", "queue", "in_flight", "released", "settled", "failures"):
        assert getattr(after, name) == getattr(found, name), name
    members = {device for device in after.members if after.members[device] != before.members.get(device)}
    controls = {key for key in after.controls if after.controls[key] != before.controls.get(key)}
    assert result.changes.members == members
    assert result.changes.controls == controls
    assert set(before.members) <= set(after.members)
    assert set(before.controls) <= set(after.controls)
