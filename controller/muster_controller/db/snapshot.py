"""The fleet between two commits, as values: what is committed, and what a commit touched. Imports no database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muster_controller.core.rollout.state import Rollout
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


@dataclass(frozen=True)
class Touched:
    """What one commit touched."""

    devices: frozenset[DeviceId]
    rollouts: frozenset[RolloutId]
    notes: int
