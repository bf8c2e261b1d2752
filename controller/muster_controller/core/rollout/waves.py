"""Waves: in which order devices come, how many a wave takes, which ones, and who is held back beside them.

Pure. Every wave is stratified by device class: it holds the classes in proportion, and each class at least once where
there is room, so that the first wave has every class.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from muster_controller.core.gate.ramp import next_wave
from muster_controller.core.policy import Policy, wave_sizes
from muster_controller.core.rollout.draft import Draft, sums
from muster_controller.core.rollout.events import DeviceFacts
from muster_controller.core.rollout.state import LATE, Member
from muster_shared.ids import DeviceId
from muster_shared.messages import ReleaseRef


def stratified(devices: Mapping[DeviceId, str], shuffle: Callable[[list[DeviceId]], None]) -> list[DeviceId]:
    """Return all devices so that every prefix holds each class in proportion.

    Args:
        devices: Device classes by id.
        shuffle: Puts a list into random order, in place.
    """
    classes: dict[str, list[DeviceId]] = {}
    for device in sorted(devices):
        classes.setdefault(devices[device], []).append(device)
    placed: list[tuple[float, int, DeviceId]] = []
    for number, name in enumerate(sorted(classes)):
        members = classes[name]
        shuffle(members)
        placed += [(place / len(members), number, device) for place, device in enumerate(members)]
    return [device for _, _, device in sorted(placed)]


def planned(policy: Policy, devices: int) -> tuple[int, ...]:
    """Return the sizes that are settled before the rollout begins; a ramp settles only its first."""
    if policy.ramp is None:
        return wave_sizes(policy, devices)
    return (min(policy.ramp.first, devices),)


def next_size(draft: Draft, available: int) -> int:
    """Return how many of `available` devices the next wave takes; by a ramp, as many as the evidence bears (F5)."""
    rollout = draft.rollout
    wave = rollout.wave + 1
    ramp = rollout.policy.ramp
    if ramp is None:
        return available if wave >= len(rollout.waves) - 1 else rollout.waves[wave]
    if wave == 0:
        return ramp.first
    if wave >= ramp.waves_max - 1:
        return available
    treated, bad = sums(draft.strata)
    found = next_wave(
        max(rollout.waves[-1], 1),
        bad,
        treated,
        sum(each.controls_bad for each in draft.strata.values()),
        sum(each.controls for each in draft.strata.values()),
        factor=ramp.factor,
        harm_max=ramp.harm_max,
        alpha=rollout.policy.alpha,
        e=draft.weigh().e,
        smallest=ramp.first,
    )
    return max(1, found)


def choose(candidates: Sequence[Member], size: int) -> list[Member]:
    """Return `size` of `candidates` (in their order), each class at least once where there is room.

    Late joiners fill what room is left when all others are taken.
    """
    if size >= len(candidates):
        return list(candidates)
    firsts: dict[str, Member] = {}
    in_time = [member for member in candidates if member.position < LATE]
    if size >= len(in_time):
        return list(candidates[:size])
    candidates = in_time
    for member in candidates:
        firsts.setdefault(member.device_class, member)
    chosen = {member.device: member for member in list(firsts.values())[:size]}
    for member in candidates:
        if len(chosen) >= size:
            break
        chosen.setdefault(member.device, member)
    return sorted(chosen.values(), key=lambda member: member.position)


@dataclass(frozen=True)
class Pair:
    """One treated device, and those that are held back for it alone."""

    treated: Member
    held: tuple[Member, ...]


def hold_back(
    chosen: Sequence[Member],
    rest: Iterable[Member],
    per_device: int,
    previous: ReleaseRef | None,
    fleet: Mapping[DeviceId, DeviceFacts],
) -> list[Pair]:
    """Deal out to each of `chosen` up to `per_device` of `rest` that are of its class and run `previous`."""
    held: dict[DeviceId, list[Member]] = {member.device: [] for member in chosen}
    if previous is not None and per_device:
        by_class: dict[str, list[DeviceId]] = {}
        for member in chosen:
            by_class.setdefault(member.device_class, []).append(member.device)
        dealt: dict[str, int] = dict.fromkeys(by_class, 0)
        wanted = len(chosen) * per_device
        for member in rest:
            partners = by_class.get(member.device_class)
            if partners is None or dealt[member.device_class] >= len(partners) * per_device:
                continue
            facts = fleet.get(member.device)
            if facts is None or not facts.online or not runs(facts, previous):
                continue
            held[partners[dealt[member.device_class] % len(partners)]].append(member)
            dealt[member.device_class] += 1
            wanted -= 1
            if not wanted:
                break
    return [Pair(member, tuple(held[member.device])) for member in chosen]


def runs(facts: DeviceFacts, release: ReleaseRef) -> bool:
    return facts.active is not None and facts.active.bundle_sha256 == release.bundle_sha256
