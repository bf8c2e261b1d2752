"""The list of devices and the map of labels, ready to be shown. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from muster_controller.api.asking import words_of
from muster_controller.api.schemas.labels import DeviceListing, LabelView
from muster_controller.api.standing import FleetSums, Standing
from muster_controller.fleet_index.view import parse_order
from muster_controller.web.charts import Segment, segments

LIST = "/devices"


@dataclass(frozen=True)
class Heading:
    """Of a column by which the list is sorted: where a click leads, and how it is sorted now (`aria-sort`)."""

    title: str
    href: str
    sorted: str


@dataclass(frozen=True)
class StandingLink:
    standing: Standing
    count: int
    href: str


@dataclass(frozen=True)
class ValueRow:
    value: str
    devices: int
    href: str
    bar: tuple[Segment, ...]
    words: str


@dataclass(frozen=True)
class KeyPanel:
    """A label key with the values that most devices have; `more`: how many values are not shown."""

    key: str
    devices: int
    href: str
    rows: tuple[ValueRow, ...]
    more: int


@dataclass(frozen=True)
class CrossRow:
    value: str
    cells: tuple[tuple[int, str], ...]
    """How many devices, and the list of them."""


def address(asked: DeviceListing, **changes: str | None) -> str:
    """Return where the list is, as asked but for `changes`; None takes a field out."""
    fields = {key: value for key, value in words_of(asked).items() if key != "limit"}
    fields |= {key: value for key, value in changes.items() if value is not None}
    kept = {key: value for key, value in fields.items() if changes.get(key, "") is not None}
    return LIST + ("?" + urlencode(kept, doseq=True) if kept else "")


def query_of(asked: DeviceListing) -> str:
    """Return the filter and the sort as a query: what a saved view keeps."""
    return address(asked, cursor=None).partition("?")[2]


def headings(asked: DeviceListing) -> Mapping[str, Heading]:
    """Return the columns that sort, by what they sort by."""
    order = parse_order(asked.sort)
    found = {}
    for name, title in (("id", "Device"), ("standing", "State"), ("class", "Class"), ("seen", "Seen")):
        is_here = order.by.value == name
        first = "-seen" if name == "seen" else name
        flipped = asked.sort.removeprefix("-") if order.is_falling else f"-{asked.sort}"
        now = "descending" if order.is_falling else "ascending"
        found[name] = Heading(
            title, address(asked, cursor=None, sort=flipped if is_here else first), now if is_here else "none"
        )
    return found


def standing_links(asked: DeviceListing, sums: FleetSums) -> tuple[StandingLink, ...]:
    """Return how those that were found stand, each with the list of these alone."""
    return tuple(
        StandingLink(each, count, address(asked, cursor=None, state=each.value))
        for each, count in sums.standings.items()
    )


def filter_words(asked: DeviceListing) -> str:
    """Return the filter in force in words, for whoever is about to act by it."""
    said = _filter(asked)
    told = (f"{key} {' '.join(value) if isinstance(value, list) else value}" for key, value in said.items())
    return ", ".join(told) if said else "every device"


def choice(asked: DeviceListing) -> str:
    """Return the filter in force as the field `where` of an order, in JSON."""
    return json.dumps(_filter(asked))


def key_panel(label: LabelView) -> KeyPanel:
    rows = tuple(
        ValueRow(
            each.value,
            each.devices,
            picked({label.key: each.value}),
            segments([(standing.value, count) for standing, count in each.standings.items()]),
            ", ".join(f"{count} {standing.value}" for standing, count in each.standings.items()),
        )
        for each in label.top
    )
    href = LIST + "?" + urlencode({"selector": label.key})
    return KeyPanel(label.key, label.devices, href, rows, label.values - len(rows))


def cross_rows(
    one: str, values: Sequence[str], other: str, across: Sequence[str], counts: Sequence[Sequence[int]]
) -> tuple[CrossRow, ...]:
    """Return the rows of a table of two labels."""
    return tuple(
        CrossRow(
            value, tuple((count, picked({one: value, other: each})) for count, each in zip(row, across, strict=True))
        )
        for value, row in zip(values, counts, strict=True)
    )


def picked(labels: Mapping[str, str]) -> str:
    """Return the list of the devices with all of `labels`."""
    return LIST + "?" + urlencode({"label": [f"{key}={value}" for key, value in labels.items()]}, doseq=True)


def _filter(asked: DeviceListing) -> dict[str, str | list[str]]:
    return {key: value for key, value in words_of(asked).items() if key not in ("sort", "cursor", "limit")}
