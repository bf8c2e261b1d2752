"""Enrolment over a real database: what holds when two controllers, or many devices, do it at once."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509

from harness.clock import Clock
from harness.enrolling import AskingDevice
from harness.postgres import Where
from muster_controller.acting import Acting, act_as
from muster_controller.db.audit import AuditReader
from muster_controller.db.engine import find_database
from muster_controller.db.errors import LedgerError
from muster_controller.db.identity_store import IdentityStore
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.side import SideDatabase
from muster_controller.errors import NotFound
from muster_controller.identity.ca import FleetCa
from muster_controller.identity.enrolment import Approval, IdentityState
from muster_controller.identity.errors import EnrolmentConflict
from muster_controller.identity.labels import GrantedLabels
from muster_controller.identity.service import CERTIFICATES_AN_HOUR, EXPIRIES_KEPT_S, EnrolmentService, Reached
from muster_shared.enrolment import EnrolmentToken, Granted, Refused, Waiting
from muster_shared.ids import DeviceId, FleetId

DAY_S = 86_400.0
ANNA = Acting("anna", "request-1", "because")


class World:
    """One database, one CA, and as many controllers as a test wants."""

    def __init__(self, where: Where, folder: Path, stack: ExitStack) -> None:
        self.where = where
        self.folder = folder
        self.clock = Clock()
        self.woken = 0
        self._stack = stack
        with SqlLedger(where, self.clock):
            pass  # It migrates.
        self.service = self.controller()

    def side(self) -> SideDatabase:
        return self._stack.enter_context(SideDatabase(find_database(self.where)))

    def controller(self) -> EnrolmentService:
        side = self.side()
        ca = FleetCa(self.folder, FleetId("test"), self.clock(), lambda path: None)
        reached = Reached("mqtts://fleet.example:8883", "https://fleet.example:8443")
        return EnrolmentService(ca, IdentityStore(side), self.clock, lambda: reached, lambda: b"{}", self._wake)

    def token(self, uses: int = 1, approval: Approval = Approval.TOKEN, **serials: str | None) -> EnrolmentToken:
        listed = {serial: None if device is None else DeviceId(device) for serial, device in serials.items()}
        token, _ = self.service.create_token(
            labels={"site": "berlin"}, uses=uses, ttl_s=DAY_S, approval=approval, serials=listed
        )
        return token

    def actions(self) -> list[tuple[str, str, str, str]]:
        """The audit log, the oldest first: who did what to whom, and why."""
        reader = AuditReader(find_database(self.where))
        try:
            found = reader.lines(limit=1000)
        finally:
            reader.close()
        return [(each.actor, each.action, each.subject, each.reason) for each in reversed(found)]

    def _wake(self) -> None:
        self.woken += 1


@pytest.fixture
def world(where: Where, tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(where, tmp_path, stack)


def serial_of(granted: object) -> str:
    assert isinstance(granted, Granted), granted
    return f"{x509.load_pem_x509_certificate(granted.certificate.encode()).serial_number:x}"


def code(answer: object) -> str:
    assert isinstance(answer, Refused), answer
    return answer.code


# -- enrolment ---------------------------------------------------------------------------------------------------------


def test_a_device_enrols_and_everything_is_written_down(world: World) -> None:
    with act_as(ANNA):
        token = world.token()
    device = AskingDevice("dev-1")

    granted = world.service.answer(device.asks(world.clock(), token, agent_version="1.2", device_class="nuc"))

    serial = serial_of(granted)
    assert isinstance(granted, Granted)
    assert (granted.fleet, granted.labels) == ("test", {"site": "berlin"})
    assert (granted.broker_url, granted.device_url) == ("mqtts://fleet.example:8883", "https://fleet.example:8443")
    assert granted.renew_at == pytest.approx(world.clock() + 3.5 * DAY_S, abs=1.0)
    identity = world.service.identity(DeviceId("dev-1"))
    assert (identity.state, identity.agent_version, identity.token) == (IdentityState.ACCEPTED, "1.2", token.id)
    assert [each.serial for each in world.service.certificates(DeviceId("dev-1"))] == [serial]
    assert world.service.tokens()[0].uses == 1
    assert world.service.admitted() == ["dev-1"]
    assert world.woken == 1
    assert world.actions() == [
        ("anna", "enrol-token.create", token.id, "because"),
        ("device:dev-1", "identity.enrol", "dev-1", ""),
        ("device:dev-1", "certificate.issue", "dev-1", ""),
    ]


def test_a_device_that_renews_and_renews_has_one_line_for_its_certificates(world: World) -> None:
    device = AskingDevice("dev-1")
    world.service.answer(device.asks(world.clock(), world.token()))
    for _ in range(5):
        world.clock.now += DAY_S
        assert isinstance(world.service.answer(device.asks(world.clock())), Granted)

    actions = [each[1] for each in world.actions()]

    assert actions.count("certificate.issue") == 1
    assert len(world.service.certificates(DeviceId("dev-1"))) == 6


def test_the_first_certificate_of_another_device_of_that_name_has_its_line(world: World) -> None:
    world.service.answer(AskingDevice("dev-1").asks(world.clock(), world.token()))
    world.clock.now += DAY_S

    world.service.forget(DeviceId("dev-1"))
    world.service.answer(AskingDevice("dev-1").asks(world.clock(), world.token()))

    assert [each[1] for each in world.actions()].count("certificate.issue") == 2


def test_the_labels_of_a_token_are_known_at_once_and_at_every_controller(world: World) -> None:
    side = world.side()
    labels, token = GrantedLabels(IdentityStore(side)), world.token(uses=2, approval=Approval.MANUAL)
    labels.refresh()
    world.service.answer(AskingDevice("dev-1").asks(world.clock(), token))
    waiting = labels(DeviceId("dev-1"))

    world.service.accept(DeviceId("dev-1"))
    labels.refresh()
    world.service.answer(AskingDevice("dev-2").asks(world.clock(), token))
    world.service.accept(DeviceId("dev-2"))

    assert waiting == {}
    assert labels(DeviceId("dev-1")) == {"site": "berlin"}
    assert labels(DeviceId("dev-2")) == {"site": "berlin"}
    assert labels.changed() == {"dev-1"}


def test_who_took_changed_labels_hears_of_the_next_change_alone(world: World) -> None:
    labels = GrantedLabels(IdentityStore(world.side()))
    world.service.answer(AskingDevice("dev-1").asks(world.clock(), world.token()))
    labels.refresh()

    labels.took(labels.changed())
    labels.refresh()
    world.service.answer(AskingDevice("dev-2").asks(world.clock(), world.token()))
    labels.refresh()

    assert labels.changed() == {"dev-2"}


def test_the_secret_of_a_token_is_in_no_row(world: World) -> None:
    token = world.token()

    row = world.service.tokens()[0]

    assert token.secret not in repr(row)
    assert token.secret != row.secret_sha256


def test_a_lost_answer_costs_no_use_and_a_nonce_is_granted_once(world: World) -> None:
    token, device = world.token(uses=1), AskingDevice("dev-1")
    first = device.asks(world.clock(), token)

    answers = [world.service.answer(raw) for raw in (first, first, device.asks(world.clock(), token))]

    assert [type(each) for each in answers] == [Granted, Refused, Granted]
    assert code(answers[1]) == "request"
    assert world.service.tokens()[0].uses == 1


def test_a_renewal_after_months_needs_the_key_alone(world: World) -> None:
    token, device = world.token(), AskingDevice("dev-1")
    first = serial_of(world.service.answer(device.asks(world.clock(), token)))
    world.clock.now += 200 * DAY_S

    renewed = serial_of(world.service.answer(device.asks(world.clock())))
    stranger = world.service.answer(AskingDevice("dev-1").asks(world.clock()))

    assert renewed != first
    assert code(stranger) == "device"


@pytest.mark.parametrize("off_s", [-400.0, 400.0, -1e9, float("1e300")])
def test_a_wrong_clock_is_told_the_time_and_costs_nothing(world: World, off_s: float) -> None:
    token, device = world.token(), AskingDevice("dev-1")

    refused = world.service.answer(device.asks(world.clock() + off_s, token))

    assert code(refused) == "clock"
    assert isinstance(refused, Refused)
    assert isinstance(world.service.answer(device.asks(refused.server_time, token)), Granted)


def test_another_fleet_is_refused_and_an_empty_one_is_ours(world: World) -> None:
    token = world.token()

    other = world.service.answer(AskingDevice("dev-1").asks(world.clock(), token, fleet=FleetId("other")))
    ours = world.service.answer(AskingDevice("dev-1").asks(world.clock(), token, fleet=FleetId("")))

    assert code(other) == "request"
    assert isinstance(ours, Granted)


def test_one_device_cannot_fill_the_tables(world: World) -> None:
    token, device = world.token(), AskingDevice("dev-1")

    answers = [world.service.answer(device.asks(world.clock(), token)) for _ in range(CERTIFICATES_AN_HOUR + 2)]
    world.clock.now += 3601.0
    later = world.service.answer(device.asks(world.clock()))

    assert [type(each) for each in answers] == [Granted] * CERTIFICATES_AN_HOUR + [Refused] * 2
    assert code(answers[-1]) == "busy"
    assert isinstance(later, Granted)


# -- at once -----------------------------------------------------------------------------------------------------------


def at_once(world: World, asks: list[Callable[[EnrolmentService], object]]) -> list[object]:
    """Ask two controllers in turns, all at the same time."""
    services = [world.service, world.controller()]
    gate = threading.Barrier(len(asks))

    def ask(number: int) -> object:
        gate.wait(20.0)
        return asks[number](services[number % 2])

    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(ask, range(len(asks))))


def test_no_more_devices_enrol_than_a_token_has_uses_whoever_asks_whom_at_once(world: World) -> None:
    token = world.token(uses=3)
    asks = [AskingDevice(f"dev-{number}").asks(world.clock(), token) for number in range(10)]

    answers = at_once(world, [lambda service, raw=raw: service.answer(raw) for raw in asks])  # type: ignore[misc]

    assert sum(isinstance(each, Granted) for each in answers) == 3
    assert {code(each) for each in answers if not isinstance(each, Granted)} == {"token"}
    assert world.service.tokens()[0].uses == 3
    assert len(world.service.admitted()) == 3


def test_of_many_keys_that_want_one_name_at_once_one_has_it(world: World) -> None:
    token = world.token(uses=20)
    asks = [AskingDevice("dev-1").asks(world.clock(), token) for _ in range(8)]

    answers = at_once(world, [lambda service, raw=raw: service.answer(raw) for raw in asks])  # type: ignore[misc]

    assert sum(isinstance(each, Granted) for each in answers) == 1
    assert {code(each) for each in answers if not isinstance(each, Granted)} == {"device"}
    assert world.service.tokens()[0].uses == 1


def test_one_request_sent_many_times_at_once_is_granted_once(world: World) -> None:
    raw = AskingDevice("dev-1").asks(world.clock(), world.token(uses=5))

    answers = at_once(world, [lambda service: service.answer(raw)] * 6)

    assert sum(isinstance(each, Granted) for each in answers) == 1
    assert len(world.service.certificates(DeviceId("dev-1"))) == 1


# -- approval ----------------------------------------------------------------------------------------------------------


def test_a_device_waits_until_somebody_accepts_it(world: World) -> None:
    token, device = world.token(approval=Approval.MANUAL), AskingDevice("dev-1")

    waits = [world.service.answer(device.asks(world.clock(), token)) for _ in range(3)]
    with act_as(ANNA):
        world.service.accept(DeviceId("dev-1"))
    granted = world.service.answer(device.asks(world.clock(), token))

    assert [type(each) for each in waits] == [Waiting] * 3
    assert isinstance(granted, Granted)
    assert world.service.tokens()[0].uses == 1
    assert [each[1] for each in world.actions()] == [
        "enrol-token.create",
        "identity.ask",
        "identity.accept",
        "certificate.issue",
    ]
    assert world.service.identity(DeviceId("dev-1")).decided_by == "anna"


def test_a_rejected_device_hears_so_until_it_is_forgotten(world: World) -> None:
    token, device = world.token(uses=2, approval=Approval.MANUAL), AskingDevice("dev-1")
    world.service.answer(device.asks(world.clock(), token))

    world.service.reject(DeviceId("dev-1"))
    refused = world.service.answer(device.asks(world.clock(), token))
    world.service.forget(DeviceId("dev-1"))
    again = world.service.answer(device.asks(world.clock(), token))

    assert code(refused) == "device"
    assert isinstance(again, Waiting)


def test_serial_numbers_are_a_list_of_who_may_come(world: World) -> None:
    token = world.token(uses=5, approval=Approval.SERIAL, S1=None, S2="dev-2")

    answers = [
        world.service.answer(AskingDevice(name).asks(world.clock(), token, serial=serial))
        for name, serial in [("dev-1", "S1"), ("dev-3", "S2"), ("dev-2", "S2"), ("dev-4", "S1"), ("dev-5", "S9")]
    ]

    assert [type(each) for each in answers] == [Granted, Refused, Granted, Refused, Refused]
    assert {code(each) for each in answers if isinstance(each, Refused)} == {"serial"}


# -- revocation --------------------------------------------------------------------------------------------------------


def test_a_revoked_device_has_nothing_left(world: World) -> None:
    token, device = world.token(uses=5), AskingDevice("dev-1")
    first, second = (serial_of(world.service.answer(device.asks(world.clock(), token))) for _ in range(2))

    with act_as(ANNA):
        world.service.revoke(DeviceId("dev-1"))

    assert sorted(serial for serial, _ in world.service.revoked_certificates()) == sorted([first, second])
    assert (world.service.admitted(), world.service.barred()) == ([], ["dev-1"])
    assert [(each.device, each.by, each.reason) for each in world.service.cut()] == [("dev-1", "anna", "because")]
    for raw in (device.asks(world.clock()), device.asks(world.clock(), token)):
        assert code(world.service.answer(raw)) == "revoked"
    assert world.actions()[-1] == ("anna", "identity.revoke", "dev-1", "because")
    with pytest.raises(EnrolmentConflict, match="already"):
        world.service.revoke(DeviceId("dev-1"))


def test_a_forgotten_name_is_free_for_another_key_and_never_again_for_the_revoked_one(world: World) -> None:
    token, old, new = world.token(uses=5), AskingDevice("dev-1"), AskingDevice("dev-1")
    old_serial = serial_of(world.service.answer(old.asks(world.clock(), token)))
    world.service.revoke(DeviceId("dev-1"))

    world.service.forget(DeviceId("dev-1"))
    barred = world.service.barred()
    cut = [(each.device, each.at, each.by) for each in world.service.cut()]
    granted = world.service.answer(new.asks(world.clock(), token))

    assert barred == ["dev-1"]
    assert cut == [("dev-1", world.clock(), "")]
    assert world.service.cut() == []
    assert isinstance(granted, Granted)
    assert (world.service.admitted(), world.service.barred()) == (["dev-1"], [])
    assert [serial for serial, _ in world.service.revoked_certificates()] == [old_serial]
    old.name = "dev-7"
    assert code(world.service.answer(old.asks(world.clock(), token))) == "revoked"
    assert [each.device for each in world.service.identities(None, None, 10)] == ["dev-1"]


def test_what_was_revoked_is_named_until_it_runs_out(world: World) -> None:
    token, device = world.token(), AskingDevice("dev-1")
    world.service.answer(device.asks(world.clock(), token))
    world.service.forget(DeviceId("dev-1"))
    before = (world.service.revoked_certificates(), world.service.barred())

    world.clock.now += 8 * DAY_S
    after = (world.service.revoked_certificates(), world.service.barred())

    assert (len(before[0]), before[1]) == (1, ["dev-1"])
    assert after == ([], [])
    assert world.service.prune(world.clock()) == 1


def test_a_revoked_token_lets_nobody_in_any_more(world: World) -> None:
    token = world.token(uses=5)
    first = AskingDevice("dev-1")
    world.service.answer(first.asks(world.clock(), token))

    world.service.revoke_token(token.id)

    assert code(world.service.answer(AskingDevice("dev-2").asks(world.clock(), token))) == "token"
    assert isinstance(world.service.answer(first.asks(world.clock())), Granted)
    with pytest.raises(NotFound):
        world.service.revoke_token("t-none")


def test_identities_come_in_pages(world: World) -> None:
    token = world.token(uses=5, approval=Approval.MANUAL)
    for number in range(5):
        world.service.answer(AskingDevice(f"dev-{number}").asks(world.clock(), token))
    world.service.accept(DeviceId("dev-1"))

    first = world.service.identities(IdentityState.WAITING, None, 3)
    second = world.service.identities(IdentityState.WAITING, first[-1].device, 3)

    assert [each.device for each in first] == ["dev-0", "dev-2", "dev-3"]
    assert [each.device for each in second] == ["dev-4"]


# -- failure -----------------------------------------------------------------------------------------------------------


def test_a_grant_that_cannot_be_written_down_is_none(world: World) -> None:
    token = world.token(uses=1)
    reader = AuditReader(find_database(world.where))
    reader.close()
    side = SideDatabase(find_database(world.where))
    with side.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM audit_head")
    side.close()

    answer = world.service.answer(AskingDevice("dev-1").asks(world.clock(), token))

    assert code(answer) == "busy"
    assert (world.service.tokens()[0].uses, world.service.admitted()) == (0, [])
    with pytest.raises(LedgerError):
        world.service.revoke_token(token.id)


# -- how certificates run out ------------------------------------------------------------------------------------------


def test_certificates_are_counted_by_when_each_devices_newest_runs_out(world: World) -> None:
    token = world.token(uses=3)
    devices = [AskingDevice(f"dev-{number}") for number in (1, 2, 3)]
    for device in devices:
        assert isinstance(world.service.answer(device.asks(world.clock(), token)), Granted)
        world.clock.now += DAY_S / 4
    world.clock.now += 4 * DAY_S
    assert isinstance(world.service.answer(devices[0].asks(world.clock())), Granted)
    world.service.revoke(DeviceId("dev-3"))

    found = world.service.expiries(DAY_S, 5)
    world.clock.now += 3 * DAY_S
    later = world.controller().expiries(DAY_S, 5)

    assert (dict(found.steps), found.lapsed, found.revoked) == ({2: 1, 7: 1}, 0, 1)
    assert [name for name, _ in found.soonest] == ["dev-2", "dev-1"]
    assert (sum(later.steps.values()), later.lapsed) == (1, 1)


def test_the_count_is_kept_for_a_moment(world: World) -> None:
    before = world.service.expiries(DAY_S, 5)
    token = world.token()
    world.service.answer(AskingDevice("dev-1").asks(world.clock(), token))

    at_once = world.service.expiries(DAY_S, 5)
    world.clock.now += EXPIRIES_KEPT_S + 1.0
    later = world.service.expiries(DAY_S, 5)

    assert at_once is before
    assert (dict(before.steps), sum(later.steps.values())) == ({}, 1)
