"""Devices, history and models as the API says them. Pure. Rollouts: `rollout_views`."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from muster_controller.api.schemas import (
    BaselineView,
    DeviceDetail,
    DeviceView,
    EventView,
    FileView,
    ModelView,
    NoteView,
    ReleaseView,
    SlotView,
    VariantView,
    VersionDetail,
)
from muster_controller.api.schemas.device_actions import HoldView
from muster_controller.api.standing import IDLE, standing, sums
from muster_controller.db.reader import EventEntry, NoteEntry
from muster_controller.db.snapshot import Committed
from muster_controller.groups import device_class
from muster_controller.holds import Hold
from muster_controller.ports import Baseline, Desired, Device, Wanted
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


def release_view(release: ReleaseRef) -> ReleaseView:
    return ReleaseView(
        model=release.model,
        version=release.version,
        release=release.release,
        bundle_sha256=release.bundle_sha256,
    )


# -- devices -------------------------------------------------------------------------------------------------------


def hold_view(hold: Hold) -> HoldView:
    return HoldView(device=hold.device, kind=hold.kind, by=hold.by, at=hold.at, reason=hold.reason)


def device_view(device: Device, desired: Desired | None) -> DeviceView:
    return DeviceView(**_device_fields(device, desired))


def device_detail(
    device: Device,
    desired: Desired | None,
    granted: Mapping[str, str] = MappingProxyType({}),
    hold: Hold | None = None,
) -> DeviceDetail:
    """`granted`: the labels that operators gave to it; `hold`: who keeps it out of rollouts."""
    twin = device.twin
    reported = {} if twin is None else {model.model: model for model in twin.models}
    wanted = {} if desired is None else desired.models
    return DeviceDetail(
        **_device_fields(device, desired),
        granted_labels=dict(granted),
        hold=None if hold is None else hold_view(hold),
        slots=[_slot(name, reported.get(name), wanted.get(name)) for name in sorted(reported.keys() | wanted.keys())],
        assignment_counter=0 if desired is None else desired.counter,
        accepted_counter=0 if twin is None else twin.counter,
        assignment_expires_at=None if desired is None or not desired.counter else desired.expires_at,
        endpoint=None if twin is None else twin.endpoint,
        timezone=None if twin is None else twin.timezone,
        hardware=None if twin is None else msgspec.to_builtins(twin.hardware),
        host=None if twin is None else msgspec.to_builtins(twin.host),
    )


def _device_fields(device: Device, desired: Desired | None) -> dict[str, Any]:
    twin = device.twin
    models = () if twin is None else twin.models
    wanted = {} if desired is None else desired.models
    return {
        "id": device.id,
        "online": device.online,
        "seen_at": device.seen_at,
        "standing": standing(device, desired),
        "device_class": device_class(device),
        "agent_version": None if twin is None else twin.agent_version,
        "labels": {} if twin is None else twin.labels,
        "active": {model.model: model.active.version for model in models if model.active is not None},
        "desired": {name: each.assignment.release.version for name, each in wanted.items()},
        "error": next((model.last_error for model in models if model.last_error), None),
    }


def _slot(name: ModelName, twin: TwinModel | None, wanted: Wanted | None) -> SlotView:
    return SlotView(
        model=name,
        phase=IDLE if twin is None else twin.phase,
        active=None if twin is None or twin.active is None else release_view(twin.active),
        standby=None if twin is None or twin.standby is None else release_view(twin.standby),
        desired=None if wanted is None else release_view(wanted.assignment.release),
        rollout=None if wanted is None else wanted.rollout,
        since=None if wanted is None else wanted.at,
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


# -- models --------------------------------------------------------------------------------------------------------


def model_views(fleet: Committed, names: Sequence[ModelName], releases: Sequence[ReleaseRef]) -> list[ModelView]:
    serving: dict[str, dict[str, int]] = {}
    for share in sums(fleet).versions:
        serving.setdefault(share.model, {})[share.version] = share.devices
    ordered = sorted(releases, key=lambda release: release.release)
    return [
        ModelView(
            name=name,
            versions=[release.version for release in ordered if release.model == name],
            baseline=newest_baselines(fleet).get(name),
            baselines=[baseline_view(each) for each in fleet.baselines.get(name, ())],
            devices=serving.get(name, {}),
        )
        for name in sorted({*names, *(release.model for release in releases)})
    ]


def newest_baselines(fleet: Committed) -> dict[str, str]:
    """Return by model the version of the newest baseline, whatever its group."""
    return {name: found[0].release.version for name, found in sorted(fleet.baselines.items()) if found}


def baseline_view(baseline: Baseline) -> BaselineView:
    return BaselineView(
        version=baseline.release.version, selector=baseline.selector, rollout=baseline.rollout, at=baseline.at
    )


def version_detail(release: ReleaseRef, manifest: Manifest, *, is_revoked: bool = False) -> VersionDetail:
    said = msgspec.to_builtins(manifest)
    return VersionDetail(
        **release_view(release).model_dump(),
        bundle_length=release.bundle_length,
        is_revoked=is_revoked,
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
