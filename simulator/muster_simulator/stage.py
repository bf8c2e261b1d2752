"""What every part of one world shares: time, history, the weather of faults, and one source of chance per concern."""

from dataclasses import dataclass, field
from random import Random

from muster_shared.ids import FleetId
from muster_simulator.clock import Timeline
from muster_simulator.faults import Faults
from muster_simulator.history import History
from muster_simulator.observer import Observers

FLEET = FleetId("sim")


@dataclass
class Stage:
    """`weather` is what goes wrong now; the world lets it clear up."""

    seed: int
    faults: Faults
    timeline: Timeline = field(default_factory=Timeline)
    history: History = field(init=False)
    observers: Observers = field(default_factory=Observers)
    weather: Faults = field(init=False)
    is_peaceful: bool = False
    """Releases of the past take no device down any more."""

    def __post_init__(self) -> None:
        self.history = History(self.timeline)
        self.weather = self.faults

    def random(self, concern: str) -> Random:
        """Return the source of chance of `concern`: what one concern draws does not change what another gets."""
        return Random(f"{self.seed}/{concern}")
