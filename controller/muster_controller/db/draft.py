"""What a transaction has written so far, in memory; later drafts hide earlier ones. Touches no database."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from muster_controller.audit.audited import Entry
from muster_controller.core.rollout.events import Changes, Plot
from muster_controller.core.rollout.state import Rollout
from muster_controller.ports import Baseline, Desired, Device, Issued, Note
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId
from muster_shared.messages import Event

BaselineKey = tuple[ModelName, str]
"""Model and selector."""


@dataclass(frozen=True)
class SavedRollout:
    """A rollout to be written: over `before`, which is in the database (None: nothing is), only where it changed."""

    before: Rollout | None
    after: Rollout
    changes: Changes

    def then(self, later: "SavedRollout") -> "SavedRollout":
        return SavedRollout(self.before, later.after, self.changes | later.changes)


@dataclass
class Draft:
    devices: dict[DeviceId, Device | None] = field(default_factory=dict)
    """None: it is forgotten; so the next."""
    desired: dict[DeviceId, Desired | None] = field(default_factory=dict)
    issued: list[Issued] = field(default_factory=list)
    rollouts: dict[RolloutId, SavedRollout] = field(default_factory=dict)
    points: list[tuple[RolloutId, Plot]] = field(default_factory=list)
    baselines: dict[BaselineKey, Baseline] = field(default_factory=dict)
    events: dict[EventId, tuple[Event, float]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    audited: list[Entry] = field(default_factory=list)
    """What the audit log has to say of some of the notes."""

    def save_rollout(self, rollout: RolloutId, saved: SavedRollout) -> None:
        earlier = self.rollouts.get(rollout)
        self.rollouts[rollout] = saved if earlier is None else earlier.then(saved)

    def take_over(self, inner: "Draft") -> None:
        """Have what an inner transaction wrote, when it has ended well."""
        self.devices |= inner.devices
        self.desired |= inner.desired
        self.issued += inner.issued
        for key, saved in inner.rollouts.items():
            self.save_rollout(key, saved)
        self.points += inner.points
        self.baselines |= inner.baselines
        self.events |= inner.events
        self.notes += inner.notes
        self.audited += inner.audited

    @property
    def is_empty(self) -> bool:
        return not (
            self.devices or self.desired or self.rollouts or self.points or self.baselines or self.events or self.notes
        )


def newest_first(baselines: Mapping[BaselineKey, Baseline]) -> list[Baseline]:
    """Return the baselines, newest first; those of the same instant always in the same order."""
    return sorted(baselines.values(), key=lambda each: (each.at, each.rollout, each.selector), reverse=True)
