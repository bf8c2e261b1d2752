"""What the parts of the metrics hand to each other: a tally of one release, and what a reference file says.

    serving ──▶ fold.Meter ── Tally ──▶ windows.Windows ── Window ──▶ sending ──▶ broker
                   │  └──────────────▶ outliers (a ring on the device, if the configuration wants one)
                   └── statistics ──▶ core.drift ── DriftState

Values only.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from muster_shared.ids import ModelName
from muster_shared.metrics import Kind


class DriftState(StrEnum):
    """What a device's own detectors say of a release. The names are those of `muster_shared.metrics.DRIFT`."""

    QUIET = "quiet"
    DRIFTING = "drifting"
    SKEWED = "skewed"
    UNKNOWN = "unknown"
    """No reference came with the release, or too little was seen."""


@dataclass(frozen=True)
class Release:
    """What served: enough to name a `Cell` and to know what may leave."""

    model: ModelName
    version: str
    bundle_sha256: str
    classes: int
    """CLASSES_MAX at most; 0: the release has none."""
    allow: frozenset[Kind]


@dataclass(frozen=True)
class Tally:
    """What was counted of one release since the last one was taken. Index -> count of inferences, by kind.

    All kinds but `Kind.DRIFT` are here, whatever the allow-list says: leaving out is for `windows`.
    """

    release: Release
    inferences: int = 0
    counts: dict[Kind, dict[int, int]] = field(default_factory=dict)
    drift: DriftState = DriftState.UNKNOWN
    """As it is now."""


class Meters(Protocol):
    """Where tallies come from. On the serving loop."""

    def take(self) -> list[Tally]:
        """Return one tally for each release that serves, or served since the last call; an idle one is empty."""
