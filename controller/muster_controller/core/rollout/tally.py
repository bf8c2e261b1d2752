"""The tally: how many devices of a rollout stand how. Pure.

What one device counts as is said here alone. Who follows a rollout from change to change has it of the `roll`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from muster_controller.core.rollout.alike import Alike, one_by_one
from muster_controller.core.rollout.state import Control, Member, Outcome, Rollout, is_in_flight, is_queued

_OUTCOME = "outcome "


@dataclass(frozen=True)
class Tally:
    """By name, how many devices (of `bytes_fetched`: bytes) there are; what is missing is none. Never changed."""

    counts: Mapping[str, int]

    @property
    def outcomes(self) -> dict[str, int]:
        """How many devices came to which outcome, or are `waiting` to be told; not those that another rollout has."""
        return {name.removeprefix(_OUTCOME): n for name, n in self.counts.items() if name.startswith(_OUTCOME)}


def tallied(devices: Iterable[Alike]) -> Tally:
    """Return the tally of devices, each with how many there are of its kind."""
    found = Counter[str]()
    for each, count, fetched in devices:
        _count(found, each, count, fetched)
    return _kept(found)


def tally_of(rollout: Rollout) -> Tally:
    """Count every device of `rollout`."""
    return tallied(one_by_one(rollout))


def _count(found: Counter[str], each: Member | Control, count: int, fetched: int) -> None:
    if isinstance(each, Control):
        found["controls"] += count * (each.assigned_at is not None)
        return
    found["devices"] += count
    if not each.is_taken:
        found[_OUTCOME + (each.outcome.value if each.is_touched else "waiting")] += count
    found["returned"] += count * each.returned
    found["bytes_fetched"] += fetched
    if is_in_flight(each):
        found["pending"] += count
        found["deferred"] += count * (each.deferred_until is not None)
        found["retrying"] += count * (each.retry_at is not None)
    elif is_queued(each):
        found["queued"] += count
    else:
        found["waiting" if each.outcome is Outcome.PENDING else each.outcome.value] += count


def _kept(found: Counter[str]) -> Tally:
    return Tally(MappingProxyType({name: count for name, count in found.items() if count}))
