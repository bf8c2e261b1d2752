"""What is gathered for the rules: who is there, what rests, and what is not read again and again."""

from dataclasses import replace

import pytest

from harness.desk import MODEL
from muster_controller.alerts.looking import CONNECTING_S, HOURLY_S, Attendance, Looking, Progress, Sources
from muster_controller.core.alerts.content import Drifting
from muster_controller.core.alerts.running import FLEET, SETTLING_S, Hold, Stuck
from muster_controller.core.policy import Policy
from muster_controller.core.rollout.state import Pause, Rollout, RolloutState
from muster_controller.db.errors import LedgerUnavailable
from muster_controller.db.snapshot import Committed
from muster_controller.ports import Device
from muster_shared.ids import DeviceId, RolloutId, Sha256
from muster_shared.messages import Hardware, ReleaseRef, Twin

NOW = 1_800_000_000.0
HOUR_S, DAY_S = 3600.0, 86_400.0


def device(
    name: str, *, online: bool = True, ago_s: float = 60.0, device_class: str = "nuc", now: float = NOW
) -> Device:
    hardware = Hardware(
        device_class=device_class, arch="x86_64", cpu_count=4, memory_mb=4096, runtimes=("onnxruntime",)
    )
    twin = Twin(
        device=DeviceId(name), sent_at=0.0, boot="b", sequence=1, agent_version="1", counter=1, hardware=hardware
    )
    return Device(DeviceId(name), online, "b", now - ago_s, twin)


def rollout(**changes: object) -> Rollout:
    release = ReleaseRef(model=MODEL, version="2.0.0", release=2, bundle_sha256=Sha256("a" * 64), bundle_length=10)
    plain = Rollout(RolloutId("r-1"), MODEL, release, None, Policy(), (1,), NOW - DAY_S, "anna")
    return replace(plain, **changes)  # type: ignore[arg-type]  # Fields of a rollout.


# -- who is there ------------------------------------------------------------------------------------------------------


def test_gone_is_who_was_heard_of_in_the_last_hour_and_is_offline() -> None:
    devices = [
        device("a"),
        device("b", online=False),
        device("c", online=False, ago_s=2 * HOUR_S),
        device("d", online=False, device_class="pi"),
        Device(DeviceId("e"), False, "", NOW),  # It never said what it is.
    ]

    found = {each.name: each for each in Attendance().seen(devices, NOW, is_settled=True)}

    assert {name: (each.online, each.gone) for name, each in found.items()} == {
        FLEET: (1, 2),
        "nuc": (1, 1),
        "pi": (0, 1),
    }
    assert found[FLEET].gone_yesterday is None


def test_yesterday_is_remembered_only_where_the_fleet_had_settled() -> None:
    attendance, unsettled = Attendance(), Attendance()
    evening = [device("a"), device("b", online=False)]

    attendance.seen(evening, NOW, is_settled=True)
    unsettled.seen(evening, NOW, is_settled=False)

    later = NOW + DAY_S + 600
    assert attendance.seen([], later, is_settled=True)[0].gone_yesterday == 1
    assert unsettled.seen([], later, is_settled=True)[0].gone_yesterday is None
    assert attendance.seen([], NOW + DAY_S + 2 * HOUR_S, is_settled=True)[0].gone_yesterday is None


# -- what rests --------------------------------------------------------------------------------------------------------


def test_a_rollout_that_waits_for_a_person_says_since_when() -> None:
    undecided = rollout(state=RolloutState.PAUSED, pause=Pause.UNDECIDED, wave_began_at=NOW - HOUR_S, reason="too few")
    by_hand = rollout(state=RolloutState.PAUSED, pause=Pause.BY_HAND)

    (found,) = Progress().seen([undecided], NOW)

    assert (found.hold, found.since, found.reason) == (Hold.UNDECIDED, NOW - HOUR_S, "too few")
    assert Progress().seen([by_hand], NOW) == []


def test_a_rollout_stalls_from_when_its_counts_last_moved() -> None:
    progress = Progress()
    under_way = rollout(wave=0, wave_began_at=NOW, in_flight=3, released=3)

    progress.seen([under_way], NOW)
    (still,) = progress.seen([under_way], NOW + HOUR_S)
    (moved,) = progress.seen([replace(under_way, in_flight=2, settled=1)], NOW + 2 * HOUR_S)

    assert isinstance(still, Stuck)
    assert (still.hold, still.since) == (Hold.STALLED, NOW)
    assert moved.since == NOW + 2 * HOUR_S
    assert still.deadline_s >= Policy().deadline_s + Policy().window_max_s


def test_a_rollout_that_may_wait_for_windows_or_consent_is_not_called_stalled() -> None:
    waits = rollout(wave=0, wave_began_at=NOW, in_flight=3, policy=Policy(consent=True))

    assert Progress().seen([waits], NOW) == []


# -- how often ---------------------------------------------------------------------------------------------------------


class World:
    """Sources that count how often they are asked, and that can fail."""

    def __init__(self) -> None:
        self.now = NOW
        self.asked = 0
        self.is_away = False
        self.is_connected = True

    def drift(self) -> tuple[Drifting, ...]:
        self.asked += 1
        if self.is_away:
            raise LedgerUnavailable("muster.db", "gone")
        return ()

    def looking(self) -> Looking:
        class NoObjectives:
            def objectives(self) -> list[object]:
                return []

        return Looking(
            Sources(
                committed=lambda: Committed({}, {}, {}, {}),
                is_connected=lambda: self.is_connected,
                objectives=NoObjectives(),  # type: ignore[arg-type]  # There are none to be read.
                drift=self.drift,
                compared=lambda: (),
                peaks=lambda: (),
                mixers=lambda: (),
                certificates=lambda: (),
                keys=lambda: (),
            ),
            lambda: self.now,
        )


@pytest.fixture
def world() -> World:
    return World()


def test_hourly_figures_are_read_every_five_minutes_and_not_at_every_look(world: World) -> None:
    looking = world.looking()

    for _ in range(20):
        assert looking.look().drift == ()
        world.now += 30

    assert world.asked == 20 * 30 / HOURLY_S


def test_what_cannot_be_read_is_unknown_and_tried_again_at_once(world: World) -> None:
    looking = world.looking()
    world.is_away = True
    assert looking.look().drift is None
    world.now += 30
    world.is_away = False

    assert looking.look().drift == ()


def test_nobody_is_missed_while_devices_may_still_be_on_their_way_back(world: World) -> None:
    looking = world.looking()
    assert looking.look().presence is None
    world.now += SETTLING_S
    assert looking.look().presence is not None

    world.is_connected = False
    assert looking.look().presence is None
    world.is_connected = True
    world.now += 60

    assert looking.look().presence is None


def test_a_controller_that_has_just_begun_to_lead_is_connecting_and_then_away() -> None:
    world = World()
    world.is_connected = False
    looking = world.looking()

    assert looking.look().is_connected is None
    world.now += CONNECTING_S
    assert looking.look().is_connected is False


def test_a_broker_that_was_there_is_missed_at_once() -> None:
    world = World()
    looking = world.looking()
    assert looking.look().is_connected is True

    world.is_connected = False

    assert looking.look().is_connected is False
