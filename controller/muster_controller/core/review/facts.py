"""What a review is made of, and what it says: values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from muster_controller.core.metrics.series import Series
from muster_controller.core.metrics.sums import MixedSum
from muster_controller.core.review.week import Week

# -- what is brought ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """A week, and the one before it.

    Attributes:
        hours: of the week, of models and of whole devices.
        days: noised sums of whole days, of the week; FEEDBACK, INPUTS and LATENCY.
        inputs: noised sums of the hours of the week, INPUTS alone.
        labels: of a model and version, what its classes are called.
        coming: everything that is to happen, in any order.
    """

    fleet: str
    week: Week
    hours: Sequence[Series] = ()
    hours_before: Sequence[Series] = ()
    days: Sequence[MixedSum] = ()
    days_before: Sequence[MixedSum] = ()
    inputs: Sequence[MixedSum] = ()
    labels: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)
    coming: "Sequence[Coming]" = ()
    devices: int = 0


# -- what is said ------------------------------------------------------------------------------------------------------


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A figure with its 95 % interval; None: that side is not known."""

    value: float
    low: float | None = None
    high: float | None = None


class Regression(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was worse than in the week before."""

    measure: str
    """`accuracy`, `failures`, `latency` (p95, ms) or `slow` (share of requests over the objective)."""
    model: str
    dimension: str
    """`all`, `class`, `device_class` or `region`."""
    name: str
    before: Span
    after: Span
    worse: float
    """By how much, positive: a difference of shares; of latency the factor minus 1."""
    p: float | None = None
    """For all that were looked at (Holm); None: two intervals that do not meet, or counts of everything."""
    hidden: bool = False
    """The average got better, or no worse."""
    versions: tuple[str, str]
    """The most used release of the week before, and of this one."""


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """Hours with more odd inputs were hours with more errors."""

    model: str
    version: str
    device_class: str
    region: str
    hours: int
    correlation: float
    """Spearman's, 0..1."""
    p: float
    """One-sided, for all cells that were looked at (Holm)."""
    odd_share: float
    """Of requests, mean over the hours: out of range, outliers, not finite."""
    error_share: float


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What a device class has left in its busiest hour."""

    device_class: str
    devices: int
    busiest_at: float | None
    cpu_percent: float | None
    cpu_percent_max: float | None
    requests_per_s_peak: float
    factor: float | None
    """How much more an average device could do; None: no device tells."""


class Coming(msgspec.Struct, frozen=True, kw_only=True):
    """Something that runs out, is under way, or is not where it should be."""

    kind: str
    """`trust`, `certificates`, `rollout`, `behind` or `ca`."""
    name: str
    text: str
    at: float | None = None
    """When it runs out, or began."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a model cost in the week. Unknown is None, never 0."""

    model: str
    requests: int
    inferences: int
    cpu_hours: float
    energy_kwh: float | None
    """Of devices that have a sensor."""
    bytes_sent: float
    bytes_received: float
    cpu_s_per_1000: float | None
    energy_j_per_1000: float | None
    bytes_per_1000: float | None


class Review(msgspec.Struct, frozen=True, kw_only=True):
    """A week as it is kept and told."""

    week: str
    fleet: str
    begin: float
    end: float
    devices: int
    regressions: tuple[Regression, ...] = ()
    """The worst first."""
    suspects: tuple[Suspect, ...] = ()
    rooms: tuple[Room, ...] = ()
    """The least room first."""
    coming: tuple[Coming, ...] = ()
    """The next first."""
    costs: tuple[Cost, ...] = ()
    """The dearest first."""
    left_out: int = 0
    """Findings beyond what a review holds."""
