"""Domain values to what the API says. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from muster_controller.api.schemas import (
    DeviceDetail,
    DeviceView,
    EventView,
    EvidenceView,
    FileView,
    MemberView,
    ModelView,
    NoteView,
    Plan,
    ReleaseView,
    RolloutCounts,
    RolloutDetail,
    RolloutSummary,
    SlotView,
    StratumView,
    VariantView,
    VerdictView,
    VersionDetail,
    WaveView,
)
from muster_controller.api.standing import IDLE, device_class, standing, sums
from muster_controller.core.gate import HOLD, Evidence
from muster_controller.core.policy import Policy, wave_sizes
from muster_controller.core.rollout import Outcome, Rollout, weigh
from muster_controller.db.reader import EventEntry, NoteEntry
from muster_controller.db.snapshot import Committed
from muster_controller.ports import Desired, Device
from muster_shared.bundle import Manifest
from muster_shared.ids import ModelName
from muster_shared.messages import (
    AssignmentRefused,
    EventBody,
    FaultSeen,
    OutcomeReported,
    ReleaseRef,
    StepReached,
    TwinModel,
)
from muster_shared.variants import choose


def release_view(release: ReleaseRef) -> ReleaseView:
    return ReleaseView(
        model=release.model,
        version=release.version,
        release=release.release,
        bundle_sha256=release.bundle_sha256,
    )


# -- devices -------------------------------------------------------------------------------------------------------


def device_view(device: Device, desired: Desired | None) -> DeviceView:
    return DeviceView(**_device_fields(device, desired))


def device_detail(device: Device, desired: Desired | None) -> DeviceDetail:
    twin = device.twin
    reported = {} if twin is None else {model.model: model for model in twin.models}
    wanted = {} if desired is None else {name: each.release for name, each in desired.models.items()}
    return DeviceDetail(
        **_device_fields(device, desired),
        slots=[_slot(name, reported.get(name), wanted.get(name)) for name in sorted(reported.keys() | wanted.keys())],
        assignment_counter=0 if desired is None else desired.counter,
        accepted_counter=0 if twin is None else twin.counter,
        assignment_expires_at=None if desired is None or not desired.counter else desired.expires_at,
        endpoint=None if twin is None else twin.endpoint,
        hardware=None if twin is None else msgspec.to_builtins(twin.hardware),
        host=None if twin is None else msgspec.to_builtins(twin.host),
    )


def _device_fields(device: Device, desired: Desired | None) -> dict[str, Any]:
    twin = device.twin
    models = () if twin is None else twin.models
    return {
        "id": device.id,
        "online": device.online,
        "seen_at": device.seen_at,
        "standing": standing(device, desired),
        "device_class": device_class(device),
        "agent_version": None if twin is None else twin.agent_version,
        "labels": {} if twin is None else twin.labels,
        "active": {model.model: model.active.version for model in models if model.active is not None},
        "desired": {} if desired is None else {name: each.release.version for name, each in desired.models.items()},
        "error": next((model.last_error for model in models if model.last_error), None),
    }


def _slot(name: ModelName, twin: TwinModel | None, wanted: ReleaseRef | None) -> SlotView:
    return SlotView(
        model=name,
        phase=IDLE if twin is None else twin.phase,
        active=None if twin is None or twin.active is None else release_view(twin.active),
        standby=None if twin is None or twin.standby is None else release_view(twin.standby),
        desired=None if wanted is None else release_view(wanted),
        progress=None if twin is None else twin.progress,
        engine=None if twin is None else twin.engine,
        requests=0 if twin is None else twin.requests,
        latency_ms_p95=None if twin is None else twin.latency_ms_p95,
        last_error=None if twin is None else twin.last_error,
    )


def event_view(entry: EventEntry) -> EventView:
    kind, summary = _told(entry.event.body)
    return EventView(
        cursor=entry.ordinal,
        taken_at=entry.taken_at,
        device_at=entry.event.at,
        id=entry.event.id,
        device=entry.event.device,
        kind=kind,
        summary=summary,
        body=msgspec.to_builtins(entry.event.body),
    )


def _told(body: EventBody) -> tuple[Literal["step", "outcome", "refused", "fault"], str]:
    match body:
        case StepReached(release=release, step=step, refusal=refusal, detail=detail):
            why = " ".join(part for part in ("" if refusal is None else refusal.value, detail) if part)
            return (
                "step",
                f"{release.model} {release.version} {step.value.replace('_', ' ')}{f': {why}' if why else ''}",
            )
        case OutcomeReported(release=release, good=good, reason=reason):
            return "outcome", f"{release.model} {release.version} did {'well' if good else 'badly'}: {reason}"
        case AssignmentRefused(refusal=refused, detail=detail):
            return "refused", f"assignment refused, {refused.value.replace('_', ' ')}: {detail}"
        case FaultSeen(model=model, detail=detail):
            return "fault", f"{model or 'device'}: {detail}"


def note_view(entry: NoteEntry) -> NoteView:
    note = entry.note
    return NoteView(
        cursor=entry.ordinal, at=note.at, what=note.what, subject=note.subject, detail=note.detail, actor=note.actor
    )


# -- rollouts ------------------------------------------------------------------------------------------------------


def rollout_summary(rollout: Rollout) -> RolloutSummary:
    return RolloutSummary(**_rollout_fields(rollout, weigh(rollout)))


def rollout_detail(rollout: Rollout) -> RolloutDetail:
    found = weigh(rollout)
    return RolloutDetail(
        **_rollout_fields(rollout, found),
        policy=msgspec.to_builtins(rollout.policy),
        evidence=evidence_view(found),
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
        wave_views=wave_views(rollout),
        wave_began_at=rollout.wave_began_at,
    )


def _rollout_fields(rollout: Rollout, found: Evidence) -> dict[str, Any]:
    taken = [member for member in rollout.members.values() if member.wave is not None]
    outcomes = Counter(member.outcome for member in taken)
    return {
        "id": rollout.id,
        "model": rollout.model,
        "version": rollout.release.version,
        "previous": None if rollout.previous is None else rollout.previous.version,
        "state": rollout.state.value,
        "reason": rollout.reason,
        "wave": rollout.wave,
        "waves": list(rollout.waves),
        "created_at": rollout.created_at,
        "created_by": rollout.created_by,
        "ended_at": rollout.ended_at,
        "counts": RolloutCounts(
            devices=len(rollout.members),
            waiting=len(rollout.members) - len(taken),
            pending=outcomes[Outcome.PENDING],
            good=outcomes[Outcome.GOOD],
            bad=outcomes[Outcome.BAD],
            returned=sum(member.returned for member in taken),
            bytes_fetched=sum(member.bytes_fetched for member in taken),
        ),
        "e": found.e,
        "hold_at": HOLD,
        "abort_at": 1 / rollout.policy.alpha,
    }


def evidence_view(found: Evidence) -> EvidenceView:
    return EvidenceView(
        e=found.e,
        e_controls=found.e_controls,
        e_objective=found.e_objective,
        e_classes=dict(found.e_classes),
        strata=[
            StratumView(
                wave=stratum.wave,
                device_class=stratum.device_class,
                treated=stratum.treated,
                treated_bad=stratum.treated_bad,
                controls=stratum.controls,
                controls_bad=stratum.controls_bad,
            )
            for stratum in found.strata
        ],
    )


def wave_views(rollout: Rollout) -> list[WaveView]:
    """Return what was planned and what has begun, in order; more waves may come than were planned."""
    views = []
    for wave in range(max(len(rollout.waves), rollout.wave + 1)):
        members = [member for member in rollout.members.values() if member.wave == wave]
        outcomes = Counter(member.outcome for member in members)
        views.append(
            WaveView(
                wave=wave,
                planned=rollout.waves[wave] if wave < len(rollout.waves) else None,
                devices=len(members),
                controls=sum(control.wave == wave for control in rollout.controls.values()),
                pending=outcomes[Outcome.PENDING],
                good=outcomes[Outcome.GOOD],
                bad=outcomes[Outcome.BAD],
                began_at=min(
                    (member.assigned_at for member in members if member.assigned_at is not None), default=None
                ),
            )
        )
    return views


def member_views(rollout: Rollout) -> list[MemberView]:
    """Return the treated and the waiting in their order, then the controls."""
    members = sorted(rollout.members.values(), key=lambda member: member.position)
    views = [
        MemberView(
            device=member.device,
            device_class=member.device_class,
            wave=member.wave,
            arm="waiting" if member.wave is None else "treated",
            outcome=member.outcome.value,
            reason=member.reason,
            step=None if member.step is None else member.step.value,
            bytes_fetched=member.bytes_fetched,
            seconds=member.seconds,
            returned=member.returned,
        )
        for member in members
    ]
    return views + [
        MemberView(
            device=control.device,
            device_class=control.device_class,
            wave=control.wave,
            arm="control",
            outcome=control.outcome.value,
            reason=control.reason,
            step=None,
            bytes_fetched=0,
            seconds=0.0,
            returned=False,
        )
        for _, control in sorted(rollout.controls.items())
    ]


def plan(fleet: Committed, release: ReleaseRef, manifest: Manifest | None, policy: Policy) -> Plan:
    """Return what a rollout would do now, by the rules of `Fleet.create_rollout`."""
    baseline = fleet.baselines.get(release.model)
    eligible = [
        device
        for device in fleet.devices.values()
        if device.twin is not None
        and manifest is not None
        and all(device.twin.labels.get(key) == value for key, value in policy.selector.items())
        and choose(manifest, device.twin.hardware) is not None
    ]
    return Plan(
        model=release.model,
        version=release.version,
        previous=None if baseline is None else baseline.release.version,
        devices=len(eligible),
        online=sum(device.online for device in eligible),
        classes=dict(sorted(Counter(device_class(device) for device in eligible).items())),
        waves=list(wave_sizes(policy, len(eligible))) if eligible else [],
        policy=msgspec.to_builtins(policy),
    )


# -- models --------------------------------------------------------------------------------------------------------


def model_views(fleet: Committed, names: Sequence[ModelName], releases: Sequence[ReleaseRef]) -> list[ModelView]:
    serving: dict[str, dict[str, int]] = {}
    for share in sums(fleet).versions:
        serving.setdefault(share.model, {})[share.version] = share.devices
    ordered = sorted(releases, key=lambda release: release.release)
    baselines: Mapping[ModelName, str] = {name: each.release.version for name, each in fleet.baselines.items()}
    return [
        ModelView(
            name=name,
            versions=[release.version for release in ordered if release.model == name],
            baseline=baselines.get(name),
            devices=serving.get(name, {}),
        )
        for name in sorted({*names, *(release.model for release in releases)})
    ]


def version_detail(release: ReleaseRef, manifest: Manifest) -> VersionDetail:
    said = msgspec.to_builtins(manifest)
    return VersionDetail(
        **release_view(release).model_dump(),
        bundle_length=release.bundle_length,
        licence=manifest.licence,
        card=manifest.card,
        files=[FileView(path=file.path, sha256=file.sha256, length=file.length) for file in manifest.files],
        variants=[
            VariantView(
                name=variant.name,
                runtime=variant.runtime,
                precision=variant.precision,
                files=list(variant.files),
                hardware=msgspec.to_builtins(variant.hardware),
            )
            for variant in manifest.variants
        ],
        slo=said["slo"],
        lineage=said["lineage"],
        inputs=said["inputs"],
        outputs=said["outputs"],
        labels=said["labels"],
    )
