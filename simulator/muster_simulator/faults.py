"""What goes wrong in a world, and how often. Frozen: a run is a seed and one of these, nothing else.

Rates are per virtual hour (and per device, where devices fail), chances are 0..1 for each occasion.
"""

from dataclasses import dataclass
from typing import Literal

FaultsName = Literal["all", "no-holds", "none"]
"""`no-holds`: everything but operators that keep devices out of rollouts; a seed is then what it was before there were
such."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    chaos_s: float = 1800.0
    """How long things go wrong; afterwards the world must converge."""

    # The line. QoS 1 is lost only with its connection; order holds within a topic, as MQTT promises.
    qos0_lost: float = 0.0
    repeated: float = 0.0
    delayed: float = 0.0
    delay_s_max: float = 8.0
    reordered: float = 0.0
    disconnects: float = 0.0
    partitions: float = 0.0
    partition_s_max: float = 90.0

    # The broker.
    broker_restarts: float = 0.0
    broker_forgets: float = 0.5
    """Of its restarts, how many lose everything retained; half of the others come back with an old snapshot."""
    broker_down_s_max: float = 60.0

    # Processes and power.
    device_crashes: float = 0.0
    """In the middle of some port call, or idle."""
    power_lost: float = 0.6
    """Of those, how many take the page cache with them."""
    device_off_s_max: float = 240.0
    controller_crashes: float = 0.0
    controller_off_s_max: float = 90.0
    device_dies: float = 0.0
    """The chance of each device to die for good."""
    joins_late: float = 0.0

    # Clocks.
    clock_jumps: float = 0.0
    clock_jump_s_max: float = 3 * 86400.0
    controller_clock_jumps: float = 0.0
    controller_clock_jump_s_max: float = 5.0

    # Disks.
    bit_rot: float = 0.0
    disk_full: float = 0.0
    disk_read_only: float = 0.0
    journal_failing: float = 0.0

    # Whoever has the broker, the update channel, or the controller's online key.
    adversary: float = 0.0
    """Actions per hour against the fleet."""
    corrupted: float = 0.0
    """The chance of a chunk to be altered on its way."""
    metadata_stale: float = 0.0
    """Times per hour that the controller stops to renew its metadata for a while."""
    operator_meddles: float = 0.0
    """Pauses, resumes and aborts by hand."""

    @classmethod
    def none(cls) -> "Faults":
        return cls()

    @classmethod
    def all(cls) -> "Faults":
        return cls(
            qos0_lost=0.05,
            repeated=0.03,
            delayed=0.02,
            reordered=0.05,
            disconnects=2.0,
            partitions=1.0,
            broker_restarts=2.5,
            device_crashes=2.0,
            controller_crashes=12.0,
            device_dies=0.06,
            joins_late=0.1,
            clock_jumps=0.4,
            controller_clock_jumps=2.0,
            bit_rot=0.15,
            disk_full=0.2,
            disk_read_only=0.1,
            journal_failing=0.2,
            adversary=30.0,
            corrupted=0.002,
            metadata_stale=0.7,
            operator_meddles=1.5,
        )

    @classmethod
    def named(cls, name: FaultsName) -> "Faults":
        return cls.none() if name == "none" else cls.all()  # Nobody holds devices here.
