"""One fleet as its index had it at one moment: who fits a filter, in which order, and how many. Pure, never changed.

Questions cost "and" and "or" over bit sets, not a walk over the devices; what a device says is looked up by whoever
shows the page, for its hundred rows.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, reduce
from itertools import compress, islice
from operator import or_
from typing import Final, NamedTuple

from muster_controller.core.selector import Operator, Requirement, Selector
from muster_controller.fleet_index import bits
from muster_controller.fleet_index.bits import Members
from muster_controller.fleet_index.label_ranks import LabelRanks
from muster_controller.standing import FleetSums, Standing, VersionShare
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, ModelName

Facet = tuple[str, str]
"""What kind of fact, and of labels which key."""
STANDING: Final[Facet] = ("standing", "")
CLASS: Final[Facet] = ("class", "")
ONLINE: Final[Facet] = ("online", "")
TWIN: Final[Facet] = ("twin", "")
SERVES: Final[Facet] = ("serves", "")
DESIRED: Final[Facet] = ("desired", "")
ERROR: Final[Facet] = ("error", "")
LABEL: Final = "label"
HAS: Final = "has"
"""That a label is there, whatever its value."""


class Served(NamedTuple):
    """A release, as what serves or should serve."""

    model: ModelName
    release: int
    version: str


class Sort(StrEnum):
    ID = "id"
    SEEN = "seen"
    CLASS = "class"
    STANDING = "standing"


@dataclass(frozen=True)
class Order:
    by: Sort = Sort.ID
    is_falling: bool = False

    def __str__(self) -> str:
        return f"{'-' if self.is_falling else ''}{self.by.value}"


def parse_order(text: str) -> Order:
    """Return the order that `id`, `-seen` and so on say. Raises WireError."""
    name = text.removeprefix("-")
    if name not in tuple(Sort):
        raise WireError(f"devices are sorted by {', '.join(Sort)}, or with a - in front; not by {text[:40]!r}")
    return Order(Sort(name), text.startswith("-"))


@dataclass(frozen=True)
class Filter:
    """What must all hold. `selector` is as in policies: of a device that said nothing yet nothing is known.

    `silent_since`: not heard since then, Unix seconds. `among`: one of these; `apart_from`: none of these.
    """

    standing: Standing | None = None
    online: bool | None = None
    device_class: str | None = None
    selector: Selector = field(default_factory=Selector)
    text: str | None = None
    model: str | None = None
    version: str | None = None
    has_error: bool | None = None
    silent_since: float | None = None
    among: Collection[DeviceId] | None = None
    apart_from: Collection[DeviceId] = ()


@dataclass(frozen=True)
class Found:
    """One page, how many there are in all, and where the next page begins; None: this is the last."""

    devices: Sequence[DeviceId]
    total: int
    next: str | None


@dataclass(frozen=True)
class ValueCount:
    value: str
    devices: int
    standings: Mapping[Standing, int]


@dataclass(frozen=True)
class ClassSums:
    device_class: str
    devices: int
    online: int
    standings: Mapping[Standing, int]


@dataclass(frozen=True)
class KeyCount:
    """A label key: how many devices have it, with how many values."""

    key: str
    devices: int
    values: int


@dataclass(frozen=True)
class FleetView:
    scope: int
    """Whom the viewer sees; all that is said is of these alone."""
    facets: Mapping[Facet, Mapping[object, Members]]
    ids: Sequence[DeviceId]
    """By slot; longer than `length` where devices came since."""
    order: Sequence[int]
    """Slots by id."""
    seen: "array[float]"
    slots: Mapping[DeviceId, int]
    length: int
    is_whole: bool = True
    ranks: LabelRanks = field(default_factory=LabelRanks, compare=False)
    """Shared by all views of an index."""

    @property
    def total(self) -> int:
        return self.scope.bit_count()

    def restricted(self, selector: Selector) -> "FleetView":
        """Return the part that a selector fits. A device that said nothing yet has no labels, and may fit `!key`."""
        return replace(self, scope=self._fitting(selector), is_whole=False)

    def has(self, device: DeviceId) -> bool:
        slot = self.slots.get(device)
        return slot is not None and slot < self.length and bool(self._flags[slot])

    def matching(self, wanted: Filter) -> int:
        """Return the slots to which everything in `wanted` applies."""
        found = self._fitting(wanted.selector)
        if wanted.selector.requirements:
            found &= self._of(TWIN, True)
        if wanted.standing is not None:
            found &= self._of(STANDING, wanted.standing)
        if wanted.online is not None:
            online = self._of(ONLINE, True)
            found &= online if wanted.online else ~online
        if wanted.device_class is not None:
            found &= self._of(CLASS, wanted.device_class)
        if wanted.has_error is not None:
            failed = self._of(ERROR, True)
            found &= failed if wanted.has_error else ~failed
        if wanted.model is not None or wanted.version is not None:
            found &= self._serving(wanted.model, wanted.version)
        if wanted.among is not None:
            found &= self._called(wanted.among)
        if wanted.apart_from:
            found &= ~self._called(wanted.apart_from)
        if wanted.silent_since is not None:
            found &= bits.where(map(float(wanted.silent_since).__gt__, self.seen))
        if wanted.text:
            text = wanted.text
            found &= bits.where([text in each for each in islice(self.ids, self.length)])
        return found

    def count(self, wanted: Filter) -> int:
        return self.matching(wanted).bit_count()

    def devices(self, wanted: Filter) -> Iterator[DeviceId]:
        """Yield everybody who fits, by id."""
        flags = bits.flags(self.matching(wanted), self.length)
        return (self.ids[slot] for slot in self.order if flags[slot])

    def everybody(self) -> Iterator[DeviceId]:
        """Yield everybody in sight, by id."""
        return (self.ids[slot] for slot in self.order if self._flags[slot])

    def page(self, wanted: Filter, order: Order, after: str | None, limit: int) -> Found:
        """Return the page behind the cursor `after`, `limit` >= 1 devices long.

        A cursor names the last device of the page before and what it was sorted by, so that devices that come or go
        meanwhile shift nothing; one whose class, standing or sign of life changes moves, and may be met twice or not.
        Raises WireError: this is no cursor of this order.
        """
        matching = self.matching(wanted)
        if order.by is Sort.ID:
            found = [(str(each), each) for each in islice(self._by_id(matching, after, order.is_falling), limit + 1)]
        elif order.by is Sort.SEEN:
            found = self._by_seen(matching, after, order.is_falling, limit + 1)
        else:
            found = list(islice(self._by_group(matching, order, after), limit + 1))
        page = found[:limit]
        return Found(
            [each for _, each in page], matching.bit_count(), page[-1][0] if len(found) > limit and page else None
        )

    # -- counts ------------------------------------------------------------------------------------------------------

    def sums(self, wanted: Filter | None = None) -> FleetSums:
        """Return the fleet at a glance, or that part of it."""
        if wanted is None:
            return self._sums
        return self._sum(self.matching(wanted))

    @cached_property
    def _sums(self) -> FleetSums:
        return self._sum(self.scope)

    def _sum(self, among: int) -> FleetSums:
        serves = {key: count for key, count in self._counts(SERVES, among).items() if isinstance(key, Served)}
        return FleetSums(
            devices=among.bit_count(),
            online=(self._of(ONLINE, True) & among).bit_count(),
            standings=self._standings(among),
            classes=dict(sorted((str(each), count) for each, count in self._counts(CLASS, among).items())),
            versions=tuple(
                VersionShare(key.model, key.version, key.release, count) for key, count in sorted(serves.items())
            ),
        )

    def label_keys(self) -> list[KeyCount]:
        """Return the label keys in use, by key."""
        found = []
        for facet in sorted(self.facets):
            if facet[0] == LABEL:
                devices = (self._of((HAS, facet[1]), True) & self.scope).bit_count()
                values = len(self.facets[facet] if self.is_whole else self._label_counts(facet[1]))
                if devices:
                    found.append(KeyCount(facet[1], devices, values))
        return found

    def label_values(self, key: str, limit: int, *, prefix: str = "") -> list[ValueCount]:
        """Return the values of a label that most devices have, these first."""
        return [
            ValueCount(value, count, self._standings(self._of((LABEL, key), value) & self.scope))
            for value, count in islice(self._most(key, limit, prefix), limit)
        ]

    def crossed(
        self, rows: str, row_values: Sequence[str], columns: str, column_values: Sequence[str]
    ) -> list[list[int]]:
        """Return how many devices have both labels, a list for each of `row_values`."""
        across = [self._of((LABEL, columns), value) & self.scope for value in column_values]
        return [[(self._of((LABEL, rows), value) & each).bit_count() for each in across] for value in row_values]

    def classes(self) -> list[ClassSums]:
        """Return how those of each device class stand, by class."""
        found = []
        for name in self.facets.get(CLASS, {}):
            members = self._of(CLASS, name) & self.scope
            if members:
                online = (self._of(ONLINE, True) & members).bit_count()
                found.append(ClassSums(str(name), members.bit_count(), online, self._standings(members)))
        return sorted(found, key=lambda each: each.device_class)

    def _most(self, key: str, limit: int, prefix: str) -> Iterator[tuple[str, int]]:
        if self.is_whole:
            most = self.ranks.of(key, self.facets.get((LABEL, key), {})).most()
            return ((value, count) for value, count in most if value.startswith(prefix))
        counts = {value: count for value, count in self._label_counts(key).items() if value.startswith(prefix)}
        if len(counts) > limit:  # Numbers sort far faster than pairs.
            edge = sorted(counts.values(), reverse=True)[limit - 1] if limit else 0
            counts = {value: count for value, count in counts.items() if count >= edge}
        return ((value, -count) for count, value in sorted((-count, value) for value, count in counts.items()))

    def _label_counts(self, key: str) -> Mapping[str, int]:
        ranked = self.ranks.of(key, self.facets.get((LABEL, key), {}))
        return ranked.counts if self.is_whole else ranked.within(self.scope, self._flags)

    def _standings(self, among: int) -> dict[Standing, int]:
        counts = {each: (self._of(STANDING, each) & among).bit_count() for each in Standing}
        return {each: count for each, count in counts.items() if count}

    def _counts(self, facet: Facet, among: int) -> dict[object, int]:
        if self.is_whole and among == self.scope:  # Nobody is elsewhere, and no empty set is kept.
            return {value: bits.count(members) for value, members in self.facets.get(facet, {}).items()}
        flags: bytes | None = None
        found: dict[object, int] = {}
        for value, members in self.facets.get(facet, {}).items():
            if isinstance(members, int):
                count = (members & among).bit_count()
            else:
                flags = bits.flags(among, self.length) if flags is None else flags
                count = sum(flags[slot] for slot in members)
            if count:
                found[value] = count
        return found

    # -- sets --------------------------------------------------------------------------------------------------------

    def _of(self, facet: Facet, value: object) -> int:
        return bits.bits(self.facets.get(facet, {}).get(value, ()))

    def _serving(self, model: str | None, version: str | None) -> int:
        chosen = (
            bits.bits(members)
            for key, members in self.facets.get(SERVES, {}).items()
            if isinstance(key, Served)
            and (model is None or key.model == model)
            and (version is None or key.version == version)
        )
        return reduce(or_, chosen, 0)

    def _called(self, names: Collection[DeviceId]) -> int:
        known = (self.slots.get(each) for each in names)
        return bits.of([slot for slot in known if slot is not None and slot < self.length])

    def _fitting(self, selector: Selector) -> int:
        found = self.scope
        for requirement in selector.requirements:
            found &= self._meeting(requirement)
        return found

    def _meeting(self, requirement: Requirement) -> int:
        facet = (LABEL, requirement.key)
        match requirement.operator:
            case Operator.IN:
                return reduce(or_, (self._of(facet, value) for value in requirement.values), 0)
            case Operator.NOT_IN:
                return ~reduce(or_, (self._of(facet, value) for value in requirement.values), 0)
            case Operator.EXISTS:
                return self._of((HAS, requirement.key), True)
            case Operator.MISSING:
                return ~self._of((HAS, requirement.key), True)

    # -- orders ------------------------------------------------------------------------------------------------------

    @cached_property
    def _flags(self) -> bytes:
        return bits.flags(self.scope, self.length)

    def _by_id(self, among: int, after: str | None, is_falling: bool) -> Iterator[DeviceId]:
        flags = bits.flags(among, self.length)
        order = self.order
        if is_falling:
            end = len(order) if after is None else bisect_left(order, after, key=self.ids.__getitem__)
            return (self.ids[order[at]] for at in range(end - 1, -1, -1) if flags[order[at]])
        start = 0 if after is None else bisect_right(order, after, key=self.ids.__getitem__)
        return (self.ids[order[at]] for at in range(start, len(order)) if flags[order[at]])

    def _by_group(self, among: int, order: Order, after: str | None) -> Iterator[tuple[str, DeviceId]]:
        facet = STANDING if order.by is Sort.STANDING else CLASS
        rank = {each: at for at, each in enumerate(Standing)}
        groups = sorted(
            ((rank[value] if isinstance(value, Standing) else 0, str(value)) for value in self.facets.get(facet, {})),
            reverse=order.is_falling,
        )
        last_group: tuple[int, str] | None = None
        last_id: str | None = None
        if after is not None:
            name, colon, last_id = after.rpartition(":")
            if not colon or (facet is STANDING and name not in tuple(Standing)):
                raise _no_cursor(order)
            last_group = (rank[Standing(name)] if facet is STANDING else 0, name)
        for group in groups:
            if last_group is not None and (group > last_group if order.is_falling else group < last_group):
                continue
            value = Standing(group[1]) if facet is STANDING else group[1]
            members = self._of(facet, value) & among
            for each in self._by_id(members, last_id if group == last_group else None, False):
                yield f"{group[1]}:{each}", each

    def _by_seen(self, among: int, after: str | None, is_falling: bool, limit: int) -> list[tuple[str, DeviceId]]:
        times = list(compress(self.seen, bits.flags(among, self.length)))
        slots = bits.numbers(among)
        if after is not None:
            at, colon, last_id = after.partition(":")
            try:
                last = (float(at), last_id)
            except ValueError:
                raise _no_cursor(Order(Sort.SEEN)) from None
            if not colon:
                raise _no_cursor(Order(Sort.SEEN))
            kept = [
                slot
                for slot, time in zip(slots, times, strict=True)
                if (time <= last[0] if is_falling else time >= last[0])
                and (time != last[0] or (self.ids[slot] < last_id if is_falling else self.ids[slot] > last_id))
            ]
            slots, times = kept, [self.seen[slot] for slot in kept]
        if len(times) > limit:  # Numbers sort far faster than pairs: first which time the page ends at.
            edge = sorted(times, reverse=is_falling)[limit - 1]
            slots = [
                slot for slot, time in zip(slots, times, strict=True) if (time >= edge if is_falling else time <= edge)
            ]
        chosen = sorted(((self.seen[slot], self.ids[slot]) for slot in slots), reverse=is_falling)[:limit]
        return [(f"{time!r}:{each}", each) for time, each in chosen]


def _no_cursor(order: Order) -> WireError:
    return WireError(f"this cursor is of no list sorted by {order.by.value}; begin again without it")
