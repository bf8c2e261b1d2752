"""Who of a rollout waits for what: for how many devices each reason holds, and the devices of one page. Pure.

Devices alike in the rollout, equally present and equally held wait for the same: `explain` is asked of one of them.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from muster_controller.core.rollout.explain import Explained, Held, Presence, Why, explained
from muster_controller.core.rollout.roll import Roll
from muster_controller.core.rollout.state import Outcome, Rollout
from muster_controller.fleet_index import bits
from muster_shared.ids import DeviceId

SILENT = (Why.DONE, Why.ENDED)
"""Who is so waits for nothing."""


@dataclass(frozen=True)
class Present:
    """What is known of the members beside the rollout, by their places in its roll."""

    online: int
    """Bits."""
    held: Mapping[int, Held]
    """Whom operators hold."""
    seen_at: Callable[[DeviceId], float | None]
    """When a device last spoke, Unix seconds."""
    seen: int = -1
    """Who may be told of, bits: all."""


@dataclass(frozen=True)
class Waiting:
    """Places by what the devices there wait for, as bits; reasons that hold for nobody are not there."""

    rollout: Rollout
    roll: Roll
    present: Present
    now: float
    places: Mapping[Why, int]

    @property
    def counts(self) -> dict[Why, int]:
        return {why: places.bit_count() for why, places in self.places.items()}

    def lines(self, start: int, most: int, whys: Collection[Why] | None = None) -> list[Explained]:
        """Return devices in the order of the rollout, from the one numbered `start`, that wait for one of `whys`."""
        found = 0
        for why, places in self.places.items():
            if whys is None or why in whys:
                found |= places
        page = bits.numbers(found)[start : start + most]
        names = {self.roll.order[place] for place in page}
        queue = {device: place for place, device in enumerate(self.rollout.queue, 1) if device in names}
        return [self._explained(place, queue) for place in page]

    def _explained(self, place: int, queue: Mapping[DeviceId, int]) -> Explained:
        name = self.roll.order[place]
        presence = Presence(
            bool(self.present.online >> place & 1), self.present.seen_at(name), self.present.held.get(place)
        )
        return explained(self.rollout, self.rollout.members[name], presence, self.now, queue or None)


def waiting_of(rollout: Rollout, roll: Roll, present: Present, now: float) -> Waiting:
    """Return who waits for what at `now` (Unix seconds), as `who_waits` says it of each device."""
    found: dict[Why, int] = {}
    alike = list(_alike(rollout, roll, present))
    for group in roll.members.values():
        for of, is_online, held in alike:
            places = group.places & of & present.seen
            if not places:
                continue
            member = rollout.members[roll.order[(places & -places).bit_length() - 1]]
            said = explained(rollout, member, Presence(is_online, None, held), now, {member.device: 1}).why
            if said not in SILENT:
                found[said] = found.get(said, 0) | places
    return Waiting(rollout, roll, present, now, found)


def _alike(rollout: Rollout, roll: Roll, present: Present) -> Iterator[tuple[int, bool, Held | None]]:
    """Yield everybody in pieces that are equally present, held, and held back in the present wave."""
    ordered: list[tuple[int, Held | None]] = []
    for is_quarantined in (False, True):
        those = {place: each for place, each in present.held.items() if each.is_quarantined == is_quarantined}
        if those:
            ordered.append((bits.of(those.keys()), next(iter(those.values()))))
    ordered.append((~bits.of(present.held.keys()), None))
    back = 0
    for group in roll.controls.values():
        if group.each.wave == rollout.wave and group.each.outcome is Outcome.PENDING:
            back |= group.places
    for is_online, there in ((True, present.online), (False, ~present.online)):
        for held, hold in ordered:
            for beside in (back, ~back):
                if pieces := there & held & beside:
                    yield pieces, is_online, hold
