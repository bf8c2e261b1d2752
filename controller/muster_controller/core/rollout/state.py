"""What a rollout remembers: itself, its devices, its held-back controls, and every verdict with the counts behind it.

Values only. The counts (`strata`, `open`, `due`, `in_flight` ...) follow from the devices; `draft` keeps them true.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from immutables import Map

from muster_controller.core.gate.evidence import Evidence
from muster_controller.core.gate.strata import Stratum, VerdictKind
from muster_controller.core.policy import Policy
from muster_shared.ids import DeviceId, ModelName, RolloutId
from muster_shared.messages import ReleaseRef, Step


class RolloutState(Enum):
    RUNNING = "running"
    PAUSED = "paused"
    ABORTING = "aborting"
    ABORTED = "aborted"
    FINISHED = "finished"


ENDED = (RolloutState.ABORTED, RolloutState.FINISHED)
TAKEN = "taken"
"""The cause of a member that another rollout tells what to run; this one's release is not for it any more."""
LATE = 1_000_000_000
"""Positions of late joiners begin here, behind all others."""


class Pause(Enum):
    """Why a rollout rests, which is also what lets it go on."""

    BY_HAND = "by_hand"
    """Resume."""
    UNDECIDED = "undecided"
    """The gate can say neither yes nor no: skip takes the wave on the operator's own responsibility."""


class Outcome(Enum):
    PENDING = "pending"
    GOOD = "good"
    BAD = "bad"
    LEFT = "left"
    """It is not part of the rollout any more: it left the group, or another rollout took it over. Not counted."""


@dataclass(frozen=True)
class Member:
    """One device that is to get the release. `wave` is None until a wave takes it, `assigned_at` until it was told."""

    device: DeviceId
    device_class: str
    position: int
    """In the random order fixed at creation; late joiners come behind, from LATE on."""
    wave: int | None = None
    outcome: Outcome = Outcome.PENDING
    reason: str = ""
    cause: str = ""
    """Why it is bad, in one word that a policy can name: a refusal, `silent` or `probation`."""
    assigned_at: float | None = None
    deadline_at: float | None = None
    attempt: int = 0
    """How often it was told; the policy's retries come on top of the first."""
    retry_at: float | None = None
    """When it is told again, after a failure that may be tried again."""
    deferred_until: float | None = None
    """By its own windows and consent; None: it does not wait for them."""
    step: Step | None = None
    bytes_fetched: int = 0
    seconds: float = 0.0
    previous: ReleaseRef | None = None
    """What it ran when it was assigned, which need not be what the fleet runs."""
    controls: tuple[DeviceId, ...] = ()
    """Held back for it alone, at the same instant, in its wave."""
    latency: float | None = None
    """log(p95 after / p95 before), as it reported."""
    is_paired: bool = False
    """Whether its latency was set against that of its controls."""
    disagreed: bool | None = None
    """Whether the candidate disagreed with what served more than the policy bears; None without a trial."""
    second: Outcome | None = None
    """What came of trying again by an operator's order. Never counted: what was counted stays. LEFT: another rollout
    took it over after it had come to its outcome."""
    returned: bool = False
    """Whether, after an abort, it runs what it had before."""

    @property
    def is_touched(self) -> bool:
        """Whether it was ever told to run the release."""
        return self.assigned_at is not None

    @property
    def is_taken(self) -> bool:
        """Whether another rollout tells it what to run: this one has nothing to say to it any more."""
        return self.cause == TAKEN or self.second is Outcome.LEFT


@dataclass(frozen=True)
class Control:
    """One held-back device, watched in the same window as the treated one that it was drawn for."""

    device: DeviceId
    device_class: str
    wave: int
    partner: DeviceId
    assigned_at: float | None = None
    deadline_at: float | None = None
    deferred_until: float | None = None
    outcome: Outcome = Outcome.PENDING
    reason: str = ""
    latency: float | None = None


ControlKey = tuple[int, DeviceId]


@dataclass(frozen=True)
class Verdict:
    """What the gate said, with the counts behind it."""

    at: float
    wave: int
    kind: VerdictKind
    reason: str
    evidence: Evidence


@dataclass(frozen=True)
class Approved:
    """Somebody agreed. `before` is what it was for: a wave's number from 1, or `finish`."""

    before: str
    by: str
    at: float
    reason: str = ""


@dataclass(frozen=True)
class Rollout:
    """Everything. `members` and `controls` are persistent maps: a new version shares all that did not change."""

    id: RolloutId
    model: ModelName
    release: ReleaseRef
    previous: ReleaseRef | None
    """What the fleet runs, and what an abort goes back to."""
    policy: Policy
    waves: tuple[int, ...]
    """Planned sizes; a ramp plans each wave when the one before has passed."""
    created_at: float
    created_by: str
    at_once: bool = False
    """A rollback that waits for nothing: every device is told at the beginning, offline ones too, without a gate."""
    members: Map[DeviceId, Member] = field(default_factory=Map)
    controls: Map[ControlKey, Control] = field(default_factory=Map)
    state: RolloutState = RolloutState.RUNNING
    pause: Pause | None = None
    reason: str = ""
    wave: int = -1
    wave_began_at: float | None = None
    wave_passed_at: float | None = None
    confirmed_wave: int = -1
    """The highest wave that an operator let pass."""
    paced_at: float = 0.0
    """When the pace was last reckoned, and ..."""
    credit: float = 0.0
    """... how many devices may be told at once then."""
    due_at: float = 0.0
    """When a tick is next worth its while; never later than that."""
    aborting_at: float | None = None
    recalled: int = -1
    """The position up to which devices have been called back, while it is aborting."""
    ended_at: float | None = None
    verdicts: tuple[Verdict, ...] = ()
    approvals: tuple[Approved, ...] = ()

    # What follows from members and controls.
    strata: Mapping[tuple[int, str], Stratum] = field(default_factory=dict)
    open: Mapping[int, int] = field(default_factory=dict)
    """By wave: treated and held-back devices that have no outcome."""
    queue: tuple[DeviceId, ...] = ()
    """Taken by the present wave, and not told yet, in order."""
    in_flight: int = 0
    """Told, and without an outcome; controls not counted."""
    released: int = 0
    """Told so far; controls not counted."""
    settled: int = 0
    """Told, and with an outcome that counts; controls not counted."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """By cause: how many of those are bad."""
    due: Mapping[float, int] = field(default_factory=dict)
    """By moment: of how many, treated or held back, silence counts then, or a new attempt begins."""
    plotted_e: float = 1.0
    """The evidence at the last point of the chart."""


def assembled(
    rollout: Rollout,
    members: Iterable[Member],
    controls: Iterable[Control],
    latency: Mapping[tuple[int, str], tuple[tuple[int, int], ...]],
) -> Rollout:
    """Return `rollout` with these devices and all that follows from them: how it comes back from rows.

    Args:
        latency: The binned pairs of each stratum, which only `Stratum` remembers.
    """
    members, controls = tuple(members), tuple(controls)
    waves: dict[int, int] = {}
    due: dict[float, int] = {}
    failures: dict[str, int] = {}
    everyone: list[Member | Control] = [*members, *controls]
    for each in everyone:
        if (at := due_at(each)) is not None:
            due[at] = due.get(at, 0) + 1
        if isinstance(each, Member) and is_settled(each) and each.outcome is Outcome.BAD:
            failures[each.cause] = failures.get(each.cause, 0) + 1
        if each.wave is not None:
            waves[each.wave] = waves.get(each.wave, 0) + (each.outcome is Outcome.PENDING)
    queued = sorted(
        (member for member in members if member.wave is not None and is_queued(member)),
        key=lambda member: member.position,
    )
    return replace(
        rollout,
        members=Map({member.device: member for member in members}),
        controls=Map({(control.wave, control.device): control for control in controls}),
        strata=stratified(((each, 1) for each in everyone), latency),
        open={wave: count for wave, count in waves.items() if count},
        queue=tuple(member.device for member in queued),
        in_flight=sum(is_in_flight(member) for member in members),
        released=sum(member.is_touched for member in members),
        settled=sum(is_settled(member) for member in members),
        failures=failures,
        due=due,
    )


def stratified(
    devices: Iterable[tuple[Member | Control, int]], latency: Mapping[tuple[int, str], tuple[tuple[int, int], ...]]
) -> dict[tuple[int, str], Stratum]:
    """Return the strata of devices, each with how many there are of its kind.

    Args:
        latency: As of `assembled`.
    """
    strata: dict[tuple[int, str], Stratum] = {}
    for each, count in devices:
        if each.wave is not None:
            key = (each.wave, each.device_class)
            strata[key] = counted(strata.get(key, Stratum(*key, 0, 0, 0, 0)), each, count)
    for key, bins in latency.items():
        strata[key] = replace(strata.get(key, Stratum(*key, 0, 0, 0, 0)), latency=bins)
    return {key: stratum for key, stratum in strata.items() if stratum.treated or stratum.controls}


def is_queued(member: Member) -> bool:
    """Return whether a wave has taken it, and it was not told yet."""
    return member.wave is not None and member.assigned_at is None and member.outcome is Outcome.PENDING


def is_in_flight(member: Member) -> bool:
    return member.assigned_at is not None and member.outcome is Outcome.PENDING


def is_settled(member: Member) -> bool:
    """Return whether it was told, and has come to an outcome that counts."""
    return member.assigned_at is not None and member.outcome in (Outcome.GOOD, Outcome.BAD)


def due_at(each: Member | Control) -> float | None:
    """Return when its silence counts as bad, or when it is told again; None while nothing is awaited of it."""
    if each.assigned_at is None or each.outcome is not Outcome.PENDING:
        return None
    if isinstance(each, Member) and each.retry_at is not None:
        return each.retry_at
    return each.deadline_at


def counted(stratum: Stratum, each: Member | Control, sign: int) -> Stratum:
    """Return `stratum` with what `each` adds to it (sign 1; n for n alike) or no longer adds (-1)."""
    if each.assigned_at is None or each.outcome is Outcome.LEFT:
        return stratum
    bad = sign * (each.outcome is Outcome.BAD)
    if isinstance(each, Control):
        return replace(stratum, controls=stratum.controls + sign, controls_bad=stratum.controls_bad + bad)
    return replace(
        stratum,
        treated=stratum.treated + sign,
        treated_bad=stratum.treated_bad + bad,
        compared=stratum.compared + sign * (each.disagreed is not None),
        disagreed=stratum.disagreed + sign * bool(each.disagreed),
    )


def in_order(members: Iterable[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: member.position))


def touched(rollout: Rollout) -> tuple[Member, ...]:
    """Return the devices that were ever told to run the release, in order."""
    return in_order(member for member in rollout.members.values() if member.is_touched)


def waiting(rollout: Rollout) -> tuple[Member, ...]:
    """Return the devices that no wave has taken yet, in order."""
    return in_order(
        member for member in rollout.members.values() if member.wave is None and member.outcome is Outcome.PENDING
    )


def home(rollout: Rollout, member: Member) -> ReleaseRef | None:
    """Return what an abort brings `member` back to: what it ran itself, else what the fleet runs."""
    own = member.previous
    if own is not None and own.bundle_sha256 != rollout.release.bundle_sha256:
        return own
    return rollout.previous
