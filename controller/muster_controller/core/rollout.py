"""The rollout machine: every transition of a staged rollout stands here.

                 start wave         all reported, E < 3, enough succeeded
    RUNNING ──▶ treated + held-back controls ──▶ next wave … ──▶ FINISHED (the release becomes the baseline)
      │ ▲                │ E >= 1/alpha                            │
      │ └ resume         └──────────▶ ABORTING ──▶ ABORTED         │ roll back by hand
      ▼                                 ▲ every touched device is  │
    PAUSED ── abort ────────────────────┘ assigned what it had     ◀
      ▲
      └ all reported, but undecidable: E >= 3, or too few succeeded

A device that is silent until its deadline is bad, treated or control. Devices that were offline when their wave began
are not in it: they wait, visibly, and get the release when the rollout has finished.
`advance(rollout, event, now) -> (rollout, effects)`; the caller saves both in one transaction.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import assert_never

from muster_controller.core.gate import HOLD, Evidence, Stratum, VerdictKind, evidence
from muster_controller.core.policy import Policy, wave_sizes
from muster_shared.assignment import Watch
from muster_shared.errors import MusterError
from muster_shared.ids import DeviceId, ModelName, RolloutId, Sha256
from muster_shared.messages import ReleaseRef, Step

GIVE_UP_S = 60.0  # How long an aborting rollout waits for devices that are online but do not come back.


class RolloutState(Enum):
    RUNNING = "running"
    PAUSED = "paused"
    ABORTING = "aborting"
    ABORTED = "aborted"
    FINISHED = "finished"


ENDED = (RolloutState.ABORTED, RolloutState.FINISHED)


class Outcome(Enum):
    PENDING = "pending"
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True)
class Member:
    """One device that is to get the release. `wave` is None until it is assigned."""

    device: DeviceId
    device_class: str
    position: int
    """In the random order fixed at creation."""
    wave: int | None = None
    outcome: Outcome = Outcome.PENDING
    reason: str = ""
    assigned_at: float | None = None
    deadline_at: float | None = None
    step: Step | None = None
    bytes_fetched: int = 0
    seconds: float = 0.0
    previous: ReleaseRef | None = None
    """What it ran when it was assigned, which need not be what the fleet runs."""
    returned: bool = False
    """Whether, after an abort, it runs what it had before."""


@dataclass(frozen=True)
class Control:
    """One held-back device, watched in the same window as the treated ones of its wave."""

    device: DeviceId
    device_class: str
    wave: int
    deadline_at: float
    outcome: Outcome = Outcome.PENDING
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the gate said, with the counts behind it."""

    at: float
    wave: int
    kind: VerdictKind
    reason: str
    evidence: Evidence


@dataclass(frozen=True)
class Rollout:
    id: RolloutId
    model: ModelName
    release: ReleaseRef
    previous: ReleaseRef | None
    """What the fleet runs, and what an abort goes back to."""
    policy: Policy
    waves: tuple[int, ...]
    created_at: float
    created_by: str
    members: Mapping[DeviceId, Member]
    controls: Mapping[tuple[int, DeviceId], Control] = field(default_factory=dict)
    state: RolloutState = RolloutState.RUNNING
    reason: str = ""
    wave: int = -1
    wave_began_at: float | None = None
    wave_passed_at: float | None = None
    aborting_at: float | None = None
    ended_at: float | None = None
    verdicts: tuple[Verdict, ...] = ()
    confirmed_wave: int = -1
    """The highest wave that an operator let pass by resuming."""


@dataclass(frozen=True)
class DeviceFacts:
    """What the machine needs to know of a device now."""

    online: bool
    active: ReleaseRef | None
    """What serves, by its twin."""


@dataclass(frozen=True)
class Tick:
    """Look at the clock and the fleet."""

    fleet: Mapping[DeviceId, DeviceFacts]


@dataclass(frozen=True)
class OutcomeArrived:
    device: DeviceId
    wave: int
    good: bool
    reason: str


@dataclass(frozen=True)
class StepArrived:
    device: DeviceId
    bundle: Sha256
    step: Step
    bytes_fetched: int
    seconds: float


class Order(Enum):
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    ROLL_BACK = "rollback"


@dataclass(frozen=True)
class Ordered:
    """An operator's order."""

    order: Order
    actor: str
    reason: str


Event = Tick | OutcomeArrived | StepArrived | Ordered


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


Effect = Assign | SetBaseline
Result = tuple[Rollout, tuple[Effect, ...]]


def create(
    rollout_id: RolloutId,
    release: ReleaseRef,
    previous: ReleaseRef | None,
    policy: Policy,
    devices: Mapping[DeviceId, str],
    *,
    now: float,
    actor: str,
    shuffle: Callable[[list[DeviceId]], None],
) -> Rollout:
    """Return a new rollout over `devices` (id -> device class; at least one).

    The order is random (`shuffle` works in place) and fixed from then on; every prefix of it holds the classes in
    proportion, each at least once where it fits: so the first wave has every class.
    """
    order = _stratified(devices, shuffle)
    return Rollout(
        id=rollout_id,
        model=release.model,
        release=release,
        previous=previous,
        policy=policy,
        waves=wave_sizes(policy, len(order)),
        created_at=now,
        created_by=actor,
        members={device: Member(device, devices[device], position) for position, device in enumerate(order)},
    )


def advance(rollout: Rollout, event: Event, now: float) -> Result:
    """Return the rollout after `event` at `now` (Unix seconds), and what to do about it."""
    match event:
        case OutcomeArrived():
            return _judge(_outcome(rollout, event), now)
        case StepArrived():
            return _step(rollout, event), ()
        case Ordered():
            return _ordered(rollout, event, now)
        case Tick(fleet):
            return _tick(rollout, fleet, now)
        case _:
            assert_never(event)


def strata(rollout: Rollout) -> tuple[Stratum, ...]:
    """Return the counts behind the evidence, by wave and device class."""
    treated: Counter[tuple[int, str]] = Counter()
    treated_bad: Counter[tuple[int, str]] = Counter()
    controls: Counter[tuple[int, str]] = Counter()
    controls_bad: Counter[tuple[int, str]] = Counter()
    for member in rollout.members.values():
        if member.wave is not None:
            key = (member.wave, member.device_class)
            treated[key] += 1
            treated_bad[key] += member.outcome is Outcome.BAD
    for control in rollout.controls.values():
        key = (control.wave, control.device_class)
        controls[key] += 1
        controls_bad[key] += control.outcome is Outcome.BAD
    return tuple(
        Stratum(key[0], key[1], treated[key], treated_bad[key], controls[key], controls_bad[key])
        for key in sorted(treated.keys() | controls.keys())
    )


def weigh(rollout: Rollout, counted: Sequence[Stratum] | None = None) -> Evidence:
    """Return the evidence of `counted`: by default, of everything that was reported so far."""
    policy = rollout.policy
    return evidence(
        strata(rollout) if counted is None else counted,
        failure_objective=policy.failure_objective,
        tolerance=policy.tolerance,
        has_controls=rollout.previous is not None and policy.controls_per_device > 0,
    )


def touched(rollout: Rollout) -> tuple[Member, ...]:
    """Return the devices that were ever assigned the release, in order."""
    members = (member for member in rollout.members.values() if member.wave is not None)
    return tuple(sorted(members, key=lambda member: member.position))


def waiting(rollout: Rollout) -> tuple[Member, ...]:
    """Return the devices that no wave has taken yet, in order."""
    members = (member for member in rollout.members.values() if member.wave is None)
    return tuple(sorted(members, key=lambda member: member.position))


def home(rollout: Rollout, member: Member) -> ReleaseRef | None:
    """Return what an abort brings `member` back to: what it ran itself, else what the fleet runs."""
    own = member.previous
    if own is not None and own.bundle_sha256 != rollout.release.bundle_sha256:
        return own
    return rollout.previous


def _runs(facts: DeviceFacts, release: ReleaseRef) -> bool:
    return facts.active is not None and facts.active.bundle_sha256 == release.bundle_sha256


def _outcome(rollout: Rollout, event: OutcomeArrived) -> Rollout:
    """Take a report once: the first one counts, and silence that was already counted as bad stays bad."""
    outcome = Outcome.GOOD if event.good else Outcome.BAD
    member = rollout.members.get(event.device)
    if member is not None and member.wave is not None and member.wave == event.wave:
        if member.outcome is Outcome.PENDING:
            member = replace(member, outcome=outcome, reason=event.reason)
            return replace(rollout, members={**rollout.members, event.device: member})
        return rollout
    control = rollout.controls.get((event.wave, event.device))
    if control is not None and control.outcome is Outcome.PENDING:
        control = replace(control, outcome=outcome, reason=event.reason)
        return replace(rollout, controls={**rollout.controls, (event.wave, event.device): control})
    return rollout


def _step(rollout: Rollout, event: StepArrived) -> Rollout:
    member = rollout.members.get(event.device)
    if member is None or member.wave is None:
        return rollout
    if event.bundle == rollout.release.bundle_sha256:
        fetched = max(member.bytes_fetched, event.bytes_fetched)
        member = replace(member, step=event.step, bytes_fetched=fetched, seconds=event.seconds)
        return replace(rollout, members={**rollout.members, event.device: member})
    return rollout


def _tick(rollout: Rollout, fleet: Mapping[DeviceId, DeviceFacts], now: float) -> Result:
    match rollout.state:
        case RolloutState.RUNNING:
            rollout, effects = _judge(_count_silence(rollout, now), now)
            if rollout.state is not RolloutState.RUNNING or effects:
                return rollout, effects
            return _go_on(rollout, fleet, now)
        case RolloutState.PAUSED:
            return _judge(_count_silence(rollout, now), now)
        case RolloutState.ABORTING:
            return _come_back(rollout, fleet, now), ()
        case RolloutState.ABORTED | RolloutState.FINISHED:
            return rollout, ()
        case _:
            assert_never(rollout.state)


def _count_silence(rollout: Rollout, now: float) -> Rollout:
    """Count every device that has not reported by its deadline as bad, in both arms."""
    members, controls = dict(rollout.members), dict(rollout.controls)
    for member in rollout.members.values():
        if member.outcome is Outcome.PENDING and member.deadline_at is not None and now >= member.deadline_at:
            members[member.device] = replace(member, outcome=Outcome.BAD, reason="silent until its deadline")
    for key, control in rollout.controls.items():
        if control.outcome is Outcome.PENDING and now >= control.deadline_at:
            controls[key] = replace(control, outcome=Outcome.BAD, reason="silent until its deadline")
    if members == rollout.members and controls == rollout.controls:
        return rollout
    return replace(rollout, members=members, controls=controls)


def _judge(rollout: Rollout, now: float) -> Result:
    """Look at the evidence after any report; only an abort is decided here, whatever else is going on."""
    if rollout.state not in (RolloutState.RUNNING, RolloutState.PAUSED):
        return rollout, ()
    found = weigh(rollout)
    if found.e >= 1 / rollout.policy.alpha:
        bad = sum(stratum.treated_bad for stratum in found.strata)
        treated = sum(stratum.treated for stratum in found.strata)
        reason = f"{bad} of {treated} devices did badly: E = {found.e:.1f} against {1 / rollout.policy.alpha:g}"
        return _abort(_say(rollout, VerdictKind.ABORT, reason, found, now), reason, now)
    if found.e >= HOLD and not (rollout.verdicts and rollout.verdicts[-1].kind is VerdictKind.HOLD):
        return _say(rollout, VerdictKind.HOLD, f"E = {found.e:.1f}: nothing goes on for now", found, now), ()
    return rollout, ()


def _go_on(rollout: Rollout, fleet: Mapping[DeviceId, DeviceFacts], now: float) -> Result:
    """Start the first wave, or the next one when this one has passed."""
    if rollout.wave < 0:
        return _start_wave(rollout, fleet, now)
    treated = [member for member in rollout.members.values() if member.wave == rollout.wave]
    held = [control for control in rollout.controls.values() if control.wave == rollout.wave]
    pending = [each.outcome is Outcome.PENDING for each in treated] + [each.outcome is Outcome.PENDING for each in held]
    if any(pending):
        return rollout, ()
    if rollout.wave_passed_at is None:
        good = sum(member.outcome is Outcome.GOOD for member in treated)
        found = weigh(rollout)
        if rollout.confirmed_wave < rollout.wave:
            if found.e >= HOLD:
                return _pause(rollout, f"undecided: E = {found.e:.1f}", found, now), ()
            if good < rollout.policy.success_required * len(treated):
                share = f"{good} of {len(treated)} devices succeeded; {rollout.policy.success_required:.0%} is required"
                return _pause(rollout, share, found, now), ()
        reason = f"{good} of {len(treated)} devices did well: E = {found.e:.2f}"
        rollout = _say(rollout, VerdictKind.PROMOTE, reason, found, now)
        rollout = replace(rollout, wave_passed_at=now)
    passed_at = rollout.wave_passed_at
    assert passed_at is not None
    if now < passed_at + rollout.policy.soak_s:
        return rollout, ()
    return _start_wave(rollout, fleet, now)


def _start_wave(rollout: Rollout, fleet: Mapping[DeviceId, DeviceFacts], now: float) -> Result:
    """Assign the next wave and, at the same instant, watch as many held-back devices of each class as there are."""
    wave = rollout.wave + 1
    online = [member for member in waiting(rollout) if member.device in fleet and fleet[member.device].online]
    if not online:
        if wave == 0:
            return rollout, ()  # Nobody is there to begin with; it waits, visibly.
        return _finish(rollout, now)
    last = wave >= len(rollout.waves) - 1
    chosen = online if last else online[: rollout.waves[wave]]
    held = _held_back(rollout, online[len(chosen) :], chosen, fleet)
    deadline_at = now + rollout.policy.deadline_s
    members, controls = dict(rollout.members), dict(rollout.controls)
    effects: list[Effect] = []
    watch = _watch(rollout, wave)
    for member in chosen:
        previous = fleet[member.device].active
        members[member.device] = replace(member, wave=wave, assigned_at=now, deadline_at=deadline_at, previous=previous)
        effects.append(Assign(member.device, rollout.release, watch))
    for member in held:
        assert rollout.previous is not None
        controls[wave, member.device] = Control(member.device, member.device_class, wave, deadline_at)
        effects.append(Assign(member.device, rollout.previous, watch))
    rollout = replace(rollout, wave=wave, wave_began_at=now, wave_passed_at=None, members=members, controls=controls)
    return rollout, tuple(effects)


def _held_back(
    rollout: Rollout, rest: list[Member], chosen: list[Member], fleet: Mapping[DeviceId, DeviceFacts]
) -> list[Member]:
    if rollout.previous is None:
        return []
    places = Counter(member.device_class for member in chosen)
    held: list[Member] = []
    taken: Counter[str] = Counter()
    for member in rest:
        room = places[member.device_class] * rollout.policy.controls_per_device - taken[member.device_class]
        if room > 0 and _runs(fleet[member.device], rollout.previous):
            taken[member.device_class] += 1
            held.append(member)
    return held


def _watch(rollout: Rollout, wave: int) -> Watch:
    policy = rollout.policy
    return Watch(
        rollout=rollout.id,
        wave=wave,
        window_s=policy.window_s,
        window_max_s=policy.window_max_s,
        requests_min=policy.requests_min,
        deadline_s=policy.deadline_s,
    )


def _finish(rollout: Rollout, now: float) -> Result:
    left = len(waiting(rollout))
    reason = f"promoted to {len(rollout.members) - left} devices" + (
        f"; {left} offline since before their wave get it when they are back" if left else ""
    )
    rollout = replace(rollout, state=RolloutState.FINISHED, reason=reason, ended_at=now)
    return rollout, (SetBaseline(rollout.release),)


def _pause(rollout: Rollout, reason: str, found: Evidence, now: float) -> Rollout:
    rollout = _say(rollout, VerdictKind.HOLD, reason, found, now)
    return replace(rollout, state=RolloutState.PAUSED, reason=f"{reason}; resume to go on, or abort")


def _abort(rollout: Rollout, reason: str, now: float) -> Result:
    """End the rollout badly, and call back what it touched where the policy says so."""
    if rollout.policy.on_abort == "stop":
        ended = replace(rollout, state=RolloutState.ABORTED, reason=reason, aborting_at=now, ended_at=now)
        return ended, ()
    return _call_back(rollout, reason, now)


def _call_back(rollout: Rollout, reason: str, now: float) -> Result:
    """Give every touched device, those still fetching too, a newer assignment of what it had."""
    rollout = replace(rollout, state=RolloutState.ABORTING, reason=reason, aborting_at=now, ended_at=None)
    homes = [(member.device, home(rollout, member)) for member in touched(rollout)]
    effects = tuple(Assign(device, release, None) for device, release in homes if release is not None)
    if not effects:
        return replace(rollout, state=RolloutState.ABORTED, ended_at=now), ()
    return rollout, effects


def _come_back(rollout: Rollout, fleet: Mapping[DeviceId, DeviceFacts], now: float) -> Rollout:
    assert rollout.aborting_at is not None
    members = dict(rollout.members)
    missing = 0
    for member in touched(rollout):
        facts, release = fleet.get(member.device), home(rollout, member)
        if facts is None or release is None:
            continue
        if _runs(facts, release):
            if not member.returned:
                members[member.device] = replace(member, returned=True)
        elif facts.online and now < rollout.aborting_at + GIVE_UP_S + rollout.policy.deadline_s:
            missing += 1
    if members != rollout.members:
        rollout = replace(rollout, members=members)
    if missing:
        return rollout
    return replace(rollout, state=RolloutState.ABORTED, ended_at=now)


def _ordered(rollout: Rollout, event: Ordered, now: float) -> Result:
    said = f"{event.order.value} by {event.actor}" + (f": {event.reason}" if event.reason else "")
    match event.order, rollout.state:
        case Order.PAUSE, RolloutState.RUNNING:
            return replace(rollout, state=RolloutState.PAUSED, reason=said), ()
        case Order.RESUME, RolloutState.PAUSED:
            return replace(rollout, state=RolloutState.RUNNING, reason=said, confirmed_wave=rollout.wave), ()
        case Order.ABORT, RolloutState.RUNNING | RolloutState.PAUSED:
            return _abort(_say(rollout, VerdictKind.ABORT, said, weigh(rollout), now), said, now)
        case Order.ROLL_BACK, RolloutState.FINISHED if rollout.previous is not None:
            rollout, effects = _call_back(rollout, said, now)
            assert rollout.previous is not None
            return rollout, (*effects, SetBaseline(rollout.previous))
        case _:
            raise OrderRefused(rollout, event.order)


class OrderRefused(MusterError):
    """An order that the rollout's state does not allow."""

    def __init__(self, rollout: Rollout, order: Order) -> None:
        super().__init__(f"rollout {rollout.id} is {rollout.state.value}; it cannot {order.value} now")
        self.rollout = rollout.id
        self.state = rollout.state
        self.order = order


def _say(rollout: Rollout, kind: VerdictKind, reason: str, found: Evidence, now: float) -> Rollout:
    verdict = Verdict(at=now, wave=rollout.wave, kind=kind, reason=reason, evidence=found)
    return replace(rollout, verdicts=(*rollout.verdicts, verdict))


def _stratified(devices: Mapping[DeviceId, str], shuffle: Callable[[list[DeviceId]], None]) -> list[DeviceId]:
    """Return all devices so that every prefix holds each class in proportion, and each class comes early."""
    classes: dict[str, list[DeviceId]] = {}
    for device in sorted(devices):
        classes.setdefault(devices[device], []).append(device)
    placed: list[tuple[float, int, DeviceId]] = []
    for number, name in enumerate(sorted(classes)):
        members = classes[name]
        shuffle(members)
        placed += [(place / len(members), number, device) for place, device in enumerate(members)]
    return [device for _, _, device in sorted(placed)]
