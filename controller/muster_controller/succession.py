"""Succession: what a release follows in the fleet, by which terms, and who should run it already. Pure.

`Fleet` acts by these rules and `api.planning` says beforehand what they come to: what both ask stands here once.
"""

from collections import Counter
from collections.abc import Iterable

from muster_controller.core.policy import Policy, with_declared_latency
from muster_controller.groups import active
from muster_controller.ports import Baseline, Desired, Device
from muster_shared.bundle import Manifest
from muster_shared.messages import ReleaseRef


def is_release(found: ReleaseRef | None, release: ReleaseRef) -> bool:
    """Return whether both are the same bytes."""
    return found is not None and found.bundle_sha256 == release.bundle_sha256


def previous_release(
    release: ReleaseRef, devices: Iterable[Device], baselines: Iterable[Baseline]
) -> ReleaseRef | None:
    """Return what most of `devices` run now, by their twins, that is not `release`; else the newest baseline.

    Args:
        baselines: Of the model, the newest first.
    """
    running = Counter(
        found
        for device in devices
        if (found := active(device, release.model)) is not None and not is_release(found, release)
    )
    if running:
        return max(running, key=lambda each: (running[each], each.release))
    return next((each.release for each in baselines if not is_release(each.release, release)), None)


def declared(policy: Policy, manifest: Manifest | None, before: Manifest | None) -> tuple[Policy, str]:
    """Return `policy` with what the releases declare of their latency, and a sentence where that changes it."""
    if manifest is None:
        return policy, ""
    declared_before = None if before is None else before.slo.latency_ms_p95
    return with_declared_latency(policy, declared_before, manifest.slo.latency_ms_p95)


def should_run(desired: Desired | None, release: ReleaseRef) -> bool:
    """Return whether that is what the device was told to run."""
    wanted = None if desired is None else desired.models.get(release.model)
    return wanted is not None and is_release(wanted.assignment.release, release)
