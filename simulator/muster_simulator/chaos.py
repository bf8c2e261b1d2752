"""When what goes wrong: every fault of `Faults` that has a rate, as a Poisson process over the time of chaos."""

from collections.abc import Callable, Sequence
from random import Random

from muster_simulator.adversary import Adversary
from muster_simulator.controller import SimulatedController
from muster_simulator.device import SimulatedDevice
from muster_simulator.operator import Operator
from muster_simulator.ports.broker import Broker
from muster_simulator.stage import Stage

CALLS_MAX = 80
"""A lit fuse burns for at most so many calls: a whole update, from assignment to probation, makes about a hundred."""


class Chaos:
    """Schedules every fault of one world at its beginning; `end` undoes what lasts."""

    def __init__(
        self,
        stage: Stage,
        broker: Broker,
        controller: SimulatedController,
        devices: Sequence[SimulatedDevice],
        operator: Operator,
        adversary: Adversary,
    ) -> None:
        self._stage = stage
        self._broker = broker
        self._controller = controller
        self._devices = devices
        self._operator = operator
        self._adversary = adversary
        self._random = stage.random("chaos")

    def begin(self) -> None:
        faults = self._stage.faults
        self._often(faults.broker_restarts, self._restart_broker)
        self._often(6.0 if faults.broker_restarts else 0.0, self._broker.snapshot)
        self._often(faults.controller_crashes, self._crash_controller)
        self._often(faults.controller_clock_jumps, self._jump_controller)
        self._often(faults.adversary, self._adversary.act)
        self._often(faults.metadata_stale, self._freeze)
        self._often(faults.operator_meddles, self._operator.meddle)
        for device in self._devices:
            self._plague(device)

    def end(self) -> None:
        """Let everything recover: power, line, clocks, disks, metadata."""
        self._stage.weather = type(self._stage.faults).none()
        self._controller.clock.offset_s = 0.0
        self._controller.fuse.left = None
        self._controller.registry.thaw()
        for device in self._devices:
            device.set_clock(0.0)
            device.fuse.left = None
            device.disk.full = device.disk.read_only = device.journal.failing = False
            device.boot()

    # ----------------------------------------------------------------------------------------------------------------

    def _plague(self, device: SimulatedDevice) -> None:
        faults = self._stage.faults
        self._often(faults.disconnects, lambda: self._disconnect(device))
        self._often(faults.partitions, lambda: self._partition(device))
        self._often(faults.device_crashes, lambda: self._crash(device))
        self._often(faults.clock_jumps, lambda: self._jump(device))
        self._often(faults.bit_rot, lambda: self._rot(device))
        self._often(faults.disk_full, lambda: self._refuse(device, "full"))
        self._often(faults.disk_read_only, lambda: self._refuse(device, "read_only"))
        self._often(faults.journal_failing, lambda: self._refuse(device, "journal"))
        if self._random.random() < faults.device_dies:
            self._stage.timeline.after(self._random.uniform(0, faults.chaos_s), lambda: self._kill(device))

    def _often(self, per_hour: float, act: Callable[[], None]) -> None:
        if per_hour <= 0:
            return
        moment = self._random.expovariate(per_hour / 3600)
        while moment < self._stage.faults.chaos_s:
            self._stage.timeline.after(moment, act)
            moment += self._random.expovariate(per_hour / 3600)

    def _lasting(self, low_s: float, high_s: float) -> float:
        """Return how long something lasts: not beyond the chaos."""
        left_s = self._stage.faults.chaos_s - self._stage.timeline.elapsed_s
        return min(self._random.uniform(low_s, high_s), max(left_s, 0.0))

    def _restart_broker(self) -> None:
        faults = self._stage.faults
        self._broker.restart(self._lasting(0.5, faults.broker_down_s_max), faults.broker_forgets)

    def _crash_controller(self) -> None:
        if self._random.random() < 0.8:
            self._controller.fuse.light(self._random.randrange(CALLS_MAX))
        else:
            self._controller.crash("idle")

    def _jump_controller(self) -> None:
        most = self._stage.faults.controller_clock_jump_s_max
        self._controller.clock.offset_s = self._random.uniform(-most, most)
        self._stage.history.add("controller", "clock", self._controller.clock.offset_s)

    def _freeze(self) -> None:
        registry = self._controller.registry
        if not registry.frozen:
            self._stage.history.add("registry", "freezes")
            registry.freeze(self._random.uniform(5.0, 120.0))
            self._stage.timeline.after(self._lasting(30.0, 400.0), registry.thaw)

    def _disconnect(self, device: SimulatedDevice) -> None:
        if device.client is not None:
            device.client.broke("line cut")

    def _partition(self, device: SimulatedDevice) -> None:
        seconds = self._lasting(1.0, self._stage.faults.partition_s_max)
        if device.client is not None:
            self._stage.history.add(device.id, "partitioned", seconds)
            device.client.stall(seconds)

    def _crash(self, device: SimulatedDevice) -> None:
        if self._random.random() < 0.75:
            device.fuse.light(self._random.randrange(CALLS_MAX))
        else:
            power = self._random.random() < self._stage.faults.power_lost
            device.crash("idle", self._lasting(1.0, self._stage.faults.device_off_s_max), power=power)

    def _kill(self, device: SimulatedDevice) -> None:
        device.is_dead = True
        device.crash("for good", None, power=True)

    def _jump(self, device: SimulatedDevice) -> None:
        most = self._stage.faults.clock_jump_s_max
        device.set_clock(_sometimes_small(self._random, most))
        if self._random.random() < 0.6:
            self._stage.timeline.after(self._lasting(5.0, 600.0), lambda: device.set_clock(0.0))

    def _rot(self, device: SimulatedDevice) -> None:
        paths = device.disk.paths()
        if paths:
            path = self._random.choice(paths)
            self._stage.history.add(device.id, "bit_rot", path[:14])
            device.rot(path, self._random)

    def _refuse(self, device: SimulatedDevice, what: str) -> None:
        self._stage.history.add(device.id, "refuses", what)

        def set_to(value: bool) -> None:
            match what:
                case "full":
                    device.disk.full = value
                case "read_only":
                    device.disk.read_only = value
                case _:
                    device.journal.failing = value

        set_to(True)
        self._stage.timeline.after(self._lasting(5.0, 120.0), lambda: set_to(False))


def _sometimes_small(random: Random, most: float) -> float:
    """Minutes as often as days, either way."""
    return random.uniform(-most, most) if random.random() < 0.5 else random.uniform(-600.0, 600.0)
