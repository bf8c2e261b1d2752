"""Which members of a rollout are online, held and in sight, by their places, as the fleet's index has it."""

from harness.rollout_story import Story
from muster_controller.api.rollout_presence import SEATS_MAX, Seats, in_sight, present
from muster_controller.core.rollout.roll import Roll, roll_of
from muster_controller.core.selector import parse
from muster_controller.db.snapshot import Committed
from muster_controller.fleet_index.index import Change, FleetIndex, index_of
from muster_controller.fleet_index.part import part_of
from muster_controller.holds import Hold, HoldKind
from muster_controller.ports import Device
from muster_shared.ids import DeviceId
from muster_shared.messages import Hardware, Twin


def device(name: str, online: bool, site: str = "oslo") -> Device:
    hardware = Hardware(device_class="nuc", arch="x86_64", runtimes=(), memory_mb=1, cpu_count=1)
    twin = Twin(
        device=DeviceId(name),
        sent_at=1.0,
        boot="b",
        sequence=1,
        agent_version="1.0.0",
        counter=0,
        hardware=hardware,
        labels={"site": site},
        models=(),
    )
    return Device(DeviceId(name), online, "b", 7.0, twin)


def fleet(*devices: Device, index: FleetIndex | None = None) -> Committed:
    known = {each.id: each for each in devices}
    return Committed(known, {}, {}, {}, (index or index_of(known, {})).view())


def online(found: Committed, roll: Roll, seats: Seats) -> list[DeviceId]:
    return roll.names(present(found, roll, {}, seats).online)


def test_those_online_are_found_at_their_places() -> None:
    roll = roll_of(Story(devices=4, shuffle=lambda order: order.reverse()).rollout)
    # The index knows them in another order, one not at all, and somebody who is no member.
    found = fleet(device("d00002", True), device("other", True), device("d00000", False), device("d00003", True))

    said = present(found, roll, {}, Seats())

    assert sorted(roll.names(said.online)) == ["d00002", "d00003"]
    assert said.seen == -1
    assert (said.seen_at(DeviceId("d00000")), said.seen_at(DeviceId("d00001"))) == (7.0, None)


def test_a_device_that_was_forgotten_and_came_back_is_found_again() -> None:
    roll, seats = roll_of(Story(devices=2).rollout), Seats()
    first, second = device("d00000", True), device("d00001", True)
    index = index_of({first.id: first, second.id: second}, {})
    assert online(fleet(first, second, index=index), roll, seats) == ["d00000", "d00001"]

    index.apply([Change(first.id, first, None, None, None)])
    assert online(fleet(second, index=index), roll, seats) == ["d00001"]

    index.apply([Change(first.id, None, None, first, None)])
    index.apply([Change(second.id, second, None, device("d00001", False), None)])
    assert online(fleet(first, second, index=index), roll, seats) == ["d00000"]


def test_a_late_joiner_has_a_seat_too() -> None:
    story, seats = Story(devices=1), Seats()
    found = fleet(device("d00000", True), device("late", True))
    assert online(found, roll_of(story.rollout), seats) == ["d00000"]

    story.join("late")

    assert online(found, roll_of(story.rollout), seats) == ["d00000", "late"]


def test_those_held_are_known_and_nobody_whom_the_fleet_does_not_know() -> None:
    roll = roll_of(Story(devices=3).rollout)
    holds = {
        DeviceId(name): Hold(DeviceId(name), HoldKind.PINNED, "anna", 1.0) for name in ("d00001", "d00002", "other")
    }

    said = present(fleet(device("d00001", True), device("other", True)), roll, holds, Seats())

    assert {roll.order[place]: each.sentence for place, each in said.held.items()} == {"d00001": "pinned by anna"}


def test_who_sees_a_part_of_the_fleet_is_told_of_that_part() -> None:
    roll, seats = roll_of(Story(devices=3).rollout), Seats()
    whole = fleet(device("d00000", True), device("d00001", True, "bergen"), device("d00002", False))
    part = part_of(whole, parse("site=oslo"))

    said = present(part, roll, {}, seats)

    assert roll.names(said.seen) == roll.names(in_sight(part, roll, seats)) == ["d00000", "d00002"]
    assert in_sight(whole, roll, seats) == -1


def test_seats_of_many_rollouts_stay_within_bounds() -> None:
    seats, found = Seats(), fleet(device("d00000", True))
    rolls = [roll_of(Story(devices=1).rollout) for _ in range(SEATS_MAX + 2)]

    assert all(online(found, roll, seats) == ["d00000"] for roll in rolls)
    assert len(seats._found) == SEATS_MAX
