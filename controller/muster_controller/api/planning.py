"""Plans: what a rollout or a rollback would do now, by the rules of `Fleet`, without doing it. Pure.

Who would be in the first wave is drawn at random when it begins; the plan counts by class only.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from muster_controller.api.schemas import Plan, PolicyChecked
from muster_controller.api.schemas.planning import Rival
from muster_controller.core.policy import Policy, PolicyInvalid, satisfiable, wave_sizes
from muster_controller.core.rollout import waves
from muster_controller.core.rollout.state import Member, Rollout
from muster_controller.db.snapshot import Committed
from muster_controller.groups import active, can_run, device_class, selected, standby
from muster_controller.holds import FindHold, Hold, HoldKind, nobody
from muster_controller.mending import has_say
from muster_controller.ordering import AT_ONCE
from muster_controller.policy_document import written
from muster_controller.ports import Device
from muster_controller.succession import declared, is_release, previous_release, should_run
from muster_shared.bundle import Manifest
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import ReleaseRef

FindManifest = Callable[[Sha256], Manifest | None]


def plan(
    fleet: Committed,
    release: ReleaseRef,
    manifest_of: FindManifest,
    policy: Policy | None,
    holds: FindHold = nobody,
) -> Plan:
    """Return what a rollout of `policy` would do now, or (None) a rollback at once.

    Args:
        manifest_of: Looks up what a release says of itself.
        holds: Who is kept out of rollouts.
    Raises:
        PolicyInvalid: so many devices, or so few, can never satisfy it.
    """
    at_once = policy is None
    given = AT_ONCE if policy is None else policy
    manifest = manifest_of(release.bundle_sha256)
    fit = [each for each in fleet.devices.values() if selected(each, given.selector) and can_run(each, manifest)]
    held = {each.id: hold for each in fit if (hold := holds(each.id)) is not None}
    devices = [each for each in fit if each.id not in held or not held[each.id].is_out]
    devices.sort(key=lambda device: device.id)
    classes = count_classes(devices)
    previous = previous_release(release, devices, fleet.baselines.get(release.model, ()))
    said = ""
    if not at_once:
        before = None if previous is None else manifest_of(previous.bundle_sha256)
        given, said = declared(given, manifest, before)
    warnings = satisfiable(given, len(devices), classes) if devices and not at_once else []
    rivals = _rivals(fleet, release.model, devices, given.priority, at_once=at_once)
    sizes = list(wave_sizes(given, len(devices))) if devices else []
    first = _first_wave(devices, sizes[0]) if sizes and not at_once else {}
    changing = sum(not should_run(fleet.desired.get(device.id), release) for device in devices)
    return Plan(
        model=release.model,
        version=release.version,
        previous=None if previous is None else previous.version,
        refusal=_refusal(release, devices, rivals, changing, at_once=at_once),
        at_once=at_once,
        devices=len(devices),
        online=sum(device.online for device in devices),
        changing=changing,
        in_standby=sum(is_release(standby(device, release.model), release) for device in devices),
        previous_active=sum(
            previous is not None and is_release(active(device, release.model), previous) for device in devices
        ),
        classes=classes,
        waves=sizes,
        first_wave=first,
        controls=_controls(devices, first, previous, given),
        warnings=[*warnings, *([said] if said else []), *_left_alone(held.values())],
        rivals=rivals,
        policy=msgspec.to_builtins(given),
        policy_written=written(given),
    )


def _left_alone(holds: Iterable[Hold]) -> list[str]:
    found = Counter(each.kind for each in holds)
    said = {
        HoldKind.PINNED: "of them pinned: left alone until unpinned",
        HoldKind.QUARANTINED: "more quarantined: not in it",
        HoldKind.REVOKED: "more without an identity, which was revoked: not in it",
        HoldKind.GONE: "more decommissioned and back: not in it until released",
    }
    return [f"{found[kind]} {words}" for kind, words in said.items() if found[kind]]


def check(fleet: Committed, policy: Policy) -> PolicyChecked:
    """Return whether the present fleet could satisfy `policy`, which is valid in itself."""
    devices = [device for device in fleet.devices.values() if selected(device, policy.selector)]
    classes = count_classes(devices)
    try:
        warnings, message, field = satisfiable(policy, len(devices), classes), None, None
    except PolicyInvalid as error:
        warnings, message, field = [], str(error), error.field
    return PolicyChecked(
        valid=message is None,
        message=message,
        field=field,
        line=None,
        written=written(policy),
        devices=len(devices),
        classes=classes,
        warnings=warnings,
    )


def count_classes(devices: Iterable[Device]) -> dict[str, int]:
    return dict(sorted(Counter(map(device_class, devices)).items()))


def _refusal(
    release: ReleaseRef, devices: Sequence[Device], rivals: Sequence[Rival], changing: int, *, at_once: bool
) -> str | None:
    named = f"{release.model} {release.version}"
    if not devices:
        return f"no known device that the selector names can run {named}"
    if not changing and not at_once:
        return f"{named} is what the fleet runs already, as far as the selector names it"
    for rival in rivals:
        if rival.then == "refused":
            return (
                f"rollout {rival.rollout} is {rival.state} and has {rival.devices} of these devices; abort it, wait,"
                f" select others, or give this one a priority above {rival.priority}"
            )
    return None


def _rivals(
    fleet: Committed, model: ModelName, devices: Sequence[Device], priority: int, *, at_once: bool
) -> list[Rival]:
    names = {device.id for device in devices}
    found: list[Rival] = []
    for rollout in sorted(fleet.running.values(), key=lambda each: each.created_at):
        if rollout.model != model:
            continue
        has = {device for device in rollout.members if has_say(rollout, device)}
        shared = has & names
        if at_once:
            found.append(_rival(rollout, len(shared), "superseded"))
        elif shared and rollout.policy.priority >= priority:
            found.append(_rival(rollout, len(shared), "refused"))
        elif shared:
            found.append(_rival(rollout, len(shared), "superseded" if has <= names else "taken_over"))
    return found


def _rival(rollout: Rollout, shared: int, then: str) -> Rival:
    return Rival.model_validate(
        {
            "rollout": rollout.id,
            "version": rollout.release.version,
            "state": rollout.state.value,
            "priority": rollout.policy.priority,
            "devices": shared,
            "then": then,
        }
    )


def _first_wave(devices: Sequence[Device], size: int) -> dict[str, int]:
    """Return by class how many devices the first wave takes, of those that are online."""
    there = [device for device in devices if device.online]
    order = waves.stratified({device.id: device_class(device) for device in there}, lambda _: None)
    classes = {device.id: device_class(device) for device in there}
    members = [Member(name, classes[name], place) for place, name in enumerate(order)]
    return dict(sorted(Counter(member.device_class for member in waves.choose(members, size)).items()))


def _controls(
    devices: Sequence[Device], first: dict[str, int], previous: ReleaseRef | None, policy: Policy
) -> dict[str, int]:
    """Return by class how many devices can be held back beside the first wave."""
    found: dict[str, int] = {}
    for name, taken in first.items():
        fit = sum(
            device.online
            and device_class(device) == name
            and previous is not None
            and is_release(active(device, previous.model), previous)
            for device in devices
        )
        found[name] = max(0, min(taken * policy.controls_per_device, fit - taken))
    return found
