"""The roll: every device of a rollout by what counts of it, taken once and then followed from change to change. Pure.

    Rollout ─ roll_of ─▶ Roll ─ followed(before, after, changes) ─▶ Roll ─ ...
                          └─ groups of devices alike: their places, how many, when they were told and are due

Two devices of one group differ in nothing that a count, an outlook, an order or a reason to wait goes by, save for
moments, and for who they are. So whoever counts a hundred thousand devices asks one of each group, by the same function
that is asked of a single device, and multiplies. It decides nothing; the machine does not know it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Generic, TypeVar

from immutables import Map

from muster_controller.core.rollout.alike import Alike
from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import TAKEN, Control, Member, Rollout, in_order
from muster_controller.core.rollout.tally import Tally, tallied
from muster_controller.fleet_index import bits
from muster_shared.ids import DeviceId

Kind = tuple[object, ...]
"""All that counts of a device."""
Moments = Map[float, int]
"""Unix seconds, and of how many devices each is."""
E = TypeVar("E", Member, Control)


@dataclass(frozen=True)
class Group(Generic[E]):
    """Devices alike. Never changed."""

    each: E
    """Any that is, or was, one of them: what counts of it counts of all, which moments it has does not."""
    places: int
    """Whose, as bits."""
    devices: int
    bytes_fetched: int
    told: Moments
    """When they were told; of whom never was there is none."""
    due: Moments
    """By when they are to report."""

    @property
    def alike(self) -> Alike:
        return Alike(self.each, self.devices, self.bytes_fetched)


@dataclass(frozen=True)
class Roll:
    """Of one rollout, as one version of it is. Never changed; versions share what did not change."""

    order: Sequence[DeviceId]
    """The members by place, which is for good: a late joiner comes behind all. Longer where some came since."""
    places: "dict[DeviceId, int]" = field(repr=False)
    """The other way round; not to be written to."""
    length: int
    members: Map[Kind, Group[Member]]
    controls: Map[Kind, Group[Control]]

    @cached_property
    def tally(self) -> Tally:
        return tallied(each.alike for each in (*self.members.values(), *self.controls.values()))

    def where(self, fits: Callable[[Member], bool]) -> int:
        """Return the places of the members that fit, as bits. `fits` goes by no moment, and by nobody's name."""
        found = 0
        for group in self.members.values():
            if fits(group.each):
                found |= group.places
        return found

    def count(self, fits: Callable[[Member], bool]) -> int:
        """Return how many members fit; `fits` as in `where`."""
        return sum(group.devices for group in self.members.values() if fits(group.each))

    def count_controls(self, fits: Callable[[Control], bool]) -> int:
        return sum(group.devices for group in self.controls.values() if fits(group.each))

    def due(self, fits: Callable[[Member], bool]) -> Iterator[float]:
        """Yield every deadline of members that fit, each once or more often."""
        return (at for group in self.members.values() if fits(group.each) for at in group.due)

    def due_controls(self, fits: Callable[[Control], bool]) -> Iterator[float]:
        return (at for group in self.controls.values() if fits(group.each) for at in group.due)

    def told(self, fits: Callable[[Member], bool]) -> Iterator[float]:
        """Yield every moment at which members that fit were told, each once or more often."""
        return (at for group in self.members.values() if fits(group.each) for at in group.told)

    def names(self, places: int) -> list[DeviceId]:
        """Return who is at these places, in order."""
        return bits.picked(places, self.order, self.length)


def roll_of(rollout: Rollout) -> Roll:
    """Take the roll of every device of `rollout`."""
    order = [member.device for member in in_order(rollout.members.values())]
    places = {device: place for place, device in enumerate(order)}
    members, controls = _Edits[Member](), _Edits[Control]()
    for member in rollout.members.values():
        members.join(member_kind(rollout, member), member)
    for control in rollout.controls.values():
        controls.join(control_kind(control), control)
    return Roll(order, places, len(order), members.done(Map(), places), controls.done(Map(), places))


def followed(roll: Roll, before: Rollout, after: Rollout, changes: Changes) -> Roll:
    """Return the roll of `after`, which differs from `before` in the devices alone that `changes` names.

    Args:
        roll: That of `before`.
    """
    if not changes.members and not changes.controls:
        return roll
    pairs = [(before.members.get(device), after.members.get(device)) for device in changes.members]
    joined = in_order(new for old, new in pairs if old is None and new is not None)
    if any(new is None and old is not None for old, new in pairs) or not _is_behind(roll, after, joined):
        return roll_of(after)  # It never happens: nobody is struck off a rollout, and who joins comes last.
    order, places, length = _longer(roll, [member.device for member in joined])
    members, controls = _Edits[Member](), _Edits[Control]()
    for old, new in pairs:
        if old is not None:
            members.leave(member_kind(before, old), old)
        if new is not None:
            members.join(member_kind(after, new), new)
    seated = {member.device for member in joined}  # One that was held back as no member has a place only now.
    seats = {key for key in after.controls if key[1] in seated} if seated else set()
    for key in changes.controls | seats:
        if (held := before.controls.get(key)) is not None:
            controls.leave(control_kind(held), held)
        if (held := after.controls.get(key)) is not None:
            controls.join(control_kind(held), held)
    return Roll(order, places, length, members.done(roll.members, places), controls.done(roll.controls, places))


def member_kind(rollout: Rollout, member: Member) -> Kind:
    """Return all of a member that a count, an order or a reason to wait goes by, but for moments."""
    previous = member.previous
    return (
        member.device_class,
        member.wave,
        member.outcome,
        member.second,
        member.cause == TAKEN,
        member.returned,
        member.assigned_at is None,
        member.deadline_at is None,
        member.deferred_until is None,
        member.retry_at is None,
        previous is not None and previous.bundle_sha256 != rollout.release.bundle_sha256,  # As `state.home` asks.
    )


def control_kind(control: Control) -> Kind:
    return (
        control.device_class,
        control.wave,
        control.outcome,
        control.assigned_at is None,
        control.deadline_at is None,
        control.deferred_until is None,
    )


def _is_behind(roll: Roll, after: Rollout, joined: Sequence[Member]) -> bool:
    """Return whether those who join stand behind all who are there."""
    if not joined or not roll.length:
        return True
    return after.members[roll.order[roll.length - 1]].position < joined[0].position


def _longer(roll: Roll, joined: Sequence[DeviceId]) -> tuple[Sequence[DeviceId], dict[DeviceId, int], int]:
    """Return order, places and length with some more at the end.

    All versions of a rollout share one list, which only grows; one that grew otherwise is another rollout's.
    """
    if not joined:
        return roll.order, roll.places, roll.length
    order, places = roll.order, roll.places
    if not isinstance(order, list) or len(order) != roll.length:
        order = list(order[: roll.length])
        places = {device: place for place, device in enumerate(order)}
    for device in joined:
        places[device] = len(order)
        order.append(device)
    return order, places, len(order)


class _Edits(Generic[E]):
    """Who comes to groups and who goes from them, all of one change."""

    def __init__(self) -> None:
        self._coming: dict[Kind, list[E]] = {}
        self._going: dict[Kind, list[E]] = {}

    def join(self, kind: Kind, each: E) -> None:
        self._coming.setdefault(kind, []).append(each)

    def leave(self, kind: Kind, each: E) -> None:
        self._going.setdefault(kind, []).append(each)

    def done(self, groups: Map[Kind, Group[E]], places: Mapping[DeviceId, int]) -> Map[Kind, Group[E]]:
        """Return `groups` with all of it."""
        found = groups.mutate()
        for kind in self._coming.keys() | self._going.keys():
            coming, going = self._coming.get(kind, []), self._going.get(kind, [])
            group = found.get(kind) or Group((coming or going)[-1], 0, 0, 0, Map(), Map())
            devices = group.devices + len(coming) - len(going)
            if not devices:
                found.pop(kind, None)
                continue
            found[kind] = Group(
                coming[-1] if coming else group.each,
                # Who leaves a group and joins it again has changed in nothing that tells groups apart.
                (group.places & ~_places(going, places)) | _places(coming, places),
                devices,
                group.bytes_fetched + _fetched(coming) - _fetched(going),
                _moved(group.told, coming, going, attrgetter("assigned_at")),
                _moved(group.due, coming, going, attrgetter("deadline_at")),
            )
        return found.finish()


def _places(devices: Iterable[Member | Control], places: Mapping[DeviceId, int]) -> int:
    return bits.of([places[each.device] for each in devices if each.device in places])


def _fetched(devices: Iterable[Member | Control]) -> int:
    return sum(each.bytes_fetched for each in devices if isinstance(each, Member))


def _moved(moments: Moments, coming: Sequence[E], going: Sequence[E], of: Callable[[E], float | None]) -> Moments:
    """Return the moments with more devices at some and fewer at others."""
    if of((coming or going)[0]) is None:
        return moments  # Then it is None of all: their kind tells whether they have one.
    steps = Counter(map(of, coming))
    steps.subtract(Counter(map(of, going)))
    found = moments.mutate()
    for at, step in steps.items():
        if at is not None and step:
            count = found.get(at, 0) + step
            if count:
                found[at] = count
            else:
                found.pop(at, None)
    return found.finish()
