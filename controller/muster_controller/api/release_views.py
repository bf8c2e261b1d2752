"""Releases beyond their manifests, as the API says them: signatures, use, and two side by side. Pure."""

from collections.abc import Sequence
from difflib import SequenceMatcher
from statistics import median

from muster_controller.api.schemas.releases import (
    FactChange,
    FileChange,
    LatencyChange,
    LineChange,
    PickView,
    ReleaseTrust,
    RoleKeyView,
    RoleStepView,
    RoleView,
    VersionComparison,
    VersionUse,
)
from muster_controller.registry.signatures import RoleStep, RoleTrust
from muster_controller.served import Pick, Use
from muster_shared.bundle import Manifest, TensorSpec

AROUND = 2  # Lines of a card that are shown before and after a change.
CARD_LINES_MAX = 2000  # Of each side; comparing takes the product of both.


def role_view(trust: RoleTrust) -> RoleView:
    return RoleView(
        role=trust.role,
        delegated_by=trust.delegated_by,
        is_online=trust.is_online,
        threshold=trust.threshold,
        signed=trust.signed,
        version=trust.version,
        expires_at=trust.expires_at,
        keys=[RoleKeyView(id=key.keyid, has_signed=key.has_signed) for key in trust.keys],
    )


def step_view(step: RoleStep) -> RoleStepView:
    return RoleStepView(
        version=step.version,
        added=[version_of(path) for path in step.added],
        removed=[version_of(path) for path in step.removed],
        signed_by=list(step.signed_by),
        others=step.others,
    )


def release_trust(
    model: str, version: str, target: str, role: RoleTrust, steps: Sequence[RoleStep], *, is_revoked: bool
) -> ReleaseTrust:
    """`steps`: of the role; those that name `target` are told."""
    own = [step_view(step) for step in steps if target in (*step.added, *step.removed)]
    return ReleaseTrust(model=model, version=version, is_revoked=is_revoked, role=role_view(role), steps=own)


def version_of(target: str) -> str:
    """Return the version in a target path `models/<model>/<version>/bundle.json`."""
    return target.split("/")[-2]


def use_view(model: str, version: str, use: Use) -> VersionUse:
    return VersionUse(
        model=model,
        version=version,
        devices=use.devices,
        online=use.online,
        standby=use.standby,
        classes=dict(use.classes),
        labels={key: dict(values) for key, values in use.labels.items()},
        picks=[PickView(**vars(pick)) for pick in use.picks],
    )


def comparison(model: str, manifests: tuple[Manifest, Manifest], was: Use, now: Use) -> VersionComparison:
    """Return two releases side by side, and where each serves."""
    old, new = manifests
    before, after = ({file.path: file for file in each.files} for each in (old, new))
    had = {file.sha256 for file in old.files}
    return VersionComparison(
        model=model,
        before=old.version,
        after=new.version,
        bytes_before=sum(file.length for file in old.files),
        bytes_after=sum(file.length for file in new.files),
        bytes_shared=sum(file.length for file in new.files if file.sha256 in had),
        files=[
            FileChange(
                path=path,
                length_before=before[path].length if path in before else None,
                length_after=after[path].length if path in after else None,
                is_same=path in before and path in after and before[path].sha256 == after[path].sha256,
            )
            for path in dict.fromkeys((*before, *after))
        ],
        facts=_facts(old, new),
        latency=_latencies(was, now),
        card=card_lines(old.card, new.card),
    )


def card_lines(before: str, after: str) -> list[LineChange]:
    """Return what differs line by line, with a little of what is around; how much was left out stands between."""
    old, new = before.splitlines()[:CARD_LINES_MAX], after.splitlines()[:CARD_LINES_MAX]
    found: list[LineChange] = []
    last = 0
    for group in SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(AROUND):
        first = group[0][1]
        if first > last:
            found.append(LineChange(mark="left", text=str(first - last)))
        for tag, old_from, old_to, new_from, new_to in group:
            if tag == "equal":
                found += [LineChange(mark="same", text=line) for line in old[old_from:old_to]]
                continue
            found += [LineChange(mark="gone", text=line) for line in old[old_from:old_to]]
            found += [LineChange(mark="new", text=line) for line in new[new_from:new_to]]
        last = group[-1][2]
    if found and last < len(old):
        found.append(LineChange(mark="left", text=str(len(old) - last)))
    return found


def facts(manifest: Manifest) -> dict[str, str]:
    """Return what a manifest claims and demands, by the name of it, for people."""
    slo, golden, lineage = manifest.slo, manifest.golden, manifest.lineage
    return {
        "release": str(manifest.release),
        "licence": manifest.licence,
        "latency p95 below": f"{slo.latency_ms_p95:.4g} ms",
        "memory below": f"{slo.memory_mb} MB",
        "errors below": f"{100 * slo.error_rate:g} %",
        "accuracy above": "nothing is claimed" if slo.accuracy is None else f"{100 * slo.accuracy:.4g} %",
        "inputs": ", ".join(_tensor(each) for each in manifest.inputs),
        "outputs": ", ".join(_tensor(each) for each in manifest.outputs),
        "classes": str(len(manifest.labels)) if manifest.labels else "none named",
        "variants": ", ".join(f"{each.name} ({each.runtime} {each.precision})" for each in manifest.variants),
        "chosen on a device": "the first that fits"
        if manifest.serving.selection == "first"
        else "the fastest measured",
        "golden cases within": f"atol {golden.atol:g}, rtol {golden.rtol:g}, {100 * golden.argmax_agreement:g} % agree",
        "may leave a device": ", ".join(each.value for each in manifest.metrics.allow) or "nothing of content",
        "parents": ", ".join(lineage.parents) or "none named",
        "source": lineage.source or "not told",
        "data": lineage.data_sha256 or "not told",
        "code": lineage.code_sha256 or "not told",
    }


def _facts(old: Manifest, new: Manifest) -> list[FactChange]:
    before, after = facts(old), facts(new)
    found = [
        FactChange(name=name, before=before[name], after=after[name], is_same=before[name] == after[name])
        for name in before
        if name != "release"
    ]
    if old.labels != new.labels:
        gone, come = set(old.labels) - set(new.labels), set(new.labels) - set(old.labels)
        said = f"{len(come)} new, {len(gone)} gone" if gone or come else "the same in another order"
        found.append(FactChange(name="names of classes", before="", after=said, is_same=False))
    return found


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.datatype} [{', '.join('any' if size == -1 else str(size) for size in spec.shape)}]"


def _latencies(old: Use, new: Use) -> list[LatencyChange]:
    found = []
    for name in sorted(old.classes.keys() | new.classes.keys()):
        before, after = ([pick for pick in use.picks if pick.device_class == name] for use in (old, new))
        found.append(
            LatencyChange(
                device_class=name,
                devices_before=sum(pick.devices for pick in before),
                devices_after=sum(pick.devices for pick in after),
                before_ms=_middle(before),
                after_ms=_middle(after),
                variants_before=sorted({pick.variant for pick in before if pick.variant}),
                variants_after=sorted({pick.variant for pick in after if pick.variant}),
            )
        )
    return found


def _middle(picks: Sequence[Pick]) -> float | None:
    """Return the p95 of the middle device, of groups by their own middle ones."""
    every = [pick.latency_ms_p95 for pick in picks if pick.latency_ms_p95 is not None for _ in range(pick.devices)]
    return median(every) if every else None
