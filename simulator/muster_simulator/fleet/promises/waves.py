"""How a rollout goes on: on what was said, one wave after the other, at its pace; and that harm ends it."""

from collections import defaultdict
from collections.abc import Sequence

from muster_agent.core.state import DeviceState
from muster_controller.core.gate.evidence import HOLD
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.policy import Approval, Rate
from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import Outcome, Rollout, RolloutState, Verdict
from muster_controller.ports import Desired
from muster_shared.ids import DeviceId, RolloutId
from muster_shared.messages import EventBody, OutcomeReported
from muster_simulator.fleet.promises.scene import LATE_WAVE, Promise, Scene, newly_told
from muster_simulator.fleet.truth import SEEN_UNUSED, Harm, Kind

BURST_S = 5.0
"""For so long a pace saves up: docs/policies.md."""
SURE_DEVICES = 60
"""So many treated devices, 4 in 10 of which are harmed, show it: fewer than 2 in 10 has a chance of 1 in 2,000."""
HARM_SEEN = 0.4


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
        if after.wave <= before.wave and not finished:
            return  # Of a wave of which nobody is left nothing is said: it begins again.
        passed = min(before.wave, after.wave) if finished else before.wave
        if passed >= 0:
            promoted = {each.wave for each in after.verdicts if each.kind is VerdictKind.PROMOTE}
            if passed not in promoted:
                raise self.broken(f"{after.id} went on after wave {passed}, which was never promoted")
            skipped = after.confirmed_wave >= passed
            passed_at = next(
                each.at for each in after.verdicts if each.kind is VerdictKind.PROMOTE and each.wave == passed
            )
            began_at = after.ended_at if finished else after.wave_began_at
            assert began_at is not None
            if not skipped and began_at < passed_at + after.policy.soak_s - 1e-3:
                raise self.broken(f"{after.id} went on {began_at - passed_at:.0f} s after wave {passed} passed")
        names = self._approved[after.id][passed] | self._approved[after.id][before.wave]
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
        told = newly_told(before, after, changes)
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
        leading = self.scene.fleets() if late else 1  # Each of two that lead has a bucket of its own for late ones.
        most = leading * max(1.0, per_s * BURST_S) + 1e-6
        per_s *= leading
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


def _missing(approval: Approval, names: set[str], creator: str) -> bool:
    counting = names & set(approval.by) if approval.by else names - {creator}
    return len(counting) < approval.count


def _share(share: int | str, devices: int) -> int:
    return share if isinstance(share, int) else max(1, round(float(share.rstrip("%")) * devices / 100))


def _per_minute(rate: Rate, released: int) -> float:
    return min(rate.per_minute * rate.factor ** min(60, released // rate.every), rate.per_minute_max or 1e9)
