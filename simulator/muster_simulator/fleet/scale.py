"""How large a fleet world is, and what goes wrong in it, and how often. Frozen: a run is a seed and these.

What hits one device has a rate per virtual day and device; what hits many at once, a number per run, however long that
is; chances are 0..1 for each occasion.
"""

from dataclasses import dataclass, replace

from muster_simulator.faults import FaultsName

DAY_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class Scale:
    devices: int = 10_000
    days: float = 30.0

    @property
    def chaos_s(self) -> float:
        """How long things go wrong; the rest is for everything to settle, and one last release to reach everyone."""
        return self.days * DAY_S * 0.9

    @property
    def tick_gap_s(self) -> float:
        """How often the controller may look at most. The real one looks four times a second; a large world cannot."""
        return min(20.0, max(2.0, self.devices / 500))


@dataclass(frozen=True, kw_only=True)
class FleetFaults:
    # The line, for each message.
    repeated: float = 0.0
    delayed: float = 0.0
    delay_s_max: float = 60.0
    lost: float = 0.0
    """QoS 1 is lost only with its connection: the connection breaks with it."""

    # Each device.
    disconnects: float = 0.0
    power_cuts: float = 0.0
    power_cut_at_commit: float = 0.0
    """The chance of each commit to be the last thing that a device does before it loses power."""
    off_s_max: float = 6 * 3600.0
    clock_jumps: float = 0.0
    clock_jump_s_max: float = 2 * DAY_S
    rots: float = 0.0
    """A file of a slot is damaged, which the next start finds."""
    moves: float = 0.0
    """Its labels change."""
    fetch_fails: float = 0.0
    dies: float = 0.0
    """The chance of each device to die for good."""
    joins_late: float = 0.0

    # Many at once.
    broker_restarts: float = 0.0
    broker_forgets: float = 0.5
    """Of its restarts, how many lose everything retained; half of the others bring back an old snapshot."""
    broker_down_s_max: float = 600.0
    partitions: float = 0.0
    """A share of the fleet has no line."""
    partition_s_max: float = 8 * 3600.0
    regroupings: float = 0.0
    """Many devices move to other groups at once."""
    leavings: float = 0.0
    """Devices that wait for their wave leave the group that the rollout is for."""
    site_outages: float = 0.0
    """All devices of one site lose power."""

    # The controller.
    controller_crashes: float = 0.0
    controller_off_s_max: float = 1800.0
    controller_clock_jumps: float = 0.0
    controller_clock_jump_s_max: float = 300.0
    controllers_twice: float = 0.0
    """Two controllers over one ledger, both of which believe to lead."""
    controllers_stale: float = 0.0
    """A controller that was stopped for a while goes on with what it knew then, while another has taken over."""

    # People.
    meddles: float = 0.0
    holds: float = 0.0
    """Operators pin, quarantine, decommission or revoke a device, and lift it again after minutes or days: so often for
    each device, ..."""
    holds_besides: float = 0.0
    """... and so often besides: a few devices would hardly ever be held."""

    @classmethod
    def none(cls) -> "FleetFaults":
        return cls()

    @classmethod
    def all(cls) -> "FleetFaults":
        return cls(
            repeated=0.02,
            delayed=0.02,
            lost=0.0005,
            disconnects=0.15,
            power_cuts=0.03,
            power_cut_at_commit=0.001,
            clock_jumps=0.01,
            rots=0.003,
            moves=0.004,
            regroupings=4.0,
            leavings=12.0,
            fetch_fails=0.003,
            dies=0.01,
            joins_late=0.08,
            broker_restarts=3.0,
            partitions=8.0,
            site_outages=4.0,
            controller_crashes=8.0,
            controller_clock_jumps=10.0,
            controllers_twice=2.0,
            controllers_stale=2.0,
            meddles=16.0,
            holds=0.003,
            holds_besides=30.0,
        )

    @classmethod
    def named(cls, name: FaultsName) -> "FleetFaults":
        match name:
            case "all":
                return cls.all()
            case "no-holds":
                return replace(cls.all(), holds=0.0, holds_besides=0.0)
            case "none":
                return cls.none()
