"""What becomes of windows: dates, sums, what is published together, and that each window is in one published cell."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_controller.mixer import batching
from muster_controller.mixer.batching import (
    ALL,
    DAY_AGAIN_S,
    DAY_WAITS_S,
    HOUR_CLOSES_LATEST_S,
    HOUR_CLOSES_S,
    HOUR_KEPT_S,
    OLD_S,
    OpenPeriod,
    Pending,
    Period,
    Verdict,
    add,
    gather,
    is_due,
    is_last,
    verdict,
)
from muster_shared.ids import ModelName
from muster_shared.metrics import DAY_S, HOUR_S, Cell, Kind, Window, pack

NOON = 20_000 * DAY_S + 12 * HOUR_S
HOUR = Period(NOON, HOUR_S)
DAY = Period(20_000 * DAY_S, DAY_S)
CELL = Cell(model=ModelName("digits"), version="1.0.0", device_class="pi5", region="north", classes=10)


def window(units: dict[Kind, dict[int, int]], cell: Cell = CELL) -> Window:
    return Window(
        cell=cell,
        period_start=HOUR.start,
        period_s=3600,
        nonce="0" * 32,
        units={kind: pack(counts) for kind, counts in units.items()},
    )


def cell(version: str = "1.0.0", device_class: str = "pi5", region: str = "", classes: int = 10) -> Cell:
    return Cell(model=ModelName("digits"), version=version, device_class=device_class, region=region, classes=classes)


def of(devices: int) -> Pending:
    return Pending(devices, {Kind.CLASSES: {1: devices}}, NOON)


def test_windows_of_a_cell_are_summed_and_nothing_else_is_kept_of_them() -> None:
    first = add(None, [window({Kind.CLASSES: {3: 64}, Kind.DRIFT: {}})], NOON)

    both = add(first, [window({Kind.CLASSES: {3: 1, 9: 63}, Kind.DRIFT: {0: 64}})], NOON + 5)

    assert both == Pending(2, {Kind.CLASSES: {3: 65, 9: 63}, Kind.DRIFT: {0: 64}}, NOON)
    assert first == Pending(1, {Kind.CLASSES: {3: 64}, Kind.DRIFT: {}}, NOON), "the state before is as it was"


@pytest.mark.parametrize(
    ("period", "now", "expected"),
    [
        (HOUR, HOUR.end + 60, Verdict.TAKEN),
        (HOUR, HOUR.start - 2 * HOUR_S, Verdict.TAKEN),
        (HOUR, HOUR.start - 2 * HOUR_S - 1, Verdict.REFUSED),
        (HOUR, HOUR.end + HOUR_KEPT_S, Verdict.TAKEN),
        (HOUR, HOUR.end + HOUR_KEPT_S + 1, Verdict.TOO_LATE),
        (HOUR, HOUR.end + OLD_S + 1, Verdict.REFUSED),
        (DAY, DAY.end + OLD_S, Verdict.TAKEN),
        (DAY, DAY.end + OLD_S + 1, Verdict.REFUSED),
    ],
)
def test_a_window_is_taken_by_its_date(period: Period, now: int, expected: Verdict) -> None:
    assert verdict(period, now) is expected


def test_an_hour_is_due_75_minutes_after_its_end_unless_the_broker_still_tells_what_it_kept() -> None:
    hour = OpenPeriod(HOUR, HOUR.end)

    assert not is_due(hour, HOUR.end + HOUR_CLOSES_S - 1, settled=True)
    assert is_due(hour, HOUR.end + HOUR_CLOSES_S, settled=True)
    assert not is_due(hour, HOUR.end + HOUR_CLOSES_S, settled=False)
    assert is_due(hour, HOUR.end + HOUR_CLOSES_LATEST_S, settled=False)
    assert is_last(hour, HOUR.end + HOUR_CLOSES_S), "an hour is published once"


def test_a_day_is_due_once_a_day_and_waits_a_week_for_enough_devices() -> None:
    came = DAY.end + 30 * DAY_S
    fresh, published = OpenPeriod(DAY, came), OpenPeriod(DAY, came, published_at=came)

    assert not is_due(OpenPeriod(DAY, DAY.start), DAY.end, settled=True)
    assert is_due(fresh, came, settled=True)
    assert not is_due(published, came + DAY_AGAIN_S - 1, settled=True)
    assert is_due(published, came + DAY_AGAIN_S, settled=True)
    assert not is_last(fresh, came + DAY_WAITS_S - 1)
    assert is_last(fresh, came + DAY_WAITS_S)
    assert is_last(fresh, DAY.end + OLD_S), "nothing more comes"


def test_small_regions_meet_in_the_cell_without_one() -> None:
    small = {cell(region="north"): of(12), cell(region="south"): of(9), cell(region="west"): of(20)}

    done = gather(small, 20, last=True)

    assert {one: sums.devices for one, sums in done.published.items()} == {cell(): 21, cell(region="west"): 20}
    assert done.suppressed == 0


def test_what_is_merged_into_a_cell_that_stands_by_itself_is_published_with_it_once() -> None:
    done = gather({cell(): of(30), cell(region="north"): of(5)}, 20, last=True)

    assert done.published == {cell(): Pending(35, {Kind.CLASSES: {1: 35}}, NOON)}


def test_small_classes_meet_in_one_of_all_and_fewer_than_enough_are_suppressed() -> None:
    pendings = {
        cell(device_class="pi4"): of(11),
        cell(device_class="pi5", region="north"): of(10),
        cell(device_class="orin"): of(20),
        cell(version="2.0.0"): of(19),
        cell(classes=3): of(1),
    }

    done = gather(pendings, 20, last=True)

    assert {one: sums.devices for one, sums in done.published.items()} == {
        cell(device_class="orin"): 20,
        cell(device_class=ALL): 21,
    }
    assert done.suppressed == 20, "another version, and another number of classes, are never merged"


def test_small_cells_of_a_day_wait() -> None:
    done = gather({cell(region="north"): of(20), cell(region="south"): of(19)}, 20, last=False)

    assert done.published.keys() == {cell(region="north")}
    assert done.waiting == {cell(region="south")}
    assert done.suppressed == 0


cells = st.builds(
    cell,
    version=st.sampled_from(["1.0.0", "2.0.0"]),
    device_class=st.sampled_from(["pi4", "pi5", ALL]),
    region=st.sampled_from(["", "north", "south"]),
    classes=st.sampled_from([3, 10]),
)


@given(devices=st.dictionaries(cells, st.integers(1, 40), max_size=20), k_min=st.integers(1, 60), last=st.booleans())
def test_every_window_is_published_once_or_waits_or_is_suppressed(
    devices: dict[Cell, int], k_min: int, last: bool
) -> None:
    pendings = {
        one: Pending(number, {Kind.CLASSES: {place: number}}, NOON + place)
        for place, (one, number) in enumerate(devices.items())
    }

    done = gather(pendings, k_min, last=last)

    assert all(sums.devices >= k_min for sums in done.published.values())
    waiting = sum(devices[one] for one in done.waiting)
    assert sum(sums.devices for sums in done.published.values()) + waiting + done.suppressed == sum(devices.values())
    counted: Counter[int] = Counter()
    for sums in done.published.values():
        counted.update(sums.sums[Kind.CLASSES])
    assert all(counted[place] in (0, number) for place, number in enumerate(devices.values()))
    assert last <= (not done.waiting)


@given(data=st.data())
def test_which_cells_are_published_depends_on_how_many_windows_came_alone(data: st.DataObject) -> None:
    devices = data.draw(st.dictionaries(cells, st.integers(1, 40), max_size=12))
    rng = random.Random(data.draw(st.integers(0, 99)))

    def told(kind: Kind) -> batching.Gathered:
        return gather(
            {one: Pending(number, {kind: {rng.randrange(3): 64}}, NOON) for one, number in devices.items()},
            20,
            last=True,
        )

    one, other = told(Kind.CLASSES), told(Kind.CLASSES)

    assert {c: sums.devices for c, sums in one.published.items()} == {
        c: sums.devices for c, sums in other.published.items()
    }
    assert one.suppressed == other.suppressed
