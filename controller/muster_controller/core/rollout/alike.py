"""Rollouts without their devices: how many there are of each kind that counts differently, and what follows. Pure.

A page of a hundred rollouts says of each how it stands; for that nobody has to read ten million devices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from muster_controller.core.rollout.state import Control, Member, Rollout


class Alike(NamedTuple):
    """So many devices that differ in nothing that is counted; `each` is any of them.

    Of `each`, whether a moment is there means something, and not which; it may have no name.
    """

    each: Member | Control
    devices: int
    bytes_fetched: int
    """Of all of them together."""


@dataclass(frozen=True)
class Summed:
    """A rollout with its strata, and neither devices nor verdicts; `groups` are its devices."""

    rollout: Rollout
    groups: tuple[Alike, ...]


def one_by_one(rollout: Rollout) -> Iterator[Alike]:
    """Yield the devices of a rollout that has them."""
    for member in rollout.members.values():
        yield Alike(member, 1, member.bytes_fetched)
    for control in rollout.controls.values():
        yield Alike(control, 1, 0)
