"""The values of a label by how many devices have them, kept for as long as no device's label changes. Pure.

A serial number has a value for every device: to count and sort those anew for each page costs more than all the rest,
and hardly any commit changes a label. What the index has once shown it never changes, so the same values are the same
object.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import compress
from typing import Final

from muster_controller.fleet_index import bits
from muster_controller.fleet_index.bits import Members

KEPT_MAX: Final = 1000
"""Labels kept; with more than these, nothing is."""


class Ranked:
    """One label, as one state of the index has it. Never changed."""

    def __init__(self, members: Mapping[object, Members]) -> None:
        """
        Args:
            members: by value, the slots of those who have it; nobody is in two of them.
        """
        self.members = members
        self._counts = {str(value): bits.count(each) for value, each in members.items()}

    @property
    def counts(self) -> Mapping[str, int]:
        """How many devices have each value."""
        return self._counts

    def within(self, among: int, flags: bytes) -> dict[str, int]:
        """Return how many of `among` have each value, without values that none of them has.

        Args:
            flags: the same set, a byte for each slot.
        """
        names, slots, owners, crowds = self._flat
        found = {value: count for value, crowd in crowds if (count := (crowd & among).bit_count())}
        chosen = compress(owners, map(flags.__getitem__, slots))
        found.update((names[owner], count) for owner, count in Counter(chosen).items())
        return found

    def most(self) -> Iterator[tuple[str, int]]:
        """Yield every value with its count, the most frequent first, then by name."""
        return ((value, self._counts[value]) for value in self._order)

    @cached_property
    def _order(self) -> Sequence[str]:
        return sorted(sorted(self._counts), key=self._counts.__getitem__, reverse=True)

    @cached_property
    def _flat(self) -> tuple[list[str], list[int], list[int], list[tuple[str, int]]]:
        """Names; of those who have a rare value, their slots and which name it is; and the crowds, as bits."""
        names: list[str] = []
        slots: list[int] = []
        owners: list[int] = []
        crowds: list[tuple[str, int]] = []
        for value, each in self.members.items():
            if isinstance(each, int):
                crowds.append((str(value), each))
                continue
            owners += [len(names)] * len(each)
            slots += each
            names.append(str(value))
        return names, slots, owners, crowds


class LabelRanks:
    """One beside an index, for all of its views. Safe from any thread: at worst two make the same."""

    def __init__(self) -> None:
        self._kept: dict[str, Ranked] = {}

    def of(self, key: str, members: Mapping[object, Members]) -> Ranked:
        """Return the label `key`, whose values are `members`."""
        if not members:
            return Ranked(members)
        kept = self._kept.get(key)
        if kept is None or kept.members is not members:
            kept = Ranked(members)
            if len(self._kept) >= KEPT_MAX:
                self._kept = {}
            self._kept[key] = kept
        return kept
