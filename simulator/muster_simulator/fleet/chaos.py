"""When what goes wrong in a fleet world: Poisson processes over the time of chaos, and what undoes them."""

from collections.abc import Callable
from random import Random

from muster_controller.core.rollout.state import Outcome
from muster_shared.ids import DeviceId
from muster_simulator.clock import Timeline
from muster_simulator.fleet.broker import Broker
from muster_simulator.fleet.controllers import Hall
from muster_simulator.fleet.device import FleetDevice, Ground
from muster_simulator.fleet.people import People
from muster_simulator.fleet.scale import DAY_S, FleetFaults, Scale
from muster_simulator.fleet.shape import SITES, is_named, moved
from muster_simulator.history import History

CALLS_MAX = 20_000
"""A lit fuse burns for at most so many calls: a look at a wave of a large fleet makes as many."""


class Chaos:
    """Schedules what goes wrong as time passes; `end` undoes what lasts."""

    def __init__(
        self,
        timeline: Timeline,
        broker: Broker,
        hall: Hall,
        ground: Ground,
        devices: dict[DeviceId, FleetDevice],
        people: People,
        history: History,
        random: Random,
        scale: Scale,
        faults: FleetFaults,
    ) -> None:
        self._timeline = timeline
        self._broker = broker
        self._hall = hall
        self._ground = ground
        self._devices = list(devices.values())
        self._people = people
        self._history = history
        self._random = random
        self._scale = scale
        self._faults = faults
        self._is_over = False
        self._ends_at = timeline.now + scale.chaos_s

    def begin(self) -> None:
        faults, fleet = self._faults, len(self._devices)
        days = self._scale.chaos_s / DAY_S
        self._ground.weather = self._broker.weather = faults
        self._hall.off_s_max = faults.controller_off_s_max
        self._often(faults.disconnects * fleet, lambda: self._some().lose_line())
        self._often(faults.power_cuts * fleet, lambda: self._some().lose_power(self._drawn(5.0, faults.off_s_max)))
        self._often(faults.clock_jumps * fleet, self._jump_device)
        self._often(faults.rots * fleet, lambda: self._some().rot(self._random))
        self._often(faults.moves * fleet, self._move)
        self._often(faults.broker_restarts / days, self._restart_broker)
        self._often(10.0 / days if faults.broker_restarts else 0.0, self._broker.snapshot)
        self._often(faults.partitions / days, self._partition)
        self._often(faults.regroupings / days, self._regroup)
        self._often(faults.leavings / days, self._leave)
        self._often(faults.site_outages / days, self._darken)
        self._often(faults.controller_crashes / days, self._crash)
        self._often(faults.controller_clock_jumps / days, self._jump_controller)
        self._often(faults.controllers_twice / days, self._start_second)
        self._often(faults.controllers_stale / days, self._stop_and_replace)
        self._often(faults.meddles / days, self._meddle)
        for device in self._devices:
            if self._random.random() < faults.dies:
                self._timeline.after(self._random.uniform(0.0, self._scale.chaos_s), device.die)

    def end(self) -> None:
        """Let everything recover: power, lines, clocks, controllers."""
        self._is_over = self._ground.is_calm = True
        self._ground.weather = self._broker.weather = FleetFaults.none()
        for process in self._hall.processes[1:]:
            process.end("faults are over")
        for process in list(self._hall.processes):
            process.fuse.left = None
            if process.is_stopped:
                process.end("faults are over")
        self._hall.off_s_max = 6.0
        self._hall.set_clock(0.0)
        for device in self._devices:
            device.is_cut_off = False
            device.set_clock(0.0)
            device.boot()
            device.connect()

    # ----------------------------------------------------------------------------------------------------------------

    def _often(self, per_day: float, act: Callable[[], None]) -> None:
        if per_day <= 0:
            return

        def happen() -> None:
            if not self._is_over:
                act()
                self._timeline.after(self._random.expovariate(per_day / DAY_S), happen)

        self._timeline.after(self._random.expovariate(per_day / DAY_S), happen)

    def _some(self) -> FleetDevice:
        return self._random.choice(self._devices)

    def _drawn(self, low_s: float, high_s: float) -> float:
        """Draw how long something lasts: mostly short, and not beyond the chaos."""
        drawn: float = low_s * (high_s / low_s) ** self._random.random()
        return min(drawn, max(1.0, self._ends_at - self._timeline.now))

    def _jump_device(self) -> None:
        device, most = self._some(), self._faults.clock_jump_s_max
        small = self._random.random() < 0.5
        device.set_clock(self._random.uniform(-600.0, 600.0) if small else self._random.uniform(-most, most))
        if self._random.random() < 0.7:
            self._timeline.after(self._drawn(60.0, DAY_S), lambda: device.set_clock(0.0))

    def _move(self) -> None:
        device = self._some()
        device.relabel(moved(self._random, device.nature.labels))

    def _regroup(self) -> None:
        site, share = self._random.choice(SITES), self._random.uniform(0.2, 1.0)
        for device in self._devices:
            if device.nature.labels.get("site") == site and self._random.random() < share:
                device.relabel(moved(self._random, device.nature.labels))

    def _leave(self) -> None:
        """Some that wait in a rollout leave its group, where there is such a rollout; else later, when there may be."""
        if self._is_over:
            return
        waiting = {
            member.device: selector
            for rollout in self._hall.ledger.rollouts(running=True)
            if (selector := self._people.selectors.get(rollout.id, ""))
            for member in rollout.members.values()
            if not member.is_touched and member.outcome is Outcome.PENDING
        }
        if not waiting:
            self._timeline.after(self._random.uniform(0.01, 0.05) * self._scale.chaos_s, self._leave)
            return
        share = self._random.uniform(0.05, 0.3)
        for device in self._devices:
            group = waiting.get(device.id)
            if group is not None and self._random.random() < share:
                labels = device.nature.labels
                while is_named(group, labels):
                    labels = moved(self._random, labels)
                device.relabel(labels)

    def _restart_broker(self) -> None:
        if not self._broker.is_up:
            return
        forgets = self._random.random() < self._faults.broker_forgets
        seconds = self._drawn(1.0, self._faults.broker_down_s_max)
        self._history.add("broker", "falls", forgets, seconds)
        self._broker.fall(forgets=forgets)
        self._timeline.after(seconds, self._raise_broker)

    def _raise_broker(self) -> None:
        self._history.add("broker", "rises")
        self._broker.rise()
        for device in self._devices:
            self._timeline.after(self._random.uniform(0.0, 20.0), device.connect)  # All at once, as they do.
        for process in self._hall.processes:
            self._timeline.after(self._random.uniform(0.0, 20.0), process.connect)

    def _partition(self) -> None:
        share = self._random.choice((0.02, 0.1, 0.1, 0.4))
        some = [device for device in self._devices if self._random.random() < share]
        seconds = self._drawn(30.0, self._faults.partition_s_max)
        self._history.add("line", "cut", len(some), seconds)
        for device in some:
            device.is_cut_off = True
            device.lose_line()

        def mend() -> None:
            self._history.add("line", "mended", len(some))
            for device in some:
                device.is_cut_off = False
                self._timeline.after(self._random.uniform(0.0, 30.0), device.connect)

        self._timeline.after(seconds, mend)

    def _darken(self) -> None:
        site = self._random.choice(SITES)
        seconds = self._drawn(60.0, self._faults.off_s_max)
        self._history.add("site", "dark", site, seconds)
        for device in self._devices:
            if device.nature.labels.get("site") == site:
                device.lose_power(seconds + self._random.uniform(0.0, 60.0))

    def _meddle(self) -> None:
        if self._is_over:
            return
        if not self._hall.ledger.rollouts(running=True) and self._random.random() < 0.7:
            self._timeline.after(self._random.uniform(0.01, 0.05) * self._scale.chaos_s, self._meddle)
        else:
            self._people.meddle()

    def _crash(self) -> None:
        process = self._hall.leader
        if process is None or self._is_over:
            return
        if not self._hall.ledger.rollouts(running=True) and self._random.random() < 0.8:
            self._timeline.after(self._random.uniform(0.01, 0.05) * self._scale.chaos_s, self._crash)  # Where it hurts.
        elif self._random.random() < 0.8:
            # As often within one message as within a look at ten thousand devices.
            process.fuse.light(int(CALLS_MAX ** self._random.random()))
        else:
            process.end("idle")

    def _jump_controller(self) -> None:
        most = self._faults.controller_clock_jump_s_max
        self._hall.set_clock(self._random.uniform(-most, most))

    def _start_second(self) -> None:
        """The lease fails: two lead, for a while."""
        if len(self._hall.processes) != 1:
            return
        self._hall.start()

        def end() -> None:
            if len(self._hall.processes) > 1:
                self._random.choice(self._hall.processes).end("it does not lead")

        self._timeline.after(self._drawn(60.0, 4 * 3600.0), end)

    def _stop_and_replace(self) -> None:
        if len(self._hall.processes) != 1 or self._hall.leader is None:
            return
        old = self._hall.leader
        self._history.add("controller", "stops", old.number)
        old.stop()
        self._timeline.after(30.0, self._start_another)

        def wake() -> None:
            if old.is_up:
                self._history.add("controller", "goes on", old.number)
                old.wake()

        self._timeline.after(30.0 + self._drawn(60.0, 6 * 3600.0), wake)

    def _start_another(self) -> None:
        self._hall.start()
