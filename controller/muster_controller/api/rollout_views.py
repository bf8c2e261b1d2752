"""Rollouts as the API says them: the evidence with all that it is computed from, waves, devices, who waits. Pure.

Wherever a `roll` may be given it is that of the rollout, and saves the walk over its devices.
"""

from collections.abc import Callable, Iterable, Iterator
from math import exp
from typing import Any, Literal

import msgspec

from muster_controller.api.schemas import (
    EvidencePointView,
    EvidenceView,
    MemberView,
    RolloutDetail,
    RolloutSummary,
)
from muster_controller.api.schemas.rollouts import (
    ApprovalGiven,
    Approvals,
    MetricView,
    RolloutCounts,
    StratumView,
    TermsView,
    VerdictView,
    WaitingView,
    WaveView,
)
from muster_controller.core.gate.evidence import HOLD, Evidence, Terms
from muster_controller.core.rollout.alike import Summed
from muster_controller.core.rollout.draft import terms, weigh
from muster_controller.core.rollout.events import Plot
from muster_controller.core.rollout.explain import Explained
from muster_controller.core.rollout.outlook import gate, is_gate_reached, orders, outlook, soak_ends
from muster_controller.core.rollout.roll import Group, Roll, roll_of
from muster_controller.core.rollout.state import (
    ENDED,
    Control,
    Member,
    Outcome,
    Rollout,
    in_order,
    is_in_flight,
    is_queued,
)
from muster_controller.core.rollout.tally import Tally, tallied, tally_of
from muster_controller.core.rollout.waiting import Present
from muster_controller.policy_document import written

LARGEST = 1e300
"""JSON has no infinity, and evidence beyond this is as good as certain."""


def rollout_summary(rollout: Rollout, tally: Tally | None = None) -> RolloutSummary:
    """Return how a rollout stands. `tally`: of its devices, where it is known; else they are counted."""
    return RolloutSummary(**_fields(rollout, weigh(rollout), tally or tally_of(rollout)))


def summed_view(found: Summed) -> RolloutSummary:
    return RolloutSummary(**_fields(found.rollout, weigh(found.rollout), tallied(found.groups)))


def rollout_detail(rollout: Rollout, now: float, roll: Roll | None = None) -> RolloutDetail:
    found = weigh(rollout)
    roll = roll_of(rollout) if roll is None else roll
    return RolloutDetail(
        **_fields(rollout, found, roll.tally),
        outlook=outlook(rollout, now, roll),
        orders=list(orders(rollout, now, roll)),
        policy=msgspec.to_builtins(rollout.policy),
        policy_written=written(rollout.policy),
        evidence=evidence_view(found),
        terms=terms_view(terms(rollout)),
        verdicts=[
            VerdictView(
                at=verdict.at,
                wave=verdict.wave,
                kind=verdict.kind.value,
                reason=verdict.reason,
                evidence=evidence_view(verdict.evidence),
            )
            for verdict in rollout.verdicts
        ],
        approvals=Approvals(
            given=[
                ApprovalGiven(before=each.before, by=each.by, at=each.at, reason=each.reason)
                for each in rollout.approvals
            ],
            awaited=gate(rollout, roll),
            is_reached=is_gate_reached(rollout, now, roll),
        ),
        wave_views=wave_views(rollout, now, roll),
        wave_began_at=rollout.wave_began_at,
        wave_passed_at=rollout.wave_passed_at,
    )


def _fields(rollout: Rollout, found: Evidence, tally: Tally) -> dict[str, Any]:
    return {
        "id": rollout.id,
        "model": rollout.model,
        "version": rollout.release.version,
        "previous": None if rollout.previous is None else rollout.previous.version,
        "state": rollout.state.value,
        "pause": None if rollout.pause is None else rollout.pause.value,
        "reason": rollout.reason,
        "at_once": rollout.at_once,
        "selector": rollout.policy.selector,
        "priority": rollout.policy.priority,
        "wave": rollout.wave,
        "waves": list(rollout.waves),
        "created_at": rollout.created_at,
        "created_by": rollout.created_by,
        "ended_at": rollout.ended_at,
        "due_at": None if rollout.state in ENDED else rollout.due_at,
        "counts": _counts(tally),
        "e": min(found.e, LARGEST),
        "hold_e": min(found.hold_e, LARGEST),
        "hold_at": HOLD,
        "abort_at": 1 / rollout.policy.alpha,
    }


def _counts(tally: Tally) -> RolloutCounts:
    return RolloutCounts(**{name: tally.counts.get(name, 0) for name in RolloutCounts.model_fields})


def evidence_view(found: Evidence) -> EvidenceView:
    return EvidenceView(
        e=min(found.e, LARGEST),
        hold_e=min(found.hold_e, LARGEST),
        metrics={
            name: MetricView(
                e=min(each.e, LARGEST),
                e_pooled=min(each.e_pooled, LARGEST),
                e_classes={key: min(e, LARGEST) for key, e in each.e_classes.items()},
            )
            for name, each in found.metrics.items()
        },
        e_controls=min(found.e_controls, LARGEST),
        e_objective=min(found.e_objective, LARGEST),
        strata=[
            StratumView(
                wave=each.wave,
                device_class=each.device_class,
                treated=each.treated,
                treated_bad=each.treated_bad,
                controls=each.controls,
                controls_bad=each.controls_bad,
                latency=list(each.latency),
                compared=each.compared,
                disagreed=each.disagreed,
            )
            for each in found.strata
        ],
    )


def terms_view(found: Terms) -> TermsView:
    return TermsView(
        alpha=found.alpha,
        failure_objective=found.failure_objective,
        tolerance=found.tolerance,
        latency_tolerance=found.latency_tolerance,
        disagreement_objective=found.disagreement_objective,
        weights=dict(found.weights),
        has_controls=found.has_controls,
    )


def point_view(point: Plot) -> EvidencePointView:
    return EvidencePointView(
        at=point.at,
        wave=point.wave,
        e=min(point.e, LARGEST),
        metrics={name: min(e, LARGEST) for name, e in point.metrics.items()},
        treated=point.treated,
        reported=point.reported,
        bad=point.bad,
    )


def wave_views(rollout: Rollout, now: float, roll: Roll | None = None) -> list[WaveView]:
    """Return what was planned and what has begun, in order; more waves may come than were planned."""
    roll = roll_of(rollout) if roll is None else roll
    members: dict[int, list[Group[Member]]] = {}
    for group in roll.members.values():
        if group.each.wave is not None:
            members.setdefault(group.each.wave, []).append(group)
    controls: dict[int, list[Group[Control]]] = {}
    for held in roll.controls.values():
        controls.setdefault(held.each.wave, []).append(held)
    count = max(len(rollout.waves), rollout.wave + 1)
    return [_wave(rollout, wave, members.get(wave, []), controls.get(wave, []), now) for wave in range(count)]


def _wave(
    rollout: Rollout, wave: int, members: list[Group[Member]], controls: list[Group[Control]], now: float
) -> WaveView:
    def count(fits: Callable[[Member], bool]) -> int:
        return sum(group.devices for group in members if fits(group.each))

    told = (at for group in members for at in group.told)
    return WaveView(
        wave=wave,
        planned=rollout.waves[wave] if wave < len(rollout.waves) else None,
        devices=sum(group.devices for group in members),
        queued=count(is_queued),
        pending=count(is_in_flight),
        deferred=count(lambda each: is_in_flight(each) and each.deferred_until is not None),
        good=count(lambda each: each.outcome is Outcome.GOOD),
        bad=count(lambda each: each.outcome is Outcome.BAD),
        left=count(lambda each: each.outcome is Outcome.LEFT),
        controls=sum(group.devices for group in controls if group.each.outcome is not Outcome.LEFT),
        controls_pending=sum(group.devices for group in controls if group.each.outcome is Outcome.PENDING),
        began_at=rollout.wave_began_at if wave == rollout.wave else min(told, default=None),
        soak_ends_at=soak_ends(rollout, now) if wave == rollout.wave else None,
    )


def member_views(rollout: Rollout) -> Iterator[MemberView]:
    """Yield the treated and the waiting in their order, then the controls by wave."""
    return map(member_view, everybody(rollout))


def everybody(rollout: Rollout) -> Iterator[Member | Control]:
    """Yield the treated and the waiting in their order, then the controls by wave."""
    yield from in_order(rollout.members.values())
    for _, control in sorted(rollout.controls.items()):
        yield control


def arm_of(each: Member | Control) -> Literal["treated", "control", "waiting"]:
    if isinstance(each, Control):
        return "control"
    return "waiting" if each.wave is None else "treated"


def member_view(each: Member | Control) -> MemberView:
    return _control(each) if isinstance(each, Control) else _member(each)


def _member(member: Member) -> MemberView:
    return MemberView(
        device=member.device,
        device_class=member.device_class,
        wave=member.wave,
        arm=arm_of(member),
        outcome=member.outcome.value,
        cause=member.cause,
        reason=member.reason,
        step=None if member.step is None else member.step.value,
        attempt=member.attempt,
        assigned_at=member.assigned_at,
        deadline_at=member.deadline_at,
        retry_at=member.retry_at,
        deferred_until=member.deferred_until,
        bytes_fetched=member.bytes_fetched,
        seconds=member.seconds,
        latency_ratio=None if member.latency is None else exp(member.latency),
        disagreed=member.disagreed,
        previous=None if member.previous is None else member.previous.version,
        controls=list(member.controls),
        partner=None,
        second=None if member.second is None else member.second.value,
        returned=member.returned,
    )


def _control(control: Control) -> MemberView:
    return MemberView(
        device=control.device,
        device_class=control.device_class,
        wave=control.wave,
        arm="control",
        outcome=control.outcome.value,
        cause="",
        reason=control.reason,
        step=None,
        attempt=0,
        assigned_at=control.assigned_at,
        deadline_at=control.deadline_at,
        retry_at=None,
        deferred_until=control.deferred_until,
        bytes_fetched=0,
        seconds=0.0,
        latency_ratio=None if control.latency is None else exp(control.latency),
        disagreed=None,
        previous=None,
        controls=[],
        partner=control.partner,
        second=None,
        returned=False,
    )


def listed(
    rollout: Rollout,
    roll: Roll,
    fits: Callable[[Member | Control], bool],
    *,
    text: str = "",
    in_sight: int = -1,
    sees: Callable[[str], bool] = lambda _: True,
    start: int,
    most: int,
) -> list[Member | Control]:
    """Return devices as `everybody` orders them, from the one numbered `start`: of those that are wanted.

    Args:
        fits: whether devices such as one are wanted; it goes by no moment, and by nobody's name.
        text: what their ids have somewhere.
        in_sight: whose places may be told of, bits; `sees` says the same of one device.
    """
    names = roll.names(roll.where(fits) & in_sight)
    if text:
        names = [name for name in names if text in name]
    page: list[Member | Control] = [rollout.members[name] for name in names[start : start + most]]
    if len(page) == most or not roll.count_controls(fits):
        return page
    held = sorted(
        key for key, each in rollout.controls.items() if fits(each) and text in each.device and sees(each.device)
    )
    start = max(0, start - len(names))
    return [*page, *(rollout.controls[key] for key in held[start : start + most - len(page)])]


def waiting_views(rollout: Rollout, roll: Roll, found: Iterable[Explained], present: Present) -> list[WaitingView]:
    return [
        WaitingView(
            device=each.device,
            device_class=rollout.members[each.device].device_class,
            wave=rollout.members[each.device].wave,
            online=bool(present.online >> roll.places[each.device] & 1),
            why=each.why,
            sentence=each.sentence,
            until=each.until,
        )
        for each in found
    ]
