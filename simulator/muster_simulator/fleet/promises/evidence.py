"""What the gate judges by: its counts are true, and whoever has them comes to the same E."""

from collections import defaultdict
from dataclasses import dataclass, field
from math import isclose

from muster_controller.core.gate.evidence import Terms, evidence
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.rollout.draft import terms
from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import ENDED, Control, Member, Outcome, Rollout
from muster_shared.ids import RolloutId
from muster_simulator.fleet.promises.scene import Promise, Scene


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
