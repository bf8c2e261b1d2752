"""The index against a walk over the fleet, whatever the fleet went through."""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.ledgers import release
from muster_controller.core.selector import Selector, parse
from muster_controller.fleet_index import bits
from muster_controller.fleet_index.index import Change, FleetIndex
from muster_controller.fleet_index.view import Filter, FleetView, Order, Sort, parse_order
from muster_controller.groups import device_class, labels_of, selected
from muster_controller.ports import Desired, Device, Wanted
from muster_controller.standing import Standing, standing
from muster_shared.assignment import ModelAssignment
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, ModelName, RolloutId
from muster_shared.messages import Hardware, Twin, TwinModel

ON_BUSY_CORES = settings(suppress_health_check=[HealthCheck.too_slow])
NAMES = [DeviceId(f"d{number}") for number in range(8)]
SELECTORS = ("", "site=a", "site!=a", "site in (a,b),line", "!line", "site notin (a),!line", "hw/class=nuc", "line=1")


@dataclass
class World:
    devices: dict[DeviceId, Device] = field(default_factory=dict)
    desired: dict[DeviceId, Desired] = field(default_factory=dict)


def twin_of(name: DeviceId, labels: dict[str, str], kind: str, active: int, phase: str, error: str | None) -> Twin:
    serves = TwinModel(
        model=ModelName("digits"), phase=phase, active=release(active) if active else None, last_error=error
    )
    return Twin(
        device=name,
        sent_at=1.0,
        boot="b",
        sequence=1,
        agent_version="1.0",
        counter=2,
        hardware=Hardware(device_class=kind, arch="x86_64"),
        labels=labels,
        models=(serves,),
    )


def desired_of(name: DeviceId, number: int, counter: int) -> Desired:
    wanted = Wanted(ModelAssignment(release=release(number)), RolloutId("r"), 0.0)
    return Desired(name, counter=counter, models={ModelName("digits"): wanted} if number else {})


labels = st.dictionaries(st.sampled_from(["site", "line", "hw/claimed"]), st.sampled_from(["a", "b", "1"]))


@st.composite
def one_device(draw: st.DrawFn, name: DeviceId) -> tuple[Device | None, Desired | None]:
    if draw(st.integers(0, 9)) == 0:
        return None, None
    twin = None
    if draw(st.booleans()):
        twin = twin_of(
            name,
            draw(labels),
            draw(st.sampled_from(["nuc", "pi5"])),
            draw(st.integers(0, 2)),
            draw(st.sampled_from(["idle", "files"])),
            draw(st.sampled_from([None, "broken"])),
        )
    device = Device(name, draw(st.booleans()), "b", draw(st.sampled_from([0.0, 1.0, 2.5, 9.0])), twin)
    desired = draw(st.one_of(st.none(), st.builds(desired_of, st.just(name), st.integers(0, 2), st.integers(1, 3))))
    return device, desired


@st.composite
def commits(draw: st.DrawFn) -> list[dict[DeviceId, tuple[Device | None, Desired | None]]]:
    return [
        {name: draw(one_device(name)) for name in draw(st.sets(st.sampled_from(NAMES), max_size=4))}
        for _ in range(draw(st.integers(1, 3)))
    ]


def follow(index: FleetIndex, world: World, commit: dict[DeviceId, tuple[Device | None, Desired | None]]) -> None:
    index.apply(
        [
            Change(name, world.devices.get(name), world.desired.get(name), device, desired)
            for name, (device, desired) in commit.items()
        ]
    )
    for name, (device, desired) in commit.items():
        world.devices.pop(name, None)
        world.desired.pop(name, None)
        if device is not None:
            world.devices[name] = device
        if desired is not None:
            world.desired[name] = desired


def built(commits: list[dict[DeviceId, tuple[Device | None, Desired | None]]]) -> tuple[World, FleetView]:
    index, world = FleetIndex(), World()
    for commit in commits:
        follow(index, world, commit)
        index.view()
    return world, index.view()


def all_pages(view: FleetView, wanted: Filter, order: Order, limit: int) -> list[DeviceId]:
    found: list[DeviceId] = []
    cursor: str | None = None
    while True:
        page = view.page(wanted, order, cursor, limit)
        found += page.devices
        cursor = page.next
        if cursor is None:
            return found


@given(commits())
@settings(ON_BUSY_CORES, max_examples=60)
def test_the_sums_are_those_of_a_recount(commits: list[dict[DeviceId, tuple[Device | None, Desired | None]]]) -> None:
    world, view = built(commits)

    sums = view.sums()

    devices = list(world.devices.values())
    assert sums.devices == len(devices)
    assert sums.online == sum(device.online for device in devices)
    assert sums.standings == Counter(standing(device, world.desired.get(device.id)) for device in devices)
    assert sums.classes == Counter(map(device_class, devices))
    served = Counter(
        (model.active.version, model.active.release)
        for device in devices
        for model in (() if device.twin is None else device.twin.models)
        if model.active is not None
    )
    assert {(each.version, each.release): each.devices for each in sums.versions} == served


@given(commits(), st.sampled_from(SELECTORS), st.sampled_from([None, *Standing]), st.sampled_from([None, True, False]))
@settings(ON_BUSY_CORES, max_examples=100)
def test_a_filter_finds_whom_a_walk_over_the_fleet_finds(
    commits: list[dict[DeviceId, tuple[Device | None, Desired | None]]],
    selector: str,
    state: Standing | None,
    online: bool | None,
) -> None:
    world, view = built(commits)
    wanted = Filter(standing=state, online=online, selector=parse(selector), text="1", silent_since=2.0)

    found = list(view.devices(wanted))

    assert found == sorted(
        device.id
        for device in world.devices.values()
        if (state is None or standing(device, world.desired.get(device.id)) is state)
        and (online is None or device.online == online)
        and (not selector or selected(device, selector))
        and "1" in device.id
        and device.seen_at < 2.0
    )


@given(commits(), st.sampled_from(SELECTORS))
@settings(ON_BUSY_CORES, max_examples=60)
def test_a_part_of_the_fleet_is_whom_a_selector_fits_by_labels_alone(
    commits: list[dict[DeviceId, tuple[Device | None, Desired | None]]], selector: str
) -> None:
    world, view = built(commits)

    part = view.restricted(parse(selector))

    inside = {device.id for device in world.devices.values() if parse(selector).matches(labels_of(device))}
    assert {name for name in NAMES if part.has(name)} == inside
    assert part.sums().devices == part.total == len(inside)
    keys = Counter(key for name in inside for key in labels_of(world.devices[name]))
    assert {each.key: each.devices for each in part.label_keys()} == keys


@given(commits(), st.sampled_from(list(Sort)), st.booleans(), st.integers(1, 5))
@settings(ON_BUSY_CORES, max_examples=100)
def test_pages_have_everybody_once_and_in_order(
    commits: list[dict[DeviceId, tuple[Device | None, Desired | None]]], by: Sort, is_falling: bool, limit: int
) -> None:
    world, view = built(commits)

    found = all_pages(view, Filter(), Order(by, is_falling), limit)

    rank = list(Standing)
    keys: dict[Sort, dict[DeviceId, object]] = {
        Sort.ID: dict.fromkeys(world.devices, 0) if not is_falling else {},
        Sort.SEEN: {name: device.seen_at for name, device in world.devices.items()},
        Sort.CLASS: {name: device_class(device) for name, device in world.devices.items()},
        Sort.STANDING: {
            name: rank.index(standing(device, world.desired.get(name))) for name, device in world.devices.items()
        },
    }
    assert sorted(found) == sorted(world.devices)
    told = [keys[by].get(name, name) for name in found]
    assert told == sorted(told, reverse=is_falling)  # type: ignore[type-var]  # Of one order all have one type.


@given(commits(), commits())
@settings(ON_BUSY_CORES, max_examples=40)
def test_a_view_stays_as_it_was_whatever_is_committed_later(
    earlier: list[dict[DeviceId, tuple[Device | None, Desired | None]]],
    later: list[dict[DeviceId, tuple[Device | None, Desired | None]]],
) -> None:
    index, world = FleetIndex(), World()
    for commit in earlier:
        follow(index, world, commit)
    view = index.view()
    before = (view.page(Filter(), Order(), None, 99), replace(view).sums(), view.label_keys())

    for commit in later:
        follow(index, world, commit)
        index.view()

    assert (view.page(Filter(), Order(), None, 99), replace(view).sums(), view.label_keys()) == before


@given(commits(), st.sampled_from(SELECTORS), st.integers(0, 4), st.sampled_from(["", "a", "s"]))
@settings(ON_BUSY_CORES, max_examples=100)
def test_the_values_of_a_label_are_those_of_a_recount_whichever_view_was_asked_before(
    commits: list[dict[DeviceId, tuple[Device | None, Desired | None]]], selector: str, limit: int, prefix: str
) -> None:
    index, world = FleetIndex(), World()
    views = []
    for commit in commits:
        follow(index, world, commit)
        views.append((index.view(), dict(world.devices)))

    for view, devices in [*views, *views[:1]]:
        every = [labels_of(device) for device in devices.values()]
        fitting_selector = [each for each in every if parse(selector).matches(each)]
        for part, inside in ((view, every), (view.restricted(parse(selector)), fitting_selector)):
            for key in sorted({key for each in inside for key in each} | {"site"}):
                counts = Counter(each[key] for each in inside if key in each)
                fitting = sorted((-n, value) for value, n in counts.items() if value.startswith(prefix))[:limit]
                found = part.label_values(key, limit, prefix=prefix)
                assert [(-each.devices, each.value) for each in found] == fitting
                assert [sum(each.standings.values()) for each in found] == [each.devices for each in found]
                assert [each.values for each in part.label_keys() if each.key == key] == [len(counts)] * bool(counts)


@given(commits(), st.sampled_from(SELECTORS))
@settings(ON_BUSY_CORES, max_examples=60)
def test_the_classes_are_those_of_a_recount(
    commits: list[dict[DeviceId, tuple[Device | None, Desired | None]]], selector: str
) -> None:
    world, view = built(commits)

    part = view.restricted(parse(selector))

    inside = [device for device in world.devices.values() if part.has(device.id)]
    assert {each.device_class: each.devices for each in part.classes()} == Counter(map(device_class, inside))
    assert sum(each.online for each in part.classes()) == sum(device.online for device in inside)
    stood = Counter((device_class(each), standing(each, world.desired.get(each.id))) for each in inside)
    assert {(each.device_class, of): n for each in part.classes() for of, n in each.standings.items()} == stood


def test_a_label_of_which_each_device_has_a_value_of_its_own_is_counted_and_found() -> None:
    index = FleetIndex()
    many = [DeviceId(f"m{number:04d}") for number in range(600)]
    devices = [
        Device(name, twin=twin_of(name, {"serial": f"s{name}", "site": "a"}, "nuc", 1, "idle", None)) for name in many
    ]

    index.apply([Change(each.id, None, None, each, None) for each in devices])

    view = index.view()
    assert [(each.key, each.devices, each.values) for each in view.label_keys() if "/" not in each.key] == [
        ("serial", 600, 600),
        ("site", 600, 1),
    ]
    assert view.page(Filter(selector=parse("serial=sm0007")), Order(), None, 9).devices == ["m0007"]
    assert [each.value for each in view.label_values("serial", 2)] == ["sm0000", "sm0001"]
    assert view.crossed("site", ["a"], "serial", ["sm0001", "none"]) == [[1, 0]]


def test_a_cursor_of_another_order_is_refused() -> None:
    view = FleetIndex().view()

    for order, cursor in (("seen", "d1"), ("seen", "x:d1"), ("standing", "nuc:d1"), ("class", "d1")):
        with pytest.raises(WireError):
            view.page(Filter(), parse_order(order), cursor, 5)


def test_an_order_that_there_is_not_is_refused() -> None:
    with pytest.raises(WireError, match="sorted by"):
        parse_order("colour")


@given(st.sets(st.integers(0, 400)), st.sets(st.integers(0, 400)), st.sets(st.integers(0, 400)))
def test_members_join_and_leave_whether_few_or_many(kept: set[int], joining: set[int], leaving: set[int]) -> None:
    members = bits.changed(bits.changed((), list(kept), []), list(joining), list(leaving))

    assert set(bits.numbers(bits.bits(members))) == (kept - leaving) | joining
    assert bits.count(members) == len((kept - leaving) | joining)


def test_an_empty_selector_is_everybody() -> None:
    assert parse("") == Selector()
