"""Rows to rollouts and back, as `rows` does for everything else. What follows from the devices is not stored: the core
works it out again when a rollout is read (`core.rollout.state.assembled`)."""

from collections.abc import Iterable
from dataclasses import replace

import msgspec

from muster_controller.core.gate.evidence import Evidence
from muster_controller.core.gate.strata import Stratum, VerdictKind
from muster_controller.core.policy import Policy
from muster_controller.core.rollout.events import Plot
from muster_controller.core.rollout.state import (
    Approved,
    Control,
    Member,
    Outcome,
    Pause,
    Rollout,
    RolloutState,
    Verdict,
    assembled,
)
from muster_controller.db.rows import Values, text, to_json, to_release
from muster_controller.db.tables import ControlRow, MemberRow, PointRow, RolloutRow, StratumRow, VerdictRow
from muster_shared.ids import DeviceId, ModelName, RolloutId
from muster_shared.messages import Step

Bins = tuple[tuple[int, int], ...]

_to_policy = msgspec.json.Decoder(Policy).decode
_to_waves = msgspec.json.Decoder(tuple[int, ...]).decode
_to_approvals = msgspec.json.Decoder(tuple[Approved, ...]).decode
_to_devices = msgspec.json.Decoder(tuple[DeviceId, ...]).decode
_to_bins = msgspec.json.Decoder(Bins).decode
_to_evidence = msgspec.json.Decoder(Evidence).decode
_to_metrics = msgspec.json.Decoder(dict[str, float]).decode


def rollout_values(rollout: Rollout) -> Values:
    """Return the row of a rollout without its devices, strata, verdicts and points."""
    return (
        rollout.id,
        rollout.model,
        to_json(rollout.release),
        None if rollout.previous is None else to_json(rollout.previous),
        to_json(rollout.policy),
        to_json(rollout.waves),
        rollout.created_at,
        text(rollout.created_by),
        rollout.state.value,
        text(rollout.reason),
        rollout.wave,
        rollout.wave_began_at,
        rollout.wave_passed_at,
        rollout.aborting_at,
        rollout.ended_at,
        rollout.confirmed_wave,
        rollout.at_once,
        None if rollout.pause is None else rollout.pause.value,
        rollout.paced_at,
        rollout.credit,
        rollout.due_at,
        rollout.plotted_e,
        rollout.recalled,
        to_json(rollout.approvals),
    )


def member_values(rollout: RolloutId, member: Member) -> Values:
    return (
        rollout,
        member.device,
        member.device_class,
        member.position,
        member.wave,
        member.outcome.value,
        text(member.reason),
        member.assigned_at,
        member.deadline_at,
        None if member.step is None else member.step.value,
        member.bytes_fetched,
        member.seconds,
        None if member.previous is None else to_json(member.previous),
        member.returned,
        text(member.cause),
        member.attempt,
        member.retry_at,
        member.deferred_until,
        to_json(member.controls) if member.controls else None,
        member.latency,
        member.is_paired,
        member.disagreed,
        None if member.second is None else member.second.value,
    )


def control_values(rollout: RolloutId, control: Control) -> Values:
    return (
        rollout,
        control.wave,
        control.device,
        control.device_class,
        control.partner,
        control.assigned_at,
        control.deadline_at,
        control.deferred_until,
        control.outcome.value,
        text(control.reason),
        control.latency,
    )


def stratum_values(rollout: RolloutId, stratum: Stratum) -> Values:
    return rollout, stratum.wave, stratum.device_class, to_json(stratum.latency)


def verdict_values(rollout: RolloutId, ordinal: int, verdict: Verdict) -> Values:
    found = to_json(verdict.evidence)
    return rollout, ordinal, verdict.at, verdict.wave, verdict.kind.value, verdict.reason, verdict.evidence.e, found


def point_values(rollout: RolloutId, point: Plot) -> Values:
    metrics = to_json(dict(point.metrics))
    return rollout, point.at, point.wave, point.e, metrics, point.treated, point.reported, point.bad


def to_rollout(
    row: RolloutRow,
    members: Iterable[MemberRow],
    controls: Iterable[ControlRow],
    strata: Iterable[StratumRow],
    verdicts: Iterable[VerdictRow],
) -> Rollout:
    header = to_header(row, verdicts)
    return assembled(header, map(_to_member, members), map(_to_control, controls), to_latency(strata))


def to_header(row: RolloutRow, verdicts: Iterable[VerdictRow] = ()) -> Rollout:
    """Return the rollout without its devices, and what follows from them."""
    return Rollout(
        id=RolloutId(row.id),
        model=ModelName(row.model),
        release=to_release(row.release),
        previous=None if row.previous is None else to_release(row.previous),
        policy=_to_policy(row.policy),
        waves=_to_waves(row.waves),
        created_at=row.created_at,
        created_by=row.created_by,
        at_once=bool(row.at_once),
        state=RolloutState(row.state),
        pause=None if row.pause is None else Pause(row.pause),
        reason=row.reason,
        wave=row.wave,
        wave_began_at=row.wave_began_at,
        wave_passed_at=row.wave_passed_at,
        confirmed_wave=row.confirmed_wave,
        paced_at=row.paced_at,
        credit=row.credit,
        due_at=row.due_at,
        aborting_at=row.aborting_at,
        ended_at=row.ended_at,
        verdicts=tuple(_to_verdict(verdict) for verdict in verdicts),
        approvals=_to_approvals(row.approvals),
        plotted_e=row.plotted_e,
        recalled=row.recalled,
    )


def to_latency(strata: Iterable[StratumRow]) -> dict[tuple[int, str], Bins]:
    return {(each.wave, each.device_class): _to_bins(each.latency) for each in strata}


def to_point(row: PointRow) -> Plot:
    return Plot(row.at, row.wave, row.e, _to_metrics(row.metrics), row.treated, row.reported, row.bad)


def _to_member(row: MemberRow) -> Member:
    return Member(
        device=DeviceId(row.device),
        device_class=row.device_class,
        position=row.position,
        wave=row.wave,
        outcome=Outcome(row.outcome),
        reason=row.reason,
        cause=row.cause,
        assigned_at=row.assigned_at,
        deadline_at=row.deadline_at,
        attempt=row.attempt,
        retry_at=row.retry_at,
        deferred_until=row.deferred_until,
        step=None if row.step is None else Step(row.step),
        bytes_fetched=row.bytes_fetched,
        seconds=row.seconds,
        previous=None if row.previous is None else to_release(row.previous),
        controls=() if row.controls is None else _to_devices(row.controls),
        latency=row.latency,
        is_paired=bool(row.is_paired),
        disagreed=None if row.disagreed is None else bool(row.disagreed),
        second=None if row.second is None else Outcome(row.second),
        returned=bool(row.returned),
    )


def _to_control(row: ControlRow) -> Control:
    return Control(
        device=DeviceId(row.device),
        device_class=row.device_class,
        wave=row.wave,
        partner=DeviceId(row.partner),
        assigned_at=row.assigned_at,
        deadline_at=row.deadline_at,
        deferred_until=row.deferred_until,
        outcome=Outcome(row.outcome),
        reason=row.reason,
        latency=row.latency,
    )


def _to_verdict(row: VerdictRow) -> Verdict:
    found = _to_evidence(row.evidence)
    found = replace(found, strata=tuple(found.strata))  # A sequence is read as a list.
    return Verdict(row.at, row.wave, VerdictKind(row.kind), row.reason, found)
