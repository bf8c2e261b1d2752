"""Two controllers of one fleet over one database: two that both believe to lead, and two that take turns."""

import asyncio
import itertools
import random
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.desk import local_token
from harness.fleet_stage import MODEL, POLICY, Shelf, presence, twin
from harness.ledgers import rederived
from harness.postgres import Postgres, Where
from muster_controller.broker.embedded import BrokerKind, start_broker
from muster_controller.config import ServerConfig
from muster_controller.core.rollout.events import Order, OrderRefused
from muster_controller.core.rollout.state import Outcome
from muster_controller.db.errors import LedgerMoved
from muster_controller.db.ledger import SqlLedger
from muster_controller.errors import Conflict, FleetUnavailable
from muster_controller.fleet import Fleet
from muster_controller.gateway.fleet_thread import FleetThread
from muster_controller.gateway.standing import Standing
from muster_controller.gateway.wire import LinkWire
from muster_controller.identity.agreement import Disagreement
from muster_controller.registry.operator import init_operator
from muster_controller.registry.tuf_repository import create_online_keys
from muster_controller.server import Controller
from muster_shared import assignment, topics
from muster_shared.assignment import Assignment
from muster_shared.ids import DeviceId, EventId, FleetId, RolloutId
from muster_shared.link import AckToken, Link, LinkConfig, Received, parse_broker_url
from muster_shared.messages import Event, FaultSeen, OutcomeReported, encode
from muster_shared.topics import Channel, DeviceTopic, Topic

FLEET = FleetId("test")
WAIT_S = 60.0
NAMES = tuple(f"dev-{number}" for number in range(4))


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Where]:
    """Return what makes a new empty database."""
    if request.param == "sqlite":
        numbers = itertools.count()
        return lambda: tmp_path / f"{next(numbers)}.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database


def until(happens: Callable[[], object]) -> None:
    gives_up = time.monotonic() + WAIT_S
    while not happens():
        assert time.monotonic() < gives_up, "it did not happen in time"
        time.sleep(0.02)


# -- two fleets that both believe to lead ------------------------------------------------------------------------------


@dataclass
class Air:
    """A wire whose messages leave when the commit has come through, as the gateway's does."""

    sent: list[tuple[Topic, bytes]] = field(default_factory=list)
    held: list[tuple[Topic, bytes]] = field(default_factory=list)

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None:
        self.held.append((topic, payload))


@dataclass
class World:
    """Two controllers, some devices, one database and one clock."""

    where: Where
    now: float = 1000.0
    told: dict[str, Assignment] = field(default_factory=dict)
    """The newest assignment that reached each device, from whomever."""
    said: dict[tuple[DeviceId, int], set[bytes]] = field(default_factory=dict)
    """Every envelope that was published."""
    reported: dict[tuple[RolloutId, DeviceId], bool] = field(default_factory=dict)
    sequence: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.airs = [Air(), Air()]
        self.ledgers = [SqlLedger(self.where, lambda: self.now) for _ in range(2)]
        self.fleets = [
            Fleet(
                FLEET,
                ledger=ledger,
                registry=Shelf(),
                wire=air,
                clock=lambda: self.now,
                random=Random(seed),
                session=f"s{seed}",
            )
            for seed, (ledger, air) in enumerate(zip(self.ledgers, self.airs, strict=True))
        ]

    def close(self) -> None:
        for ledger in self.ledgers:
            ledger.close()

    def carry_out(self, who: int, do: Callable[[Fleet], object], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Let a fleet do something in one transaction; `meanwhile` happens before its first commit."""
        for _ in range(100):
            try:
                with self.ledgers[who].transaction():
                    do(self.fleets[who])
                    meanwhile()
            except LedgerMoved:
                self.airs[who].held.clear()
                meanwhile = lambda: None  # noqa: E731  # It has happened.
                continue
            except (Conflict, OrderRefused):
                self.airs[who].held.clear()
                meanwhile()
                return
            self._deliver(self.airs[who])
            return
        raise AssertionError("it never got through")

    def _deliver(self, air: Air) -> None:
        sent, air.held = air.held, []
        for topic, payload in sent:
            match topic:
                case DeviceTopic(device, Channel.ASSIGNMENT):
                    document = assignment.parse(payload)
                    self.said.setdefault((device, document.counter), set()).add(payload)
                    known = self.told.get(device)
                    if known is None or document.counter > known.counter:
                        self.told[device] = document
                case _:
                    pass

    # What happens: each returns what a fleet is to do.

    def join(self, name: str) -> Callable[[Fleet], object]:
        device, number = DeviceId(name), next(self.sequence)
        document = self.told.get(name)
        active = None if document is None or not document.models else document.models[0].release
        counter = 0 if document is None else document.counter
        messages = (presence(name), twin(name, number, active, counter=counter))

        def do(fleet: Fleet) -> None:
            for channel, message in zip((Channel.PRESENCE, Channel.TWIN), messages, strict=True):
                fleet.received(DeviceTopic(device, channel), encode(message))

        return do

    def report(self, name: str, good: bool) -> Callable[[Fleet], object]:
        """The outcome of what it was last told; said once more, it is the same event."""
        document = self.told.get(name)
        watch = None if document is None or not document.models else document.models[0].watch
        if document is None or watch is None:
            return lambda fleet: None
        device = DeviceId(name)
        good = self.reported.setdefault((watch.rollout, device), good)
        body = OutcomeReported(
            release=document.models[0].release, rollout=watch.rollout, wave=watch.wave, good=good, reason="because"
        )
        event = Event(id=EventId(f"{watch.rollout}-{name}-{watch.wave}"), device=device, at=1.0, body=body)
        return lambda fleet: fleet.received(DeviceTopic(device, Channel.EVENT), encode(event))

    def action(self, kind: str, number: int) -> Callable[[Fleet], object]:
        name = NAMES[number % len(NAMES)]
        match kind:
            case "join":
                return self.join(name)
            case "good":
                return self.report(name, True)
            case "bad":
                return self.report(name, False)
            case "create":
                return lambda fleet: fleet.create_rollout(MODEL, f"1.{number % 3 + 1}.0", POLICY, "anna")
            case "connected":
                return lambda fleet: fleet.connected()
            case "abort":
                return self.abort
        self.now += number
        return lambda fleet: fleet.tick()

    def abort(self, fleet: Fleet) -> None:
        ledger = self.ledgers[self.fleets.index(fleet)]
        for rollout in ledger.rollouts(running=True):
            fleet.order(rollout.id, Order.ABORT, "anna", "enough")


ACTIONS = st.tuples(
    st.sampled_from(["join", "good", "good", "bad", "tick", "tick", "create", "connected", "abort"]), st.integers(0, 11)
)
STEPS = st.lists(st.tuples(st.integers(0, 1), ACTIONS, st.none() | ACTIONS), max_size=30)


@pytest.fixture
def emptied(request: pytest.FixtureRequest, where: Callable[[], Where]) -> Callable[[], Where]:
    """Return what makes an empty database for each of many examples, as fast as it can."""
    first = where()
    if isinstance(first, Path):
        return where
    SqlLedger(first, time.time).close()
    server: Postgres = request.getfixturevalue("postgres")
    return lambda: server.emptied(first)


@given(steps=STEPS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_two_fleets_that_both_believe_to_lead_agree_on_one_history(
    emptied: Callable[[], Where], steps: list[tuple[int, tuple[str, int], tuple[str, int] | None]]
) -> None:
    world = World(emptied())

    try:
        for name in NAMES:
            world.carry_out(0, world.join(name))
        world.carry_out(1, world.action("create", 0))
        for who, (kind, number), other in steps:
            if other is None:
                world.carry_out(who, world.action(kind, number))
                continue
            beside = world.action(*other)
            world.carry_out(who, world.action(kind, number), lambda who=who, do=beside: world.carry_out(1 - who, do))
        for ledger in world.ledgers:
            ledger.catch_up()

        with SqlLedger(world.where, lambda: world.now) as fresh:
            _check_agreement(world, fresh)
            _check_assignments(world, fresh)
            _check_rollouts(world, fresh)
    finally:
        world.close()


def _check_agreement(world: World, fresh: SqlLedger) -> None:
    for ledger in world.ledgers:
        assert list(ledger.devices()) == list(fresh.devices())
        assert list(ledger.all_desired()) == list(fresh.all_desired())
        assert list(ledger.rollouts(running=False)) == list(fresh.rollouts(running=False))
        assert list(ledger.baselines(MODEL)) == list(fresh.baselines(MODEL))


def _check_assignments(world: World, fresh: SqlLedger) -> None:
    """Counters rise by one, no counter was ever published with two meanings, and none that was not committed."""
    for name in NAMES:
        told = fresh.issued(DeviceId(name), limit=10_000)
        assert [each.counter for each in told] == list(range(len(told), 0, -1))
        assert fresh.desired(DeviceId(name)).counter == len(told)
    committed = {(each.device, each.counter) for name in NAMES for each in fresh.issued(DeviceId(name), limit=10_000)}
    assert set(world.said) <= committed
    assert all(len(envelopes) == 1 for envelopes in world.said.values())


def _check_rollouts(world: World, fresh: SqlLedger) -> None:
    """One rollout of the model at a time; every count follows from the devices; every outcome counted as reported."""
    running = fresh.rollouts(running=True)
    assert len(running) <= 1
    for rollout in fresh.rollouts(running=False):
        assert rederived(rollout) == rollout
        for device, member in rollout.members.items():
            good = world.reported.get((rollout.id, device))
            if member.outcome is Outcome.GOOD:
                assert good is True
    taken = Counter(event.id for event in fresh.events(None, 10_000))
    assert all(count == 1 for count in taken.values())


# -- a fleet thread and its standing -----------------------------------------------------------------------------------


@dataclass
class Post:
    """A controller's fleet thread without a broker: what it acknowledged, and whether its door is open."""

    where: Where
    name: str
    lease_s: float = 30.0
    acked: list[int] = field(default_factory=list)
    door: list[str] = field(default_factory=list)

    def __enter__(self) -> "Post":
        self.ledger = SqlLedger(self.where, time.time)
        wire = LinkWire(FLEET)
        self.fleet = Fleet(
            FLEET,
            ledger=self.ledger,
            registry=Shelf(),
            wire=wire,
            clock=time.time,
            random=Random(1),
            session=self.name,
        )
        standing = Standing(
            self.ledger,
            self.name,
            f"http://{self.name}:8080",
            on_lead=lambda: self.door.append("open"),
            on_stand_by=lambda: self.door.append("closed"),
            lease_s=self.lease_s,
            renew_s=0.05,
            ask_s=0.05,
        )
        self.thread = FleetThread(
            self.fleet, self.ledger, wire, standing, lambda token: self.acked.append(token.packet_id)
        )
        self.thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.thread.stop(WAIT_S)
        self.ledger.close()

    @property
    def leads(self) -> bool:
        return self.thread.standing.leads

    def call(self, run: Callable[[Fleet], Any]) -> Any:
        return asyncio.run(self.thread.call(run))

    def receive(self, device: str, packet_id: int, event: Event) -> None:
        self.receive_raw(device, packet_id, encode(event))

    def receive_raw(self, device: str, packet_id: int, payload: bytes) -> None:
        topic = topics.build(FLEET, DeviceTopic(DeviceId(device), Channel.EVENT))
        self.thread.on_item(Received(topic, payload, 1, False, AckToken(1, packet_id, 1)))


def fault(name: str, device: str = "dev-0") -> Event:
    return Event(id=EventId(name), device=DeviceId(device), at=1.0, body=FaultSeen(model=None, detail="hot"))


def test_one_leads_and_the_other_refuses_orders_and_names_it(where: Callable[[], Where]) -> None:
    database = where()
    with Post(database, "one") as one:
        until(lambda: one.leads)
        with Post(database, "other") as other:
            until(lambda: other.thread.standing.leader is not None)

            with pytest.raises(FleetUnavailable, match="http://one:8080"):
                other.call(lambda fleet: fleet.tick())

            one.call(lambda fleet: fleet.tick())
            other.receive("dev-0", 7, fault("e-1"))
            one.receive("dev-0", 8, fault("e-1"))
            until(lambda: one.acked)
            assert (one.acked, other.acked) == ([8], [])
            assert (one.door, other.door) == (["open"], [])


def test_whoever_stands_by_sees_what_the_leader_wrote(where: Callable[[], Where]) -> None:
    database = where()
    with Post(database, "one") as one, Post(database, "other") as other:
        until(lambda: one.leads or other.leads)
        leading, standing_by = (one, other) if one.leads else (other, one)
        topic = DeviceTopic(DeviceId("dev-0"), Channel.PRESENCE)

        leading.call(lambda fleet: fleet.received(topic, encode(presence("dev-0"))))

        until(lambda: DeviceId("dev-0") in standing_by.ledger.committed().devices)


def test_the_other_takes_over_when_the_leader_stops(where: Callable[[], Where]) -> None:
    database = where()
    with Post(database, "other", lease_s=300.0) as other, Post(database, "one", lease_s=300.0) as one:
        until(lambda: one.leads or other.leads)
        leading, standing_by = (one, other) if one.leads else (other, one)
        until(lambda: standing_by.thread.standing.leader is not None)

        leading.thread.stop(WAIT_S)

        until(lambda: standing_by.leads)
        assert leading.door == ["open", "closed"]
        assert standing_by.door == ["open"]


def test_the_other_takes_over_when_the_leader_dies_without_a_word(where: Callable[[], Where]) -> None:
    database = where()
    with SqlLedger(database, time.time) as died:
        died.lead("died", "http://died:8080", 1.0)

        with Post(database, "other") as other:
            until(lambda: other.leads)


def test_a_command_starts_again_when_another_controller_wrote_meanwhile(where: Callable[[], Where]) -> None:
    database = where()
    attempts: list[float] = []
    with Post(database, "one") as one, SqlLedger(database, time.time) as intruder:
        until(lambda: one.leads)
        topic = DeviceTopic(DeviceId("dev-0"), Channel.PRESENCE)

        def order(fleet: Fleet) -> int:
            fleet.received(topic, encode(presence("dev-0")))
            if not attempts:  # The lease is ignored: this is somebody who believes to lead.
                intruder.catch_up()
                with intruder.transaction():
                    intruder.take_event(fault("e-1"))
            attempts.append(time.monotonic())
            return len(attempts)

        answer = one.call(order)

        assert answer == len(attempts) == 2
        assert one.ledger.has_event(EventId("e-1"))
        assert one.ledger.reader.everything().devices.keys() == {DeviceId("dev-0")}


def test_what_another_controller_took_already_is_acknowledged_and_counted_once(where: Callable[[], Where]) -> None:
    database = where()
    with Post(database, "one") as one, SqlLedger(database, time.time) as intruder:
        until(lambda: one.leads)
        intruder.catch_up()
        with intruder.transaction():
            intruder.take_event(fault("e-1"))

        one.receive("dev-0", 1, fault("e-1"))
        one.receive("dev-0", 2, fault("e-2"))

        until(lambda: one.acked == [1, 2])
        assert [each.id for each in one.ledger.events(None, 9)] == ["e-2", "e-1"]


def test_what_cannot_be_decoded_stops_nothing_and_comes_no_second_time(where: Callable[[], Where]) -> None:
    undecodable = (b"{", b'{"a":' * 20_000, b'{"id":' + b"[" * 30_000, b'{"id": "\xff"}', b'{"id": "\\ud800"}')
    with Post(where(), "one") as one:
        until(lambda: one.leads)

        for packet_id, payload in enumerate(undecodable, start=1):
            one.receive_raw("dev-0", packet_id, payload)
        one.receive("dev-0", 99, fault("e-1"))

        until(lambda: 99 in one.acked)
        assert one.acked == [1, 2, 3, 4, 5, 99]
        assert one.thread.faults == 0
        assert one.call(lambda fleet: fleet.counters).malformed == len(undecodable)


def test_a_message_that_the_database_refuses_does_not_hold_up_the_others(where: Callable[[], Where]) -> None:
    with Post(where(), "one") as one:
        until(lambda: one.leads)
        with one.ledger._writer.begin() as connection:  # As a constraint of a later schema might.
            refuse = {
                "sqlite": "CREATE TRIGGER no BEFORE INSERT ON event WHEN NEW.id = 'e-2'"
                " BEGIN SELECT RAISE(ABORT, 'no'); END",
                "postgresql": "ALTER TABLE event ADD CHECK (id <> 'e-2')",
            }
            connection.exec_driver_sql(refuse[connection.dialect.name])

        hold = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(one.call, lambda fleet: hold.wait(WAIT_S))  # So that all of them are one batch.
            for number in (1, 2, 3):
                one.receive("dev-0", number, fault(f"e-{number}"))
            hold.set()
            busy.result(WAIT_S)

        until(lambda: one.acked == [1, 2, 3])
        assert [each.id for each in one.ledger.events(None, 9)] == ["e-3", "e-1"]
        assert one.thread.faults == 1


def test_a_fleet_thread_survives_a_postgresql_that_restarts(postgres: Postgres) -> None:
    with Post(postgres.new_database(), "one") as one:
        until(lambda: one.leads)
        one.receive("dev-0", 1, fault("e-1"))
        until(lambda: one.acked == [1])

        postgres.restart()
        one.receive("dev-0", 2, fault("e-2"))

        until(lambda: 2 in one.acked)
        assert [each.id for each in one.ledger.events(None, 9)] == ["e-2", "e-1"]


# -- two servers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def broker_url(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    broker = start_broker(BrokerKind.AUTO, tmp_path / "broker", port)
    try:
        broker.wait_ready(WAIT_S)
        yield broker.url
    finally:
        broker.stop()


def test_of_two_servers_one_leads_and_the_other_takes_over(
    where: Callable[[], Where], broker_url: str, tmp_path: Path
) -> None:
    database = where()
    url = database if isinstance(database, str) else f"sqlite:///{database}"
    configs = [
        ServerConfig(data=tmp_path / name, database=url, fleet=FLEET, port=0, device_port=0, broker_url=broker_url)
        for name in ("one", "other")
    ]
    with Controller(configs[0]):  # It writes down what the other has to have too.
        pass
    init_operator(tmp_path / "operator", [MODEL], create_online_keys(configs[0].data), datetime.now(UTC))
    with pytest.raises(Disagreement, match="ca-root, ca-issuer, online-keys"), Controller(configs[1]):
        pass
    for folder in ("ca", "keys"):
        shutil.rmtree(configs[1].data / folder)
        shutil.copytree(configs[0].data / folder, configs[1].data / folder)
    said = threading.Event()
    device = Link(
        LinkConfig(broker=parse_broker_url(broker_url), client_id="dev-0"), lambda item: said.set(), rng=random.Random()
    )
    device.start()
    topic = topics.build(FLEET, DeviceTopic(DeviceId("dev-0"), Channel.PRESENCE))

    def who(controller: Controller) -> dict[str, str]:
        return {"Authorization": f"Bearer {local_token(controller.data)}"}

    def ask(controller: Controller, method: str, path: str) -> httpx.Response:
        return httpx.request(method, f"{controller.url}/api/v1{path}", headers=who(controller), trust_env=False)

    def order(controller: Controller) -> httpx.Response:
        url = f"{controller.url}/api/v1/rollouts/none/pause"
        return httpx.post(url, json={"reason": "x"}, headers=who(controller), trust_env=False)

    try:
        with Controller(configs[1]) as other, Controller(configs[0]) as one:
            until(lambda: ask(other, "GET", "/status").json()["broker_connected"])
            device.publish(topic, encode(presence("dev-0")), qos=1, retain=True)
            until(lambda: [each["id"] for each in ask(one, "GET", "/devices").json()["devices"]] == ["dev-0"])

            refused = order(one)
            assert refused.status_code == 503
            assert other.url in refused.text
            assert order(other).status_code == 404

            other.stop()
            until(lambda: order(one).status_code == 404)
            until(lambda: ask(one, "GET", "/status").json()["broker_connected"])
    finally:
        device.stop(2.0)
