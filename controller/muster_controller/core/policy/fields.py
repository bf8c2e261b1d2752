"""What a policy says, field by field. The texts under the fields are the guide's and the JSON Schema's as well.

Values only: `check` refuses what cannot be, `measures` works out sizes, rates and windows.
"""

from typing import Literal

import msgspec

from muster_shared.assignment import Trial
from muster_shared.errors import MusterError
from muster_shared.messages import Refusal

DEFAULT_WAVES: tuple[int | str, ...] = (5, "25%")
WAVES_MAX = 100
CAUSES = frozenset({refusal.value for refusal in Refusal} | {"silent", "probation", "rolled_back"})
"""Why a device counts as bad, in the words that a threshold may name. `rolled_back` is another word for `probation`."""


class PolicyInvalid(MusterError):
    """A policy that cannot be evaluated or satisfied; the message names the field and says what to write.

    Attributes:
        field: The path of what is wrong ("waves[1]", "rate.factor"); None when it is the document as a whole.
        line: Where it stands in the document, from 1; None when there is no document.
    """

    def __init__(self, message: str, field: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.line = line


class Ramp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Waves that grow with the evidence: each is as large as the harm that it could still do allows."""

    first: int = 5
    """Devices in the first wave."""
    factor: float = 4.0
    """A wave has at most this many times the devices of the one before."""
    harm_max: float = 10.0
    """The excess failures that one is ready to cause by one wave."""
    waves_max: int = 30
    """The last of so many waves takes whoever is left."""


class Rate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast devices are assigned within a wave: `per_minute * factor ** (assigned // every)`, capped."""

    per_minute: float
    """Devices a minute at the beginning."""
    factor: float = 1.0
    """What the rate is multiplied by at each step; 1 keeps it."""
    every: int = 100
    """Assigned devices from one step to the next."""
    per_minute_max: float | None = None
    """Devices a minute that are never exceeded; not given, no limit."""


class Threshold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An error condition: so many failures abort, whatever the statistics say."""

    failures: int | str
    """Failed devices (3), or their share of the treated devices that have an outcome ("5%"); reaching it aborts."""
    minimum: int = 1
    """Treated devices that must have an outcome before this counts."""
    reason: str | None = None
    """Only failures of this cause, such as "timed_out", "self_test_failed" or "silent"; not given, all of them."""


class Weights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How `alpha` is shared out over the metrics, so that all of them together keep it."""

    failures: float = 0.8
    """Of failed devices."""
    latency: float = 0.15
    """Of the change of p95 latency."""
    agreement: float = 0.05
    """Of disagreement on live inputs; counts only where there is a trial."""


class Approval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A gate that people open."""

    before: int | Literal["finish", "every"]
    """The wave that waits for it (from 1), "finish", or "every" wave and the end."""
    by: tuple[str, ...] = ()
    """Who may approve; nobody named: anyone but whoever created the rollout."""
    count: int = 1
    """How many different people must; 2 asks for a second person."""


class Maintenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A time of the week in which devices may change what serves, by their own local clock."""

    days: str = "mon-sun"
    """On which it begins: days and ranges, such as "mon-fri" or "sat,sun"."""
    start: str
    """When it begins, "HH:MM"."""
    end: str
    """When it ends, "HH:MM" up to "24:00"; before `start`, it ends on the next day."""


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a release goes out: to whom, how fast, what stops it, and what happens then."""

    selector: str = ""
    """Which devices take part: a Kubernetes label selector over labels and reported hardware; empty, all of them."""
    priority: int = 0
    """Which of two rollouts of one model a device obeys: the higher one. Equal ones that meet are refused."""
    late_joiners: Literal["last_wave", "afterwards", "never"] = "afterwards"
    """Devices that come into the group while it runs: in the last wave, after the rollout passed, or not at all."""

    waves: tuple[int | str, ...] = DEFAULT_WAVES
    """Devices of each wave, as counts or shares of the group ("25%"); what is left over is the last wave."""
    ramp: Ramp | None = None
    """Waves that grow with the evidence, in place of `waves`."""
    rate: Rate | None = None
    """How fast devices are assigned within a wave; not given, at once."""
    concurrency: int | str | None = None
    """Devices that may be under way at the same time, as a count or a share of the group ("10%")."""
    soak_s: float = 0.0
    """How long a wave that passed waits before the next."""

    success_required: float = 0.9
    """The share of a wave (0..1) that must do well before the next begins."""
    abort_when: tuple[Threshold, ...] = ()
    """Error conditions; any of them aborts."""
    on_abort: Literal["roll_back", "stop", "freeze"] = "roll_back"
    """roll_back: every device that was told goes back. stop: those under way go back, the rest keep it. freeze: nobody
    is told anything any more."""

    alpha: float = 0.05
    """The chance of a false abort over the whole life of the rollout."""
    weights: Weights = Weights()
    """How `alpha` is shared out over the metrics."""
    metrics_required: tuple[Literal["latency", "agreement"], ...] = ()
    """Metrics without which no wave passes: where nobody could measure them, the gate is undecided."""
    failure_objective: float = 0.02
    """The share of bad outcomes (0..1) that is accepted where there are no controls to compare with."""
    tolerance: float = 1.0
    """How many times the failures of the held-back controls are accepted."""
    latency_tolerance: float = 0.05
    """The relative rise of p95 latency (0..) that is accepted."""
    disagreement_objective: float = 0.02
    """The share of devices (0..1) whose trial may disagree more than it should."""
    controls_per_device: int = 10
    """Devices held back, and watched in the same way, for each treated one; 0 compares with the objective alone."""

    window_s: float = 300.0
    """How long a device is measured after the switch."""
    window_max_s: float = 900.0
    """How long that may take when there are too few requests."""
    requests_min: int = 20
    """Requests that a window should have."""
    download_s: float | None = None
    """From assignment to all bytes being there; not given, only `deadline_s` counts."""
    deadline_s: float = 3600.0
    """From assignment to outcome; a device that is silent until then counts as bad. Deferral comes on top."""
    retries: int = 0
    """How often a device that failed before it switched is told to try again."""
    retry_wait_s: float = 60.0
    """How long after the failure."""

    approvals: tuple[Approval, ...] = ()
    """Gates that people open."""
    maintenance: tuple[Maintenance, ...] = ()
    """When devices may change what serves; none: at any time."""
    consent: bool = False
    """Whether a device's own rules (busy, hot, on battery, metered, a hook) may defer."""
    defer_s_max: float = 0.0
    """How long in all a device may defer, for whatever reason; after that its update fails."""
    trial: Trial | None = None
    """The candidate runs beside what serves, on the device's live inputs, before it may take over."""
