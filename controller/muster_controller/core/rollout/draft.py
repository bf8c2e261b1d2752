"""The draft: one rollout while one event is being taken, with the counts that follow from its devices kept true.

    open(rollout) ─ put, assign, say, abort ... ─▶ done() ─▶ Advanced(rollout, effects, changes)

It is the only mutable thing of the core, and lives no longer than one call of `machine.advance`. It decides nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import attrgetter

from muster_controller.core.gate.evidence import AGREEMENT, FAILURES, LATENCY, Evidence, Terms, evidence, scaled
from muster_controller.core.gate.strata import Stratum, VerdictKind, latency_bin
from muster_controller.core.rollout.events import Advanced, Assign, Changes, Effect, Plot, SetBaseline
from muster_controller.core.rollout.state import (
    Control,
    ControlKey,
    Member,
    Outcome,
    Rollout,
    Verdict,
    counted,
    due_at,
    is_in_flight,
    is_settled,
)
from muster_shared.assignment import Watch
from muster_shared.ids import DeviceId
from muster_shared.messages import ReleaseRef

PLOT_RATIO = 1.05  # A chart shows steps of this size, ...
PLOT_SHARE = 0.02  # ... and that reports came in, in steps of this share of the devices.


class Draft:
    """What `rollout` is becoming at `now` (Unix seconds)."""

    def __init__(self, rollout: Rollout, now: float) -> None:
        self.now = now
        self.rollout = rollout
        """The header as it is becoming; of devices and counts ask the draft."""
        self._before = rollout
        self._members = rollout.members
        self._controls = rollout.controls
        self.strata: dict[tuple[int, str], Stratum] = dict(rollout.strata)
        self.open: dict[int, int] = dict(rollout.open)
        self.due: dict[float, int] = dict(rollout.due)
        self.failures: dict[str, int] = dict(rollout.failures)
        self.in_flight = rollout.in_flight
        self.released = rollout.released
        self.settled = rollout.settled
        self._effects: list[Effect] = []
        self._changed_members: set[DeviceId] = set()
        self._changed_controls: set[ControlKey] = set()
        self._evidence: Evidence | None = None
        """Of `strata` as they are now; None: to be reckoned."""
        self._is_counted_anew = False

    # -- reading -----------------------------------------------------------------------------------------------------

    def member(self, device: DeviceId) -> Member | None:
        return self._members.get(device)

    def members(self, fits: Callable[[Member], bool]) -> list[Member]:
        """Return those that fit, in order. It looks at all of them: not for every event."""
        return sorted(filter(fits, self._members.values()), key=_position)

    def members_after(self, position: int) -> list[Member]:
        """Return those behind `position`, in order. As `members`, at a third of its cost."""
        return sorted([member for member in self._members.values() if member.position > position], key=_position)

    def control(self, key: ControlKey) -> Control | None:
        return self._controls.get(key)

    def controls(self, fits: Callable[[Control], bool]) -> list[Control]:
        """Return those that fit, in order. It looks at all of them: not for every event."""
        return sorted(filter(fits, self._controls.values()), key=lambda control: (control.wave, control.device))

    def treated(self, wave: int) -> int:
        """Return how many devices of `wave` were told and are counted."""
        return sum(each.treated for (number, _), each in self.strata.items() if number == wave)

    def is_due(self) -> bool:
        """Return whether anybody's deadline or new attempt has come."""
        return any(count and at <= self.now for at, count in self.due.items())

    def due_next(self) -> float | None:
        """Return the next deadline, or new attempt, that is still to come."""
        return min((at for at, count in self.due.items() if count and at > self.now), default=None)

    def weigh(self) -> Evidence:
        """Return the evidence of what was reported so far."""
        if self._evidence is None:
            self._evidence = evidence(tuple(self.strata[key] for key in sorted(self.strata)), terms(self.rollout))
        return self._evidence

    @property
    def is_counted_anew(self) -> bool:
        """Whether this event changed what the gate counts."""
        return self._is_counted_anew

    # -- changing ----------------------------------------------------------------------------------------------------

    def set(self, **changes: object) -> None:
        """Change fields of the header."""
        self.rollout = _with(self.rollout, changes)

    def wake(self, at: float) -> None:
        """Have the next tick not later than `at`."""
        if at < self.rollout.due_at:
            self.set(due_at=at)

    def put(self, member: Member) -> None:
        before = self._members.get(member.device)
        if before == member:
            return
        self._members = self._members.set(member.device, member)
        self._changed_members.add(member.device)
        self._recount(before, member)
        self.in_flight += is_in_flight(member) - (before is not None and is_in_flight(before))
        self.released += member.is_touched - (before is not None and before.is_touched)
        for each, sign in ((before, -1), (member, 1)):
            if each is not None and is_settled(each):
                self.settled += sign
                if each.outcome is Outcome.BAD:
                    self.failures[each.cause] = self.failures.get(each.cause, 0) + sign

    def put_control(self, control: Control) -> None:
        key = (control.wave, control.device)
        before = self._controls.get(key)
        if before == control:
            return
        self._controls = self._controls.set(key, control)
        self._changed_controls.add(key)
        self._recount(before, control)

    def drop_control(self, control: Control) -> None:
        """Count a held-back device no longer: it has left. Its partner is set against those that are there."""
        self.put_control(replace(control, outcome=Outcome.LEFT))
        partner = self.member(control.partner)
        if partner is not None and partner.wave == control.wave:
            self.pair(partner)

    def pair(self, member: Member) -> Member:
        """Set the latency of a treated device against that of its controls, once all of them have said theirs."""
        if member.is_paired or member.latency is None or not is_settled(member) or member.wave is None:
            return member
        wave = member.wave
        partners = [self._controls.get((wave, device)) for device in member.controls]
        if any(partner is not None and partner.outcome is Outcome.PENDING for partner in partners):
            return member
        found = latency_bin(member.latency, [each.latency for each in partners if each and each.latency is not None])
        member = replace(member, is_paired=True)
        self.put(member)
        if found is not None:
            key = (wave, member.device_class)
            bins = dict(self.strata[key].latency)
            bins[found] = bins.get(found, 0) + 1
            self._set_stratum(replace(self.strata[key], latency=tuple(sorted(bins.items()))))
        return member

    def assign(self, device: DeviceId, release: ReleaseRef, watch: Watch | None) -> None:
        self._effects.append(Assign(device, release, watch))

    def set_baseline(self, release: ReleaseRef) -> None:
        self._effects.append(SetBaseline(release))

    def say(self, kind: VerdictKind, reason: str, found: Evidence | None = None) -> None:
        """Keep a verdict with the counts behind it."""
        verdict = Verdict(self.now, self.rollout.wave, kind, reason, self.weigh() if found is None else found)
        self.set(verdicts=(*self.rollout.verdicts, verdict))

    # ----------------------------------------------------------------------------------------------------------------

    def done(self) -> Advanced:
        """Return what came of it."""
        before = self._before
        changes = Changes(
            frozenset(each for each in self._changed_members if self._members[each] != before.members.get(each)),
            frozenset(each for each in self._changed_controls if self._controls[each] != before.controls.get(each)),
        )
        self._plot()
        if self.rollout is before and not self._effects and changes == Changes():
            return Advanced(before)
        after = _with(
            self.rollout,
            {
                "members": self._members,
                "controls": self._controls,
                "strata": self.strata,
                "open": {wave: count for wave, count in self.open.items() if count},
                "due": {at: count for at, count in self.due.items() if count},
                "in_flight": self.in_flight,
                "released": self.released,
                "settled": self.settled,
                "failures": {cause: count for cause, count in self.failures.items() if count},
            },
        )
        return Advanced(after, tuple(self._effects), changes)

    def _recount(self, before: Member | Control | None, after: Member | Control) -> None:
        """Keep the counts true when `before` becomes `after`."""
        for each, sign in ((before, -1), (after, 1)):
            if each is not None and each.wave is not None and each.outcome is Outcome.PENDING:
                self.open[each.wave] = self.open.get(each.wave, 0) + sign
            if each is not None and (at := due_at(each)) is not None:
                self.due[at] = self.due.get(at, 0) + sign
        if before is not None and _weight(before) == _weight(after):
            return
        for each, sign in ((before, -1), (after, 1)):
            if each is not None and each.wave is not None and each.assigned_at is not None:
                key = (each.wave, each.device_class)
                self._set_stratum(counted(self.strata.get(key) or Stratum(*key, 0, 0, 0, 0), each, sign))

    def _set_stratum(self, stratum: Stratum) -> None:
        key = (stratum.wave, stratum.device_class)
        if stratum.treated or stratum.controls or stratum.latency:
            self.strata[key] = stratum
        else:
            self.strata.pop(key, None)
        self._evidence = None
        self._is_counted_anew = True

    def _plot(self) -> None:
        """Add a point to the chart when the evidence has moved, enough have reported, or the state has changed."""
        before, after = self._before, self.rollout
        step = max(1.0, PLOT_SHARE * len(before.members))
        if (
            after.state is before.state
            and after.wave == before.wave
            and int(self.settled / step) == int(before.settled / step)
            and not (self._is_counted_anew and _moved(before.plotted_e, self.weigh().e))
        ):
            return
        found = self.weigh()
        metrics = {name: each.e for name, each in sorted(found.metrics.items())}
        self.set(plotted_e=found.e)
        treated, bad = sums(self.strata)
        self._effects.append(Plot(self.now, after.wave, found.e, metrics, treated, self.settled, bad))


_position = attrgetter("position")


def _with(rollout: Rollout, changes: Mapping[str, object]) -> Rollout:
    """Return `rollout` with `changes`, as `dataclasses.replace`, which takes longer than most events."""
    found = object.__new__(Rollout)
    found.__dict__.update(rollout.__dict__)
    found.__dict__.update(changes)
    return found


def _weight(each: Member | Control) -> tuple[object, ...]:
    """Return all that a stratum counts of a device."""
    disagreed = each.disagreed if isinstance(each, Member) else None
    return each.wave, each.assigned_at is None, each.outcome is Outcome.LEFT, each.outcome is Outcome.BAD, disagreed


def _moved(before: float, after: float) -> bool:
    return not before / PLOT_RATIO < after < before * PLOT_RATIO


def terms(rollout: Rollout) -> Terms:
    """Return what the gate goes by: the policy, and whether there can be controls at all."""
    policy = rollout.policy
    has_controls = rollout.previous is not None and policy.controls_per_device > 0
    in_use = {
        FAILURES: policy.weights.failures,
        LATENCY: policy.weights.latency if has_controls else 0.0,
        AGREEMENT: policy.weights.agreement if policy.trial is not None else 0.0,
    }
    return Terms(
        alpha=policy.alpha,
        failure_objective=policy.failure_objective,
        tolerance=policy.tolerance,
        latency_tolerance=policy.latency_tolerance,
        disagreement_objective=policy.disagreement_objective,
        weights=scaled(in_use),  # Of latency alone, with no controls to set it against, failures are left.
        has_controls=has_controls,
    )


def weigh(rollout: Rollout) -> Evidence:
    """Return the evidence of what was reported so far."""
    return evidence(tuple(rollout.strata[key] for key in sorted(rollout.strata)), terms(rollout))


def sums(strata: Mapping[tuple[int, str], Stratum]) -> tuple[int, int]:
    """Return how many devices were treated, and how many of them did badly."""
    return sum(each.treated for each in strata.values()), sum(each.treated_bad for each in strata.values())
