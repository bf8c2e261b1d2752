"""What must hold in every fleet world, whatever goes wrong. Each is a class; its docstring is the promise.

All promises of the simulator are listed at the end: those of the whole devices too, which `invariants` defines.
They watch the shipped code from outside, by what changed alone, and count for themselves: none asks the code under
test whether it is right. A broken one raises `InvariantBroken`, which ends the run.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256 as digest_of
from math import isclose

from muster_agent.core.state import DeviceState, Phase, Update
from muster_controller.core.gate.evidence import HOLD, Terms, evidence
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.policy import Approval, Rate
from muster_controller.core.rollout.draft import terms
from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import (
    ENDED,
    Control,
    Member,
    Outcome,
    Rollout,
    RolloutState,
    Verdict,
)
from muster_controller.ports import Desired, Ledger, Wanted
from muster_shared.assignment import DAY_MINUTES, MaintenanceWindow
from muster_shared.ids import DeviceId, ModelName, RolloutId, Sha256
from muster_shared.messages import EventBody, FaultSeen, OutcomeReported, ReleaseRef, Step, StepReached
from muster_simulator.fleet.device import FleetDevice
from muster_simulator.fleet.registry import FleetRegistry
from muster_simulator.fleet.shape import is_named
from muster_simulator.fleet.truth import SEEN_UNUSED, Harm, Kind
from muster_simulator.fleet.watch import Watcher
from muster_simulator.invariants import INVARIANTS, Invariant, InvariantBroken

LATE_WAVE = 1_000_000
"""The wave of a device that gets a release after its rollout has finished: part of the protocol."""
BURST_S = 5.0
"""For so long a pace saves up: docs/policies.md."""
LATE_S = 4 * 3600.0
"""Longer than controllers are away and their clocks are wrong."""
SURE_DEVICES = 60
"""So many treated devices, 4 in 10 of which are harmed, show it: fewer than 2 in 10 has a chance of 1 in 2,000."""
HARM_SEEN = 0.4


@dataclass
class Scene:
    """What a promise may look at."""

    devices: Mapping[DeviceId, FleetDevice]
    ledger: Ledger
    registry: FleetRegistry
    selectors: Mapping[RolloutId, str]
    clock: Callable[[], float]
    """The controllers'."""
    true_time: Callable[[], float]
    owners: dict[ModelName, dict[DeviceId, set[RolloutId]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )
    """Which running rollouts of a model have a say over a device; kept by `OneRolloutADevice`."""
    complaints: set[tuple[DeviceId, Sha256]] = field(default_factory=set)
    """Which device said of which release that it does not do; kept by `Converges`."""
    faults: set[tuple[DeviceId, Sha256]] = field(default_factory=set)
    """Which device said that the files of which release are damaged; kept by `Converges`."""
    fleets: Callable[[], int] = lambda: 1
    """How many controllers believe to lead."""


class Promise(Watcher):
    """One promise. `name` is what a failing seed prints."""

    name = ""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def broken(self, detail: str) -> InvariantBroken:
        return InvariantBroken(self.name, detail)


# -- assignments -------------------------------------------------------------------------------------------------------


class CountersRise(Promise):
    """A device's assignment counter rises by one at a time and never falls, each counter is said once, nothing is said
    before it is in the ledger, and a device obeys only what was said to it. So a controller that takes the past for the
    present has no effect. (No world brings back a backup, raises a counter with a stolen key or changes the assignment
    key: there counters jump and may fall, by rules that the unit tests of both sides hold.)"""

    name = "F1-counters-rise"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._said: dict[DeviceId, dict[int, str]] = defaultdict(dict)
        self._known: dict[DeviceId, set[bytes]] = defaultdict(set)
        self._obeyed: dict[DeviceId, int] = {}

    def desired(self, before: Desired, after: Desired) -> None:
        if after.envelope == before.envelope:
            return
        said = self._said[after.device]
        if after.counter != before.counter + 1 or after.counter in said:
            raise self.broken(f"{after.device} was at counter {before.counter} and is given {after.counter}")
        found = digest_of(after.envelope)
        said[after.counter] = found.hexdigest()
        self._known[after.device].add(found.digest()[:8])

    def published(self, device: DeviceId, envelope: bytes) -> None:
        if digest_of(envelope).digest()[:8] not in self._known[device]:
            raise self.broken(f"{device} is sent an assignment that is not in the ledger")

    def committed(
        self, device: DeviceId, before: DeviceState, after: DeviceState, bodies: Sequence[EventBody], first: int
    ) -> None:
        if after.assignment == before.assignment:
            return
        if after.counter <= self._obeyed.get(device, 0):
            raise self.broken(f"{device} obeys counter {after.counter} after {self._obeyed[device]}")
        self._obeyed[device] = after.counter
        if self._said[device].get(after.counter) != after.assignment:
            raise self.broken(f"{device} obeys counter {after.counter}, which was never said so")


class OneRolloutADevice(Promise):
    """No device is in two running rollouts of one model."""

    name = "F2-one-rollout-a-device"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._touched: set[tuple[ModelName, DeviceId]] = set()

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        owners = self.scene.owners[after.model]
        ended = after.state in ENDED
        if before is None or (before.state in ENDED) != ended:
            names: Sequence[DeviceId] | frozenset[DeviceId] = tuple(after.members)
        else:
            names = changes.members
        for device in names:
            if not ended and _has_say(after.members[device]):
                owners[device].add(after.id)
                self._touched.add((after.model, device))
            else:
                owners[device].discard(after.id)

    def transacted(self) -> None:
        for model, device in self._touched:
            if len(self.scene.owners[model][device]) > 1:
                raise self.broken(f"{device} is in {' and '.join(sorted(self.scene.owners[model][device]))}")
        self._touched.clear()


class NeverFight(Promise):
    """What a device should run of a model is said by the rollout that has it, by no other, and by a decision of the
    past only where none has it. (To say once more what was said before, because its files rotted, moves nothing.)"""

    name = "F3-never-fight"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._said: list[tuple[DeviceId, ModelName, Wanted]] = []

    def desired(self, before: Desired, after: Desired) -> None:
        for name, wanted in after.models.items():
            was = before.models.get(name)
            is_again = was is not None and (was.rollout, was.assignment.release) == (
                wanted.rollout,
                wanted.assignment.release,
            )
            if was != wanted and not is_again:
                self._said.append((after.device, name, wanted))

    def transacted(self) -> None:
        said, self._said = self._said, []
        for device, name, wanted in said:
            others = self.scene.owners[name][device] - {wanted.rollout}
            if others:
                raise self.broken(
                    f"{wanted.rollout} tells {device} to run {name} {wanted.assignment.release.version},"
                    f" but {' and '.join(sorted(others))} has it"
                )


class NothingAfterAbort(Promise):
    """Once a rollout is aborted, it gives its release to nobody; only a newer rollout may."""

    name = "F4-nothing-after-abort"

    def desired(self, before: Desired, after: Desired) -> None:
        for name, wanted in after.models.items():
            if before.models.get(name) == wanted:
                continue
            rollout = self.scene.ledger.rollout(wanted.rollout)
            if rollout is None:
                raise self.broken(f"{after.device} is told by {wanted.rollout}, which nobody knows")
            is_off = rollout.state in (RolloutState.ABORTING, RolloutState.ABORTED)
            is_own = wanted.assignment.release.bundle_sha256 == rollout.release.bundle_sha256
            if rollout.at_once and (rollout.previous is None or rollout.reason.startswith("superseded")):
                continue  # What was decided at once stays decided when nothing, or nothing newer, came of the other.
            if is_off and is_own and _home(rollout, after.device) != wanted.assignment.release:
                raise self.broken(f"{after.device} is given the release of {rollout.id}, which is aborted")


class TouchedComeHome(Promise):
    """Before a rollout that is called back has ended, it has told every device that it touched, in flight or not (with
    `stop`: in flight), what it ran before, unless a newer decision has the device."""

    name = "F5-touched-come-home"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._called: dict[RolloutId, frozenset[DeviceId]] = {}
        self._ended: list[Rollout] = []

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        if before is None or after.reason.startswith("superseded"):
            return
        if after.aborting_at is not None and before.aborting_at != after.aborting_at:
            only_in_flight = after.policy.on_abort == "stop" and before.state is not RolloutState.FINISHED
            self._called[after.id] = frozenset(
                device
                for device, member in after.members.items()
                if member.assigned_at is not None
                and (member.outcome is Outcome.PENDING or not only_in_flight)
                and (before.state is RolloutState.FINISHED or after.policy.on_abort != "freeze")
            )
        if after.state is RolloutState.ABORTED:
            self._ended.append(after)

    def transacted(self) -> None:
        ended, self._ended = self._ended, []
        for rollout in ended:
            for device in sorted(self._called.pop(rollout.id, frozenset())):
                home, wanted = _home(rollout, device), self.scene.ledger.desired(device).models.get(rollout.model)
                if home is None or wanted is None or not _has_say(rollout.members[device]):
                    continue
                if wanted.rollout == rollout.id and wanted.assignment.release not in (home, rollout.previous):
                    raise self.broken(f"{rollout.id} was called back, but {device} was never told to go home")


class GoingBackIsFree(Promise):
    """A device that is called back to what it ran before downloads nothing: it is in standby."""

    name = "F6-going-back-is-free"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._ran_before: dict[tuple[DeviceId, ModelName], ReleaseRef] = {}
        self._rotten: set[tuple[DeviceId, Sha256]] = set()

    def rotted(self, device: DeviceId, bundle: Sha256) -> None:
        self._rotten.add((device, bundle))

    def committed(
        self, device: DeviceId, before: DeviceState, after: DeviceState, bodies: Sequence[EventBody], first: int
    ) -> None:
        for name, model in after.models.items():
            was = before.models.get(name)
            if was is None or was.slots is model.slots or was.slots.active in (None, model.slots.active):
                continue
            if model.slots.active is None or (model.slots.active == was.slots.standby and model.slots.standby is None):
                self._ran_before.pop((device, name), None)  # It went back by itself, and dropped what was bad.
            else:
                assert was.slots.active is not None
                self._ran_before[device, name] = was.slots.active

    def asked(self, device: DeviceId, bundle: Sha256) -> None:
        if (device, bundle) in self._rotten:
            return
        for name, model in self.scene.devices[device].state.models.items():
            update, before = model.update, self._ran_before.get((device, name))
            if update is None or update.release.bundle_sha256 != bundle or update.watch is not None:
                continue
            if before is not None and before.bundle_sha256 == bundle:
                raise self.broken(f"{device} downloads {name} {before.version} again, which it just had")


# -- the gate ----------------------------------------------------------------------------------------------------------


@dataclass
class _Count:
    treated: int = 0
    treated_bad: int = 0
    controls: int = 0
    controls_bad: int = 0
    compared: int = 0
    disagreed: int = 0


@dataclass
class _Counts:
    strata: dict[tuple[int, str], _Count] = field(default_factory=lambda: defaultdict(_Count))
    open: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    in_flight: int = 0
    released: int = 0

    def add(self, each: Member | Control | None, sign: int) -> tuple[int, str] | None:
        if each is None or each.wave is None:
            return None
        self.open[each.wave] += sign * (each.outcome is Outcome.PENDING)
        key = (each.wave, each.device_class)
        is_treated = isinstance(each, Member)
        if is_treated and each.assigned_at is not None:
            self.in_flight += sign * (each.outcome is Outcome.PENDING)
            self.released += sign
        if each.assigned_at is None or each.outcome is Outcome.LEFT:
            return key
        count, bad = self.strata[key], each.outcome is Outcome.BAD
        if isinstance(each, Member):
            count.treated += sign
            count.treated_bad += sign * bad
            count.compared += sign * (each.disagreed is not None)
            count.disagreed += sign * bool(each.disagreed)
        else:
            count.controls += sign
            count.controls_bad += sign * bad
        return key


class CountsAreTrue(Promise):
    """What the gate counts is what a recount of the devices gives: by wave and class, open, under way, told."""

    name = "F7-counts-are-true"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._counts: dict[RolloutId, _Counts] = {}
        self._saves: dict[RolloutId, int] = defaultdict(int)

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        counts = self._counts.setdefault(after.id, _Counts())
        keys: set[tuple[int, str] | None] = set()
        for device in changes.members:
            counts.add(None if before is None else before.members.get(device), -1)
            keys.add(counts.add(after.members[device], 1))
        for key in changes.controls:
            counts.add(None if before is None else before.controls.get(key), -1)
            keys.add(counts.add(after.controls[key], 1))
        self._saves[after.id] += 1
        if after.verdicts != (before.verdicts if before else ()):
            keys |= counts.strata.keys()
        for found in keys:
            if found is not None:
                self._compare(after, found, counts.strata[found])
        opened = {wave: number for wave, number in counts.open.items() if number}
        said = (after.in_flight, after.released, dict(after.open))
        if said != (counts.in_flight, counts.released, opened):
            raise self.broken(f"{after.id} counts {said}, not {(counts.in_flight, counts.released, opened)}")
        if after.state in ENDED:
            self._recount(after)

    def _compare(self, after: Rollout, key: tuple[int, str], count: _Count) -> None:
        stored = after.strata.get(key)
        found = (
            (0, 0, 0, 0, 0, 0)
            if stored is None
            else (
                stored.treated,
                stored.treated_bad,
                stored.controls,
                stored.controls_bad,
                stored.compared,
                stored.disagreed,
            )
        )
        mine = (count.treated, count.treated_bad, count.controls, count.controls_bad, count.compared, count.disagreed)
        if found != mine:
            raise self.broken(f"{after.id} counts {found} of wave {key[0]} of {key[1]}, but there are {mine}")

    def _recount(self, rollout: Rollout) -> None:
        """Count everything once more: what was never named as changed would be missed otherwise."""
        counts = _Counts()
        for member in rollout.members.values():
            counts.add(member, 1)
        for control in rollout.controls.values():
            counts.add(control, 1)
        for key in sorted(counts.strata.keys() | rollout.strata.keys()):
            self._compare(rollout, key, counts.strata[key])


class AnyoneCanRecompute(Promise):
    """E of every verdict is what its stored counts give by the policy's terms, and those counts are those of the
    devices at that time."""

    name = "F8-anyone-can-recompute"

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        known = 0 if before is None else len(before.verdicts)
        for verdict in after.verdicts[known:]:
            asked: Terms = terms(after)
            again = evidence(verdict.evidence.strata, asked)
            for what, mine, said in (
                ("E", again.e, verdict.evidence.e),
                ("hold E", again.hold_e, verdict.evidence.hold_e),
                ("F1", again.e_controls, verdict.evidence.e_controls),
                ("F2", again.e_objective, verdict.evidence.e_objective),
            ):
                if not isclose(mine, said, rel_tol=1e-9):
                    raise self.broken(f"{after.id}: {what} is stored as {said}, its counts give {mine}")
            for stratum in verdict.evidence.strata:
                now = after.strata.get((stratum.wave, stratum.device_class))
                if stratum.wave > verdict.wave or verdict.kind is VerdictKind.ABORT:
                    continue
                if now is None or now.treated < stratum.treated or now.treated_bad != stratum.treated_bad:
                    raise self.broken(f"{after.id}: a verdict counts {stratum}, but there are {now}")


class NoPromotionOnSilence(Promise):
    """A wave is promoted only when each of its devices truthfully said that it does well, or counts as bad, enough do
    well, and E is below what holds; an operator may skip, by name."""

    name = "F9-no-promotion-on-silence"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._said_good: set[tuple[RolloutId, int, DeviceId]] = set()

    def committed(
        self, device: DeviceId, before: DeviceState, after: DeviceState, bodies: Sequence[EventBody], first: int
    ) -> None:
        for body in bodies:
            if isinstance(body, OutcomeReported) and body.good:
                self._said_good.add((body.rollout, body.wave, device))

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        if before is None or after.at_once:
            return
        for device in changes.members:
            member, was = after.members[device], before.members.get(device)
            if member.outcome is Outcome.GOOD and (was is None or was.outcome is not Outcome.GOOD):
                assert member.wave is not None
                if (after.id, member.wave, device) not in self._said_good:
                    raise self.broken(f"{after.id}: {device} counts as good in wave {member.wave}, but never said so")
        for verdict in after.verdicts[len(before.verdicts) :]:
            if verdict.kind is VerdictKind.PROMOTE and after.confirmed_wave < verdict.wave:
                self._promoted(after, verdict)

    def _promoted(self, after: Rollout, verdict: Verdict) -> None:
        wave = [each for each in after.members.values() if each.wave == verdict.wave and each.assigned_at is not None]
        wave = [each for each in wave if each.outcome is not Outcome.LEFT]
        for member in wave:
            if member.outcome is Outcome.PENDING:
                raise self.broken(f"{after.id}: wave {verdict.wave} was promoted before {member.device} said anything")
        good = sum(member.outcome is Outcome.GOOD for member in wave)
        if good < after.policy.success_required * len(wave):
            raise self.broken(f"{after.id}: wave {verdict.wave} was promoted with {good} of {len(wave)} good")
        if verdict.evidence.hold_e >= HOLD:
            raise self.broken(f"{after.id}: wave {verdict.wave} was promoted with E = {verdict.evidence.hold_e:.1f}")


class WavesInTurn(Promise):
    """A wave begins, and a rollout finishes, only after the wave before was promoted, has soaked, and everybody has
    approved who must."""

    name = "F10-waves-in-turn"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._approved: dict[RolloutId, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        if len(after.approvals) > (0 if before is None else len(before.approvals)):
            self._approved[after.id][after.wave].add(after.approvals[-1].by)
        if before is None or after.at_once:
            return
        finished = after.state is RolloutState.FINISHED and before.state is not RolloutState.FINISHED
        if after.wave == before.wave and not finished:
            return
        if before.wave >= 0:
            promoted = {each.wave for each in after.verdicts if each.kind is VerdictKind.PROMOTE}
            if before.wave not in promoted:
                raise self.broken(f"{after.id} went on after wave {before.wave}, which was never promoted")
            skipped = after.confirmed_wave >= before.wave
            passed_at = next(
                each.at for each in after.verdicts if each.kind is VerdictKind.PROMOTE and each.wave == before.wave
            )
            began_at = after.ended_at if finished else after.wave_began_at
            assert began_at is not None
            if not skipped and began_at < passed_at + after.policy.soak_s - 1e-3:
                raise self.broken(f"{after.id} went on {began_at - passed_at:.0f} s after wave {before.wave} passed")
        names = self._approved[after.id][before.wave]
        number = "finish" if finished else str(after.wave + 1)
        for approval in after.policy.approvals:
            if str(approval.before) in ("every", number) and _missing(approval, names, after.created_by):
                raise self.broken(f"{after.id} went on to {number} with the approval of {sorted(names)} alone")


class PaceIsKept(Promise):
    """No more devices are told than the policy's rate and concurrency allow, at no moment; late ones neither."""

    name = "F11-pace-is-kept"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._buckets: dict[tuple[RolloutId, bool], tuple[float, float]] = {}
        self._late: dict[RolloutId, int] = defaultdict(int)

    def unsteady(self) -> None:
        self._buckets.clear()

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        if before is None or after.at_once:
            return
        told = _newly_told(before, after, changes)
        if not told:
            return
        if after.policy.concurrency is not None:
            limit = _share(after.policy.concurrency, len(after.members))
            under_way = sum(
                each.assigned_at is not None and each.outcome is Outcome.PENDING for each in after.members.values()
            )
            if under_way > limit:
                raise self.broken(f"{after.id} has {under_way} under way; {limit} are allowed")
        if after.policy.rate is not None:
            self._take(after, len(told), before.released, after.released, late=False)

    def desired(self, before: Desired, after: Desired) -> None:
        for name, wanted in after.models.items():
            watch = wanted.assignment.watch
            if before.models.get(name) == wanted or watch is None or watch.wave != LATE_WAVE:
                continue
            rollout = self.scene.ledger.rollout(wanted.rollout)
            if rollout is not None and rollout.policy.rate is not None and not rollout.at_once:
                self._take(rollout, 1, rollout.released, rollout.released, late=True)

    def _take(self, rollout: Rollout, count: int, released: int, released_after: int, *, late: bool) -> None:
        assert rollout.policy.rate is not None
        per_s = max(_per_minute(rollout.policy.rate, each) for each in (released, released_after)) / 60
        per_s *= self.scene.fleets() if late else 1
        most = max(1.0, per_s * BURST_S) + 1e-6
        now = self.scene.true_time()
        credit, at = self._buckets.get((rollout.id, late), (most, now))
        credit = min(most, credit + (now - at) * per_s)
        credit -= count
        if credit < -1e-6:
            raise self.broken(f"{rollout.id} tells {count} {'late ' if late else ''}devices, {-credit:.2f} too many")
        self._buckets[rollout.id, late] = (credit, now)


class HarmIsStopped(Promise):
    """A device that a release truly harms never counts as good for it; and one that harms four devices in ten is
    stopped by the first waves that together hold sixty devices, unless an operator lets a wave pass."""

    name = "F12-harm-is-stopped"

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        harm = self.scene.registry.harms.get(after.release.bundle_sha256, Harm())
        if before is None or harm.kind in (Kind.GOOD, Kind.SLOWER) or after.at_once:
            return
        for device in changes.members:
            member, was = after.members[device], before.members.get(device)
            turned_good = member.outcome is Outcome.GOOD and (was is None or was.outcome is not Outcome.GOOD)
            if turned_good and self._is_seen(after, device, harm):
                raise self.broken(f"{after.id}: {device}, which it harms ({harm.kind.value}), counts as good")
        if after.wave > before.wave:
            self._is_exposed(after, harm)

    def _is_seen(self, rollout: Rollout, device: DeviceId, harm: Harm) -> bool:
        it = self.scene.devices[device]
        if harm.on(rollout.release.bundle_sha256, device, it.nature.hardware.device_class) is Kind.GOOD:
            return False
        if harm.kind is Kind.BRICKING and it.boots > 1:
            return False  # Whoever was visited is watched from then on.
        used = it.nature.requests_per_s * rollout.policy.window_max_s
        return harm.kind in SEEN_UNUSED or used >= 2 * rollout.policy.requests_min

    def _is_exposed(self, after: Rollout, harm: Harm) -> None:
        if after.confirmed_wave >= 0 or harm.device_class is not None or harm.share <= HARM_SEEN:
            return
        if after.policy.success_required < 0.8:
            return
        told, waves = 0, 0
        for wave in range(after.wave):
            told += sum(each.wave == wave and each.assigned_at is not None for each in after.members.values())
            waves += 1
        if told >= SURE_DEVICES:
            raise self.broken(
                f"{after.id}, which harms {harm.share:.0%} ({harm.kind.value}), begins wave {after.wave}"
                f" after {told} devices in {waves} waves"
            )


# -- who is told -------------------------------------------------------------------------------------------------------


class OnlyThoseOfTheWave(Promise):
    """While a rollout runs, its release is given to nobody but devices of its waves, which are there, and are in its
    group as the controller knows them then; no control, no late joiner, nobody who is offline."""

    name = "F13-only-those-of-the-wave"

    def saved(self, before: Rollout | None, after: Rollout, changes: Changes) -> None:
        if before is None or after.at_once:
            return
        selector = self.scene.selectors.get(after.id, "")
        for member in _newly_told(before, after, changes):
            device = self.scene.ledger.device(member.device)
            if device is None or not device.online:
                raise self.broken(f"{after.id} tells {member.device}, which is offline")
            if device.twin is None or not is_named(selector, device.twin.labels):
                raise self.broken(f"{after.id} tells {member.device}, which is not in its group {selector!r}")
            control = after.controls.get((after.wave, member.device))
            if control is not None and control.outcome is Outcome.PENDING and control.assigned_at is not None:
                raise self.broken(f"{after.id} tells {member.device}, which it holds back")

    def desired(self, before: Desired, after: Desired) -> None:
        for name, wanted in after.models.items():
            if before.models.get(name) == wanted:
                continue
            rollout, watch = self.scene.ledger.rollout(wanted.rollout), wanted.assignment.watch
            if (
                rollout is None
                or rollout.at_once
                or rollout.release.bundle_sha256 != wanted.assignment.release.bundle_sha256
            ):
                continue
            member = rollout.members.get(after.device)
            if watch is not None and watch.wave == LATE_WAVE:
                if rollout.state is not RolloutState.FINISHED:
                    raise self.broken(f"{after.device} is given {name} before {rollout.id} has passed")
                if member is None and rollout.policy.late_joiners == "never":
                    raise self.broken(f"{after.device} came late, and {rollout.id} is not for those")
            elif watch is None and rollout.state not in (RolloutState.RUNNING, RolloutState.PAUSED):
                continue  # A calling back, or what was decided at once.
            elif member is None or member.wave is None or member.assigned_at is None:
                raise self.broken(f"{after.device} is given {name} by {rollout.id} before its wave")


class WindowsAreKept(Promise):
    """A device changes what serves only within the maintenance windows of the policy, by its own clock on the wall;
    called back it does so at once."""

    name = "F14-windows-are-kept"

    def committed(
        self, device: DeviceId, before: DeviceState, after: DeviceState, bodies: Sequence[EventBody], first: int
    ) -> None:
        for body in bodies:
            if not isinstance(body, StepReached) or body.step not in (Step.SWITCHED, Step.ROLLED_BACK):
                continue
            was = before.models.get(body.release.model)
            if was is None or was.update is None or was.update.activation is None or was.slots.active is None:
                continue
            if was.update.phase is Phase.PROBATION or not was.update.activation.windows:
                continue
            it, slack_s = self.scene.devices[device], _slack_s(was.update)
            if self.scene.true_time() - it.set_at <= slack_s:
                continue
            now = it.clock() + it.nature.utc_offset_s
            if not any(_is_open(was.update.activation.windows, at) for at in (now, now - slack_s)):
                day, minute = it.local()
                raise self.broken(
                    f"{device} changes to {body.release.version} on day {day} at {minute // 60:02d}:{minute % 60:02d}"
                )


# -- the end -----------------------------------------------------------------------------------------------------------


class NothingLost(Promise):
    """Every event that a living device committed is in the ledger in the end."""

    name = "F15-nothing-lost"

    def ended(self) -> None:
        ledger = self.scene.ledger
        for device, it in self.scene.devices.items():
            if it.is_dead:
                continue
            for number in range(1, it.numbered + 1):
                if not ledger.has_event(f"{device}.{number}"):  # type: ignore[arg-type]  # As the device names it.
                    raise self.broken(f"event {number} of {it.numbered} of {device} never arrived")


class RolloutsEnd(Promise):
    """Once faults have stopped and people attend, every rollout ends. (The world says when it is too late.)"""

    name = "F16-rollouts-end"


class SilenceCounts(Promise):
    """A device that is silent until its deadline, treated or held back, counts as bad then; nobody is waited for beyond
    that."""

    name = "F20-silence-counts"

    def looked(self) -> None:
        late_at = self.scene.clock() - LATE_S
        for rollout in self.scene.ledger.rollouts(running=True):
            if rollout.state not in (RolloutState.RUNNING, RolloutState.PAUSED):
                continue
            each: Member | Control
            for each in (*rollout.members.values(), *rollout.controls.values()):
                if each.outcome is not Outcome.PENDING or each.deadline_at is None or each.deadline_at > late_at:
                    continue
                if isinstance(each, Control) or each.retry_at is None:
                    raise self.broken(
                        f"{rollout.id} waits for {each.device} {-each.deadline_at + late_at:.0f} s too long"
                    )


class Converges(Promise):
    """Once faults have stopped, every living device runs what the newest decision for it says, or has said why not
    (that the files rotted is a reason only for what was aborted since, which nobody is given again); and a good
    release reaches all of them. (The world looks.)"""

    name = "F17-converges"

    def committed(
        self, device: DeviceId, before: DeviceState, after: DeviceState, bodies: Sequence[EventBody], first: int
    ) -> None:
        for body in bodies:
            match body:
                case StepReached(step=Step.FAILED, release=release) | OutcomeReported(good=False, release=release):
                    self.scene.complaints.add((device, release.bundle_sha256))
                case FaultSeen(model=name) if name is not None and name in before.models:
                    lost = before.models[name].slots.active
                    if lost is not None:
                        self.scene.faults.add((device, lost.bundle_sha256))
                case _:
                    pass


class NeverSpins(Promise):
    """No part keeps another busy at one moment without end. (The world counts.)"""

    name = "F18-never-spins"


class NothingEscapes(Promise):
    """No exception leaves the fleet or the update core, but those that they declare. (The world catches.)"""

    name = "F19-nothing-escapes"


PROMISES: tuple[type[Promise], ...] = (
    CountersRise,
    OneRolloutADevice,
    NeverFight,
    NothingAfterAbort,
    TouchedComeHome,
    GoingBackIsFree,
    CountsAreTrue,
    AnyoneCanRecompute,
    NoPromotionOnSilence,
    WavesInTurn,
    PaceIsKept,
    HarmIsStopped,
    OnlyThoseOfTheWave,
    WindowsAreKept,
    NothingLost,
    RolloutsEnd,
    Converges,
    NeverSpins,
    NothingEscapes,
    SilenceCounts,
)
_LISTED: tuple[type[Invariant] | type[Promise], ...] = (*INVARIANTS, *PROMISES)
ALL: Mapping[str, str] = {each.name: " ".join((each.__doc__ or "").split()) for each in _LISTED}
"""Every promise of both worlds, by name."""


# ----------------------------------------------------------------------------------------------------------------------


def _home(rollout: Rollout, device: DeviceId) -> ReleaseRef | None:
    """Return what an abort brings `device` back to."""
    member = rollout.members.get(device)
    own = None if member is None else member.previous
    return own if own is not None and own.bundle_sha256 != rollout.release.bundle_sha256 else rollout.previous


def _has_say(member: Member) -> bool:
    """Return whether the rollout has this device still: it did not leave, and no other took it over."""
    return Outcome.LEFT not in (member.outcome, member.second)


def _newly_told(before: Rollout, after: Rollout, changes: Changes) -> list[Member]:
    told: list[Member] = []
    for device in changes.members:
        member, was = after.members[device], before.members.get(device)
        if member.assigned_at is not None and (was is None or was.assigned_at is None):
            told.append(member)
    return told


def _missing(approval: Approval, names: set[str], creator: str) -> bool:
    counting = names & set(approval.by) if approval.by else names - {creator}
    return len(counting) < approval.count


def _share(share: int | str, devices: int) -> int:
    return share if isinstance(share, int) else max(1, round(float(share.rstrip("%")) * devices / 100))


def _per_minute(rate: Rate, released: int) -> float:
    return min(rate.per_minute * rate.factor ** min(60, released // rate.every), rate.per_minute_max or 1e9)


def _is_open(windows: Sequence[MaintenanceWindow], local_s: float) -> bool:
    minutes = int(local_s // 60)
    day, minute = (minutes // DAY_MINUTES + 3) % 7, minutes % DAY_MINUTES  # 1970 began on a Thursday.
    for window in windows:
        today = day in window.days and 0 <= minute - window.start_minute < window.minutes
        over_night = minute + DAY_MINUTES - window.start_minute < window.minutes and (day - 1) % 7 in window.days
        if today or over_night:
            return True
    return False


def _slack_s(update: Update) -> float:
    """Return how long the last steps take once a window was found open: an answer, a self-test, a trial."""
    return 180.0 + (0.0 if update.trial is None else update.trial.seconds_max + 120.0)
