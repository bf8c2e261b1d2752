"""How the evidence of a rollout grew, computed again from what was reported and when. Pure.

Only the counts decide, so the history needs no table of its own: each outcome event says who and when, and silence was
counted at its deadline.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from muster_controller.core.gate import Stratum
from muster_controller.core.rollout import Outcome, Rollout, weigh
from muster_shared.ids import DeviceId

POINTS_MAX = 80  # More than a chart of a few hundred pixels shows.


@dataclass(frozen=True)
class EvidencePoint:
    at: float
    e: float
    treated: int
    """Assigned so far."""
    reported: int
    """Of those."""
    bad: int


@dataclass(frozen=True)
class Reported:
    """An outcome event: who, in which wave, taken when."""

    device: DeviceId
    wave: int
    at: float


def evidence_history(rollout: Rollout, reports: Iterable[Reported], now: float) -> tuple[EvidencePoint, ...]:
    """Return E at up to POINTS_MAX moments, the first at the creation and the last at the end, or `now`."""
    times: dict[tuple[int, DeviceId], float] = {}
    for report in reports:
        key = (report.wave, report.device)
        times[key] = min(report.at, times.get(key, report.at))
    counted = {at for key, at in times.items() if _counts(rollout, key)}
    end = now if rollout.ended_at is None else max(rollout.ended_at, *counted, rollout.created_at)
    moments = {end, *(member.assigned_at for member in rollout.members.values() if member.assigned_at is not None)}
    moments |= counted
    moments |= {
        member.deadline_at
        for member in rollout.members.values()
        if member.deadline_at is not None and member.outcome is Outcome.BAD
    }
    chosen = _thin(sorted(moment for moment in moments if rollout.created_at < moment <= end))
    start = EvidencePoint(rollout.created_at, 1.0, 0, 0, 0)
    return (start, *(_at(rollout, times, moment) for moment in chosen))


def _at(rollout: Rollout, times: Mapping[tuple[int, DeviceId], float], moment: float) -> EvidencePoint:
    counts: dict[tuple[int, str], list[int]] = {}
    reported = 0
    began: dict[int, float] = {}
    for member in rollout.members.values():
        if member.wave is None or member.assigned_at is None or member.assigned_at > moment:
            continue
        began[member.wave] = member.assigned_at
        known = _is_known(times, (member.wave, member.device), member.outcome, member.deadline_at, moment)
        reported += known
        count = counts.setdefault((member.wave, member.device_class), [0, 0, 0, 0])
        count[0] += 1
        count[1] += known and member.outcome is Outcome.BAD
    for control in rollout.controls.values():
        if control.wave not in began:
            continue
        known = _is_known(times, (control.wave, control.device), control.outcome, control.deadline_at, moment)
        count = counts.setdefault((control.wave, control.device_class), [0, 0, 0, 0])
        count[2] += 1
        count[3] += known and control.outcome is Outcome.BAD
    strata = [Stratum(wave, name, *numbers) for (wave, name), numbers in sorted(counts.items())]
    found = weigh(rollout, strata)
    treated = sum(stratum.treated for stratum in strata)
    return EvidencePoint(moment, found.e, treated, reported, sum(stratum.treated_bad for stratum in strata))


def _is_known(
    times: Mapping[tuple[int, DeviceId], float],
    key: tuple[int, DeviceId],
    outcome: Outcome,
    deadline_at: float | None,
    moment: float,
) -> bool:
    """Return whether the outcome was counted by `moment`; silence is counted at the deadline, and stays."""
    if outcome is Outcome.PENDING:
        return False
    counted = [at for at in (times.get(key), deadline_at) if at is not None]
    return bool(counted) and min(counted) <= moment


def _counts(rollout: Rollout, key: tuple[int, DeviceId]) -> bool:
    member = rollout.members.get(key[1])
    return key in rollout.controls or (member is not None and member.wave == key[0])


def _thin(moments: Sequence[float]) -> Sequence[float]:
    if len(moments) <= POINTS_MAX:
        return moments
    step = (len(moments) - 1) / (POINTS_MAX - 1)
    return [moments[round(index * step)] for index in range(POINTS_MAX)]
