"""What may happen to a rollout, and what the machine may ask for in return. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from muster_controller.core.rollout.state import ControlKey, Rollout
from muster_shared.assignment import Watch
from muster_shared.errors import MusterError
from muster_shared.ids import DeviceId, RolloutId, Sha256
from muster_shared.messages import Refusal, ReleaseRef, Step


@dataclass(frozen=True)
class DeviceFacts:
    """What the machine needs to know of a device now."""

    online: bool
    active: ReleaseRef | None
    """What serves, by its twin."""
    held: str = ""
    """Why rollouts leave it alone, in words; empty: they need not."""


@dataclass(frozen=True)
class Tick:
    """Look at the clock and the fleet. `fleet` may be lazy: only what is needed is looked up."""

    fleet: Mapping[DeviceId, DeviceFacts]


@dataclass(frozen=True)
class OutcomeArrived:
    """What a device reported after its window, treated or held back."""

    device: DeviceId
    wave: int
    good: bool
    reason: str
    latency: float | None = None
    """log(p95 after / p95 before); None where either is unknown."""
    disagreed: bool | None = None
    """Whether the candidate of its trial disagreed more than the policy bears; None without a trial."""
    bundle: Sha256 | None = None
    """What was judged; None: not checked."""
    attempt: int | None = None
    """Which attempt it is of; None: not checked."""


@dataclass(frozen=True)
class StepArrived:
    device: DeviceId
    bundle: Sha256
    step: Step
    bytes_fetched: int
    seconds: float
    wave: int | None = None
    refusal: Refusal | None = None
    detail: str = ""
    attempt: int | None = None
    """Which attempt it is of; None: not checked."""
    wait_s: float | None = None
    """Of a deferral: how long until the device looks again, at most."""


@dataclass(frozen=True)
class DeviceChanged:
    """What serves on a device, or whether it is there, is not what it was."""

    device: DeviceId
    facts: DeviceFacts


@dataclass(frozen=True)
class DeviceLeft:
    """A device is not among those that the policy selects any more, or another rollout took it over."""

    device: DeviceId
    why: str
    is_taken: bool = False
    """Another rollout tells it what to run now: nothing more is to be awaited from it."""


@dataclass(frozen=True)
class DeviceHeld:
    """An operator holds a device where it is: whatever of it is under way is called off, and not counted."""

    device: DeviceId


@dataclass(frozen=True)
class DeviceJoined:
    """A device came into the group while the rollout runs."""

    device: DeviceId
    device_class: str


class Order(Enum):
    PAUSE = "pause"
    RESUME = "resume"
    SKIP = "skip"
    """Let the present wave pass, on the operator's own responsibility."""
    RETRY = "retry"
    """Have every failed device try again; what was counted stays."""
    EXTEND = "extend"
    """Give the devices of the present wave more time."""
    APPROVE = "approve"
    ABORT = "abort"
    ROLL_BACK = "rollback"
    """Take a finished rollout back."""


@dataclass(frozen=True)
class Ordered:
    """An operator's order."""

    order: Order
    actor: str
    reason: str
    seconds: float = 0.0
    """Of an extension."""


@dataclass(frozen=True)
class Superseded:
    """Another rollout of the model takes all devices over at once; what is under way is left to it."""

    by: RolloutId


Event = (
    Tick | OutcomeArrived | StepArrived | DeviceChanged | DeviceLeft | DeviceHeld | DeviceJoined | Ordered | Superseded
)


@dataclass(frozen=True)
class Assign:
    """Set what a device should run of this model, with a new signed assignment."""

    device: DeviceId
    release: ReleaseRef
    watch: Watch | None


@dataclass(frozen=True)
class SetBaseline:
    """From now on `release` is what every device of the rollout's selector should run, late ones too."""

    release: ReleaseRef


@dataclass(frozen=True)
class Plot:
    """The evidence moved: a point for the chart."""

    at: float
    wave: int
    e: float
    metrics: Mapping[str, float]
    treated: int
    reported: int
    bad: int


Effect = Assign | SetBaseline | Plot


@dataclass(frozen=True)
class Changes:
    """Which rows differ from what the event found."""

    members: frozenset[DeviceId] = frozenset()
    controls: frozenset[ControlKey] = frozenset()

    def __or__(self, other: "Changes") -> "Changes":
        return Changes(self.members | other.members, self.controls | other.controls)


@dataclass(frozen=True)
class Advanced:
    """What an event came to: the rollout after it, what to do about it, and which rows to write."""

    rollout: Rollout
    effects: tuple[Effect, ...] = ()
    changes: Changes = Changes()


class OrderRefused(MusterError):
    """An order that the rollout's state does not allow."""

    def __init__(self, rollout: Rollout, order: Order, why: str = "") -> None:
        said = why or f"it is {rollout.state.value}; it cannot {order.value} now"
        super().__init__(f"rollout {rollout.id}: {said}")
        self.rollout = rollout.id
        self.state = rollout.state
        self.order = order
