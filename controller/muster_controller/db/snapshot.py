"""The fleet between two commits, as values: what is committed, and what a commit touched. Imports no database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from muster_controller.core.rollout.roll import Roll
from muster_controller.core.rollout.state import Rollout
from muster_controller.core.rollout.tally import Tally
from muster_controller.fleet_index.index import index_of
from muster_controller.fleet_index.view import FleetView
from muster_controller.ports import Baseline, Desired, Device
from muster_shared.ids import DeviceId, ModelName, RolloutId


@dataclass(frozen=True)
class Committed:
    """The fleet as of the last commit: shared, never changed."""

    devices: Mapping[DeviceId, Device]
    desired: Mapping[DeviceId, Desired]
    baselines: Mapping[ModelName, Sequence[Baseline]]
    """Of each model, the newest first."""
    running: Mapping[RolloutId, Rollout]
    indexed: FleetView | None = None
    """The devices by what holds for them; None: made when it is asked for."""
    tallies: Mapping[RolloutId, Tally] = field(default_factory=dict)
    """Of those that run; one that is missing has to be counted."""
    rolls: Mapping[RolloutId, Roll] = field(default_factory=dict)
    """Of those that run; one that is missing has to be taken."""

    @cached_property
    def view(self) -> FleetView:
        return index_of(self.devices, self.desired).view() if self.indexed is None else self.indexed


@dataclass(frozen=True)
class Touched:
    """What one commit touched."""

    devices: frozenset[DeviceId]
    rollouts: frozenset[RolloutId]
    notes: int
