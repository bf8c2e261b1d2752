"""The controllers of a fleet world: one as a rule, two now and then, over one ledger; each may be killed at any call.

They build the shipped `Fleet` from ports and feed it; they decide nothing about rollouts. Nothing polls: a process
looks when its fleet says that something is due.
"""

from collections.abc import Callable
from random import Random
from typing import TypeVar

from muster_controller.db.errors import LedgerMoved
from muster_controller.fleet import Fleet
from muster_controller.holds import Holds
from muster_controller.ports import Ledger
from muster_shared.topics import Channel, ControllerTopic, DeviceTopic, Topic
from muster_simulator.clock import SkewedClock, Timeline
from muster_simulator.fleet.broker import Broker
from muster_simulator.fleet.holds import HoldDesk
from muster_simulator.fleet.ledger import FleetLedger
from muster_simulator.fleet.registry import FleetRegistry
from muster_simulator.fleet.watch import Watcher
from muster_simulator.history import History
from muster_simulator.ports.fuse import Fuse, SimulatedCrash, fused
from muster_simulator.stage import FLEET

T = TypeVar("T")
CONNECT_S = 2.0
HOLDS_S = 5.0
"""How often a controller looks for holds that another one was told of."""


class Process:
    """One controller."""

    def __init__(self, hall: "Hall", number: int, ledger: Ledger) -> None:
        self.number = number
        self.is_up = True
        self.is_connected = False
        self.said_at = float("inf")
        """When it said everything again, because it was connected."""
        self.is_stopped = False
        """It does nothing for now; whoever started it does not know."""
        self.fuse = Fuse()
        self.ledger = ledger
        self.holds = Holds(hall.desk.all)
        self.holds.refresh()
        self.fleet = Fleet(
            FLEET,
            ledger=_burning(ledger, self.fuse),
            registry=hall.registry,
            wire=_Wire(self, hall),
            clock=hall.clock,
            random=Random(f"{hall.seed}/process/{number}"),
            session=f"session{number}",
            holds=self.holds,
            gone=self.holds.gone,
        )
        self._hall = hall
        self._tick_at: float | None = None
        hall.broker.stations.append(self)

    def connect(self) -> None:
        if not self.is_up or self.is_stopped or self.is_connected or not self._hall.broker.is_up:
            return
        self.is_connected = True
        self.said_at = self._hall.timeline.now
        self.run(Fleet.connected)
        if self.is_connected:
            self._hall.broker.enter(self)

    def lose_line(self) -> None:
        if self.is_connected:
            self.is_connected = False
            self._hall.timeline.after(self._hall.random.uniform(1.0, 20.0), self.connect)

    def take(self, topic: DeviceTopic, payload: bytes) -> None:
        if self.is_up and not self.is_stopped:
            self.run(lambda fleet: fleet.received(topic, payload))

    def run(self, act: Callable[[Fleet], T]) -> T | None:
        """Let the process do one thing; None when it is down, or dies in it."""
        if not self.is_up:
            return None
        try:
            done = act(self.fleet)
            self._sleep()
        except SimulatedCrash:
            self.end("between two calls")
            return None
        except LedgerMoved:
            self._hall.refused += 1
            self.end("refused: the ledger has moved")
            return None
        return done

    def end(self, why: str) -> None:
        """The process is gone; another is started in its place unless there is one."""
        self.is_up = self.is_connected = False
        self._hall.ended(self, why)

    def stop(self) -> None:
        """Hold it where it is, as a machine does that is moved or starved; `wake` lets it go on."""
        self.is_stopped = True
        assert isinstance(self.ledger, FleetLedger)
        frozen = self.ledger.freeze()
        self.ledger = frozen
        past = _burning(frozen, self.fuse)
        self.fleet._engine.ledger = past

    def wake(self) -> None:
        self.is_stopped = False
        self._hall.muddled_at = self._hall.timeline.now
        if self.is_connected:
            self.run(Fleet.connected)
        else:
            self.connect()
        self.run(Fleet.tick)
        self.follow_holds()

    def follow_holds(self) -> None:
        """Do what follows from holds that were set or lifted since it looked last."""
        if not self.is_up or self.is_stopped:
            return
        changed = self.holds.refresh()
        if not changed:
            return
        self._hall.watch.reads(changed)

        def follow(fleet: Fleet) -> None:
            fleet.held(changed)
            self.holds.took(changed)

        self.run(follow)
        if self.is_up:
            self._hall.watch.followed(changed)

    def tick(self) -> None:
        self._tick_at = None
        if self.is_up and not self.is_stopped:
            self.run(Fleet.tick)

    def _sleep(self) -> None:
        """Look again when the fleet says that something is due, but not all the time."""
        if self.is_stopped or not self.is_up:
            return
        hall = self._hall
        soonest = hall.timeline.now + hall.tick_gap_s
        if self._tick_at is not None and self._tick_at <= soonest:
            return
        moment = max(soonest, self.fleet.wake_at() - hall.clock.offset_s)
        if self._tick_at is not None and self._tick_at <= moment:
            return
        self._tick_at = moment

        def due() -> None:
            if self._tick_at == moment:
                self.tick()

        hall.timeline.at(moment, due)

    def clock_set(self) -> None:
        self._tick_at = None
        self.tick()


class Hall:
    """What the controllers of a world share, and who of them is there."""

    def __init__(
        self,
        seed: int,
        timeline: Timeline,
        broker: Broker,
        registry: FleetRegistry,
        ledger: FleetLedger,
        desk: HoldDesk,
        watch: Watcher,
        history: History,
        random: Random,
        tick_gap_s: float,
    ) -> None:
        self.seed = seed
        self.timeline = timeline
        self.broker = broker
        self.registry = registry
        self.ledger = ledger
        self.desk = desk
        self.watch = watch
        self.history = history
        self.random = random
        self.tick_gap_s = tick_gap_s
        self.clock = SkewedClock(timeline)
        self.processes: list[Process] = []
        self.refused = 0
        """Transactions of controllers that took the past for the present."""
        self.muddled_at = float("-inf")
        """When one that was stopped went on, and said what was true before."""
        self.off_s_max = 1800.0
        self._started = 0

    @property
    def leader(self) -> Process | None:
        return next((each for each in self.processes if not each.is_stopped), None)

    def start(self) -> Process:
        self._started += 1
        process = Process(self, self._started, self.ledger)
        self.history.add("controller", "starts", self._started)
        self.processes.append(process)
        self.watch.unsteady()
        self.timeline.after(CONNECT_S, process.connect)
        process.tick()
        if self.desk.all():
            self.timeline.after(HOLDS_S, process.follow_holds)
        return process

    @property
    def is_there(self) -> bool:
        """Whether any of them takes orders."""
        return self.leader is not None

    @property
    def is_said(self) -> bool:
        """Whether the broker has been told everything that is retained, since it or a controller forgot any of it."""
        leader = self.leader
        return leader is not None and leader.is_connected and leader.said_at > self.muddled_at

    def follow_holds(self) -> None:
        """Have the controllers read the holds again: the leading one at once, any other in a while."""
        leader = self.leader
        for process in list(self.processes):
            if process is leader:
                process.follow_holds()
            else:
                self.timeline.after(HOLDS_S, process.follow_holds)

    def run(self, act: Callable[[Fleet], T]) -> T | None:
        """Let whoever leads do something; None when nobody does."""
        leader = self.leader
        return None if leader is None else leader.run(act)

    def ended(self, process: Process, why: str) -> None:
        self.history.add("controller", "ends", process.number, why)
        self.processes.remove(process)
        self.broker.stations.remove(process)
        if not self.processes:
            self.timeline.after(self.random.uniform(5.0, self.off_s_max), self._start_again)

    def _start_again(self) -> None:
        if not self.processes:
            self.start()

    def set_clock(self, offset_s: float) -> None:
        self.history.add("controller", "clock", offset_s)
        self.clock.offset_s = offset_s
        self.watch.unsteady()
        for process in list(self.processes):
            process.clock_set()


READS = (
    "device",
    "devices",
    "desired",
    "all_desired",
    "rollout",
    "rollouts",
    "points",
    "baselines",
    "baseline_models",
    "has_event",
)


def _burning(ledger: Ledger, fuse: Fuse) -> Ledger:
    """Return `ledger`, each write of which burns `fuse`. To die before a read is to die before the next write."""
    burning = fused(ledger, fuse)
    for name in READS:
        burning.__dict__[name] = getattr(ledger, name)
    return burning


class _Wire:
    """`ports.Wire`. What is said without a connection is lost; `connected` says it again."""

    def __init__(self, process: Process, hall: Hall) -> None:
        self._process = process
        self._broker = hall.broker
        self._watch = hall.watch

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None:
        self._process.fuse.burn()
        if not self._process.is_connected:
            return
        match topic:
            case DeviceTopic(device, Channel.ASSIGNMENT):
                if payload:
                    self._watch.published(device, payload)
                self._broker.assign(device, payload)
            case DeviceTopic(device, Channel.ACK):
                self._broker.acknowledge(device, payload)
            case ControllerTopic():
                self._broker.announce(payload)
            case _:
                pass
