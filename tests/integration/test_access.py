"""What follows from a changed identity or a changed CA: who is told, when it is tried again, what is written down."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.enrolling import AskingDevice
from muster_controller.db.audit import AuditReader
from muster_controller.db.engine import find_database
from muster_controller.db.identity_store import IdentityStore
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.side import SideDatabase
from muster_controller.identity.access import AccessThread
from muster_controller.identity.ca import FleetCa
from muster_controller.identity.service import EnrolmentService, Reached
from muster_shared.ids import DeviceId, FleetId

DAY_S = 86_400.0
NAMES = ("localhost",)


class Keeper:
    """What a broker does, written down."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.fails = 0

    def refresh(self) -> None:
        if self.fails > 0:
            self.fails -= 1
            raise OSError("no space left on device")
        self.told.append("refresh")

    def reload_certificates(self) -> None:
        self.told.append("reload")


class World:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.now = 1_800_000_000.0
        self.where = folder / "muster.db"
        with SqlLedger(self.where, lambda: self.now):
            pass  # It migrates.
        side = stack.enter_context(SideDatabase(find_database(self.where)))
        self.ca = FleetCa(folder, FleetId("test"), self.now, lambda path: None)
        self.service = EnrolmentService(
            self.ca, IdentityStore(side), lambda: self.now, lambda: Reached("", ""), lambda: b"", self._wake
        )
        self.access = AccessThread(self.ca, self.service, NAMES, lambda: self.now)
        self.keeper = Keeper()
        self.access.prepare()
        self.access.add(self.keeper)
        self.settle()
        self.settle()
        self.keeper.told.clear()

    def settle(self) -> list[str]:
        """What is told when things are looked at now."""
        self.keeper.told.clear()
        self.access.settle(self.now)
        return list(self.keeper.told)

    def enrol(self, name: str) -> AskingDevice:
        token, _ = self.service.create_token(labels={}, uses=1, ttl_s=DAY_S)
        device = AskingDevice(name)
        self.service.answer(device.asks(self.now, token))
        return device

    def actions(self) -> list[str]:
        reader = AuditReader(find_database(self.where))
        try:
            return [each.action for each in reversed(reader.lines(limit=1000))]
        finally:
            reader.close()

    def _wake(self) -> None:
        self.access.wake()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


def test_brokers_are_told_of_a_new_device_twice_and_then_left_alone(world: World) -> None:
    world.enrol("dev-1")

    told = [world.settle() for _ in range(3)]

    assert told == [["refresh"], ["refresh"], []]


def test_a_renewal_is_no_news_to_anybody(world: World) -> None:
    device = world.enrol("dev-1")
    world.settle()
    world.settle()

    world.service.answer(device.asks(world.now))

    assert world.settle() == []


def test_a_revocation_is_in_the_list_before_brokers_are_told(world: World) -> None:
    world.enrol("dev-1")
    world.settle()
    before = world.ca.paths.crl.read_bytes()

    world.service.revoke(DeviceId("dev-1"))
    told = world.settle()

    assert told == ["refresh"]
    assert world.ca.paths.crl.read_bytes() != before
    assert (world.service.admitted(), world.service.barred()) == ([], ["dev-1"])


def test_a_broker_that_could_not_be_told_is_told_again(world: World) -> None:
    world.enrol("dev-1")
    world.keeper.fails = 1

    with pytest.raises(OSError, match="no space"):
        world.settle()

    assert world.settle() == ["refresh"]


def test_certificates_of_our_own_are_renewed_and_taken_by_all(world: World) -> None:
    world.now += 16 * DAY_S

    told = world.settle()

    assert told == ["reload", "refresh"]  # The revocation list is older than ten days, too.
    assert world.actions().count("certificate.issue") == 4


def test_a_ca_that_another_process_changed_is_taken_over_and_written_down(world: World) -> None:
    other = FleetCa(world.ca.folder.parent, FleetId("test"), world.now, lambda path: None)

    other.renew(world.now, new_key=True)
    told = world.settle()
    other.take_root(world.ca.folder.parent / "usb")
    world.settle()

    assert told == ["reload", "refresh"]
    assert world.actions().count("ca.change") == 2
    assert world.ca.signer_pin == other.signer_pin


def test_whoever_waits_hears_when_it_is_settled(world: World) -> None:
    world.access.start()
    try:
        world.enrol("dev-1")
        is_settled = world.access.wait_settled(30.0)
    finally:
        world.access.stop()

    assert is_settled
    assert "refresh" in world.keeper.told
