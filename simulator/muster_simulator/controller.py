"""The controller: what lasts (ledger, registry), and a process that can be killed between any two of its calls.

It builds the shipped `Fleet`, with its `Courier`, from ports and feeds it; it decides nothing about rollouts.
"""

from collections.abc import Callable
from typing import TypeVar

from muster_controller.fleet import Fleet
from muster_shared.errors import WireError
from muster_shared.topics import Channel, DeviceTopic, Topic, build, controller_filters, parse
from muster_simulator.clock import SkewedClock
from muster_simulator.ports.broker import Broker, Client, Publish
from muster_simulator.ports.fuse import Fuse, SimulatedCrash, fused
from muster_simulator.ports.ledger import MemoryLedger
from muster_simulator.ports.registry import MemoryRegistry
from muster_simulator.stage import FLEET, Stage

TICK_S = 2.0
"""The real loop ticks eight times as often; nothing that is decided here needs it."""
T = TypeVar("T")


class SimulatedController:
    """The controller of one world."""

    def __init__(self, stage: Stage, broker: Broker) -> None:
        self.clock = SkewedClock(stage.timeline)
        self.ledger = MemoryLedger(stage.observers)
        self.registry = MemoryRegistry(stage)
        self.fuse = Fuse()
        self.fleet: Fleet | None = None
        self.client: Client | None = None
        self.boots = 0
        self._stage = stage
        self._broker = broker
        self._random = stage.random("controller")
        self._courier_at: float | None = None

    @property
    def is_up(self) -> bool:
        return self.fleet is not None

    def boot(self) -> None:
        if self.is_up:
            return
        self.boots += 1
        self._stage.history.add("controller", "boots", self.boots)
        self.fuse.left = None
        self.client = Client(
            self._stage,
            self._broker,
            "controller",
            controller_filters(FLEET),
            None,
            connected=self._connected,
            lost=lambda: None,
            received=self._received,
        )
        self.fleet = Fleet(
            FLEET,
            ledger=fused(self.ledger, self.fuse),
            registry=self.registry,
            wire=_ControllerWire(self.client, self.fuse, self._stage),
            clock=self.clock,
            random=self._stage.random(f"fleet/{self.boots}"),
            session=f"session{self.boots}",
        )
        self.client.open()
        self._tick(self.fleet)

    def crash(self, why: str) -> None:
        if not self.is_up:
            return
        off_s = self._random.uniform(0.5, self._stage.faults.controller_off_s_max)
        self._stage.history.add("controller", "dies", why, off_s)
        assert self.client is not None
        self.client.close(noticed_after_s=self._random.choice((0.05, 60.0)))
        self.fleet = self.client = None
        self.fuse.left = None
        self._courier_at = None
        self._stage.timeline.after(off_s, self.boot)

    def run(self, act: Callable[[Fleet], T]) -> T | None:
        """Let the process do one thing; None when it is down, or dies in it."""
        fleet = self.fleet
        if fleet is None:
            return None
        try:
            done = act(fleet)
        except SimulatedCrash:
            self.crash("between two calls")
            return None
        self._stage.observers.controller_stepped()
        self._wake_for_chunks(fleet)
        return done

    # ----------------------------------------------------------------------------------------------------------------

    def _connected(self) -> None:
        self._stage.history.add("controller", "connected")
        self.run(Fleet.connected)

    def _received(self, text: str, payload: bytes) -> None:
        try:
            topic = parse(FLEET, text)
        except WireError:
            return
        self.run(lambda fleet: fleet.received(topic, payload))

    def _tick(self, fleet: Fleet) -> None:
        if self.fleet is fleet:
            self.run(Fleet.tick)
            self._stage.timeline.after(TICK_S, lambda: self._tick(fleet))

    def _wake_for_chunks(self, fleet: Fleet) -> None:
        wake_at = fleet.courier.wake_at()
        if wake_at is None or self._courier_at is not None:
            return
        self._courier_at = max(self._stage.timeline.now + 0.01, wake_at - self.clock.offset_s)

        def deliver() -> None:
            if self.fleet is fleet:
                self._courier_at = None
                self.run(lambda fleet: fleet.courier.tick())

        self._stage.timeline.at(self._courier_at, deliver)


class _ControllerWire:
    """`ports.Wire` over the line."""

    def __init__(self, client: Client, fuse: Fuse, stage: Stage) -> None:
        self._client = client
        self._fuse = fuse
        self._observers = stage.observers

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None:
        self._fuse.burn()
        if isinstance(topic, DeviceTopic) and topic.channel is Channel.ASSIGNMENT:
            self._observers.published(topic.device, payload)
        self._client.publish(Publish(build(FLEET, topic), payload, qos, retain))
