"""Alerts over a whole controller: who may order what, from the command line and the API; and a look from end to end."""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from harness.alerting import sources
from harness.desk import Desk, is_problem, open_desk, until
from harness.noised import noised
from harness.plant import PASSWORD, running_mosquitto, subscribed
from harness.receivers import Hook, running_hook
from muster_controller.acting import Acting, act_as
from muster_controller.alerts.engine import Engine, Stores
from muster_controller.alerts.looking import Looking
from muster_controller.alerts.sources import Content
from muster_controller.alerts.telling import Teller
from muster_controller.alerts.webhook import Webhooks, new_secret
from muster_controller.cli.main import app
from muster_controller.core.alerts.burn import Indicator, Objective
from muster_controller.core.alerts.finding import Severity
from muster_controller.core.alerts.machine import Alert, State, Step
from muster_controller.core.alerts.rules import RULES
from muster_controller.core.metrics.series import BIN_S, Group, Series
from muster_controller.db.alert_store import AlertStore
from muster_controller.db.engine import find_database
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.metrics_store import MetricsStore
from muster_controller.db.objective_store import ObjectiveStore
from muster_controller.db.receiver_store import Kind as ReceiverKind
from muster_controller.db.receiver_store import Receiver, ReceiverStore
from muster_controller.db.side import SideDatabase
from muster_controller.registry.blobs import BlobStore
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_controller.releases import Releases
from muster_shared.ids import ModelName
from muster_shared.metrics import DAY_S, HOUR_S, Cell, Kind, Mixed, sigma

pytestmark = pytest.mark.usefixtures("quiet")

Muster = Callable[..., Result]
NOW = 1_800_000_000.0 - 1_800_000_000.0 % DAY_S + 12 * HOUR_S


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="module")
def desk(folder: Path) -> Iterator[Desk]:
    with open_desk(folder) as desk:
        yield desk


@pytest.fixture(scope="module")
def people(desk: Desk) -> dict[str, httpx.Client]:
    return {role: desk.hire(f"a-{role}", role) for role in ("viewer", "operator", "admin")}


@pytest.fixture
def hook() -> Iterator[Hook]:
    with running_hook() as hook:
        yield hook


@pytest.fixture
def muster(folder: Path, desk: Desk) -> Muster:
    def run(*words: object) -> Result:
        env = {"COLUMNS": "250", "MUSTER_DATA": str(folder / "data"), "MUSTER_URL": ""}
        return CliRunner(env=env).invoke(app, [*map(str, words)])

    return run


def firing(folder: Path, name: str, subject: str, desk: Desk) -> None:
    """Put an alert into the running controller's database, as a look would."""
    now = NOW
    alert = Alert(
        name, "drift", subject, Severity.TICKET, State.FIRING, "It drifts.", now, now, now, {"share": 0.2}, told_at=now
    )
    with SideDatabase(find_database(folder / "data" / "muster.db")) as side:
        AlertStore(side, lambda: now).take(Step(saved=(alert,)))


def drop(folder: Path, name: str) -> None:
    with SideDatabase(find_database(folder / "data" / "muster.db")) as side, side.transaction() as connection:
        connection.exec_driver_sql(f"DELETE FROM alert WHERE id = '{name}'")


# -- orders ------------------------------------------------------------------------------------------------------------

OBJECTIVE = {"model": "digits", "indicator": "availability", "target": 0.999}


@pytest.mark.parametrize(
    ("role", "method", "path", "body", "allowed"),
    [
        ("viewer", "GET", "/alerts", None, True),
        ("viewer", "GET", "/alerts/rules", None, True),
        ("viewer", "GET", "/silences", None, True),
        ("viewer", "GET", "/objectives", None, True),
        ("viewer", "GET", "/receivers", None, False),
        ("viewer", "POST", "/silences", {"rule": "drift", "length_s": 60}, False),
        ("viewer", "POST", "/alerts/none/acknowledge", {}, False),
        ("operator", "POST", "/silences", {"rule": "drift", "length_s": 60}, True),
        ("operator", "PUT", "/objectives/up", OBJECTIVE, False),
        ("operator", "GET", "/receivers", None, False),
        ("admin", "PUT", "/objectives/up", OBJECTIVE, True),
        ("admin", "GET", "/receivers", None, True),
        ("admin", "DELETE", "/objectives/up", None, True),
    ],
)
def test_each_role_may_order_what_it_may(
    people: dict[str, httpx.Client], role: str, method: str, path: str, body: Any, allowed: bool
) -> None:
    answer = people[role].request(method, path, json=body, headers={"Content-Type": "application/json"})

    assert answer.is_success if allowed else is_problem(answer, 403, "forbidden")


def test_who_sees_a_part_of_the_fleet_reads_alerts_and_orders_none(desk: Desk) -> None:
    part = desk.hire("of-berlin", "operator", "site=berlin")

    assert part.get("/alerts").is_success
    assert is_problem(part.post("/silences", json={"rule": "drift", "length_s": 60}), 403, "forbidden")


def test_an_alert_is_listed_acknowledged_and_silenced_from_the_command_line(
    desk: Desk, folder: Path, muster: Muster
) -> None:
    firing(folder, "abc123", "digits/9.0.0", desk)
    try:
        listed = muster("alerts")
        shown = muster("alert", "show", "abc123")
        acknowledged = muster("alert", "ack", "abc123", "--comment", "known")
        silenced = muster("alert", "silence", "--subject", "digits/*", "--for", "2h", "--reason", "works", "--json")
        again = json.loads(muster("alerts", "--rule", "drift", "--json").output)
    finally:
        drop(folder, "abc123")

    assert "digits/9.0.0" in listed.output
    assert "docs/runbooks/alert-drift.md" in shown.output
    assert "share: 0.2" in shown.output
    assert acknowledged.exit_code == 0, acknowledged.output
    assert (again[0]["silenced"], again[0]["comment"]) == (True, "known")
    made = json.loads(silenced.output)["id"]
    assert made in muster("alert", "silences").output
    assert muster("alert", "unsilence", made).exit_code == 0
    assert muster("alert", "unsilence", made).exit_code == 4
    lines = desk.get("/audit", action="alert.")["lines"]
    assert [(each["action"], each["subject"], each["reason"]) for each in lines] == [
        ("alert.acknowledge", "abc123", "known")
    ]
    assert {each["action"] for each in desk.get("/audit", action="silence.")["lines"]} == {
        "silence.create",
        "silence.end",
    }


def test_a_change_of_an_alert_is_told_to_the_page(desk: Desk, folder: Path) -> None:
    firing(folder, "def456", "digits/8.0.0", desk)
    try:
        with desk.http.stream("GET", "/stream", timeout=10.0) as stream:
            lines = stream.iter_lines()
            next(line for line in lines if line.startswith("event: heartbeat"))
            desk.http.post("/alerts/def456/acknowledge", json={"comment": ""}).raise_for_status()
            assert next(line for line in lines if line == "event: alert")
    finally:
        drop(folder, "def456")


def test_silences_and_objectives_that_make_no_sense_are_refused(desk: Desk, muster: Muster) -> None:
    unknown = desk.http.post("/silences", json={"rule": "no-such-rule", "length_s": 60})
    for_ever = desk.http.post("/silences", json={"length_s": 10**9})
    perfect = desk.http.put("/objectives/up", json={**OBJECTIVE, "target": 1.0})

    assert is_problem(unknown, 422, "name-invalid")
    assert for_ever.status_code == 422
    assert perfect.status_code == 422
    assert muster("alert", "silence", "--for", "2h").exit_code == 2
    assert desk.http.get("/alerts/none").status_code == 404


def test_an_objective_is_set_shown_and_removed_from_the_command_line(muster: Muster) -> None:
    set_ = muster("slo", "set", "digits-up", "--model", "digits", "--target", "0.995")
    listed = json.loads(muster("slo", "list", "--json").output)
    removed = muster("slo", "remove", "digits-up")

    assert "99.5000% availability of digits" in set_.output
    assert [(each["name"], each["budget_left"]) for each in listed] == [("digits-up", None)]
    assert removed.exit_code == 0
    assert muster("slo", "show", "digits-up").exit_code == 4


def test_a_receiver_is_added_tested_and_removed_and_its_secret_shown_once(
    desk: Desk, muster: Muster, hook: Hook
) -> None:
    added = muster("receiver", "add", "ops", "--webhook", hook.url, "--severity", "page")
    secret = re.search(r"whsec_\S+", added.output)
    assert secret is not None, added.output
    tested = muster("receiver", "test", "ops")
    hook.answers = [(500, {})]
    failed = desk.http.post("/receivers/ops/test", json={})
    listed = muster("receiver", "list", "--json")

    (post, _) = hook.posts
    assert tested.exit_code == 0, tested.output
    assert post.json["type"] == "receiver.test"
    assert post.is_signed_with(secret[0])
    assert is_problem(failed, 502, "telling-failed")
    assert "whsec" not in listed.output
    assert "whsec" not in json.dumps(desk.get("/audit"))
    assert muster("receiver", "remove", "ops").exit_code == 0


@pytest.mark.broker
def test_a_topic_of_a_broker_is_added_and_tested_and_its_password_shown_to_nobody(
    desk: Desk, muster: Muster, tmp_path: Path
) -> None:
    with running_mosquitto(tmp_path, by_certificate=False) as broker:
        password, ca = tmp_path / "password", tmp_path / "ca" / "ca.pem"
        password.write_text(f"{PASSWORD}\n")
        added = muster("receiver", "add", "plant", "--mqtt", broker.address, "--password-file", password, "--ca", ca)
        with subscribed(broker.reader) as subscriber:
            tested = muster("receiver", "test", "plant")
            (message,) = subscriber.wait(1)
    failed = desk.http.post("/receivers/plant/test", json={})
    listed = muster("receiver", "list", "--json")

    assert added.exit_code == 0, added.output
    assert tested.exit_code == 0, tested.output
    assert json.loads(message.payload)["type"] == "receiver.test"
    assert is_problem(failed, 502, "telling-failed")
    assert [each["kind"] for each in json.loads(listed.output)] == ["mqtt"]
    for said in (added.output, listed.output, failed.text, json.dumps(desk.get("/audit"))):
        assert PASSWORD not in said
        assert "BEGIN CERTIFICATE" not in said
    assert muster("receiver", "remove", "plant").exit_code == 0


def test_a_receiver_that_cannot_be_used_is_refused(desk: Desk) -> None:
    ftp = desk.http.post("/receivers", json={"name": "ops", "kind": "webhook", "address": "ftp://x/y"})
    unmailed = desk.http.post("/receivers", json={"name": "ops", "kind": "email", "address": "anna@x.example"})

    assert is_problem(ftp, 422, "receiver-invalid")
    topic = {"name": "ops", "kind": "mqtt", "address": "mqtt://broker.example/alerts/#"}
    assert is_problem(unmailed, 422, "receiver-invalid")
    assert is_problem(desk.http.post("/receivers", json=topic), 422, "receiver-invalid")
    assert is_problem(
        desk.http.post("/receivers", json=topic | {"kind": "webhook", "ca": "x"}), 422, "receiver-invalid"
    )
    assert "--smtp-url" in unmailed.json()["detail"]


def test_every_rule_has_its_runbook() -> None:
    root = Path(__file__).parents[2]

    missing = [each.name for each in RULES.values() if not (root / each.runbook).is_file()]

    assert missing == []


def test_the_running_controller_looks_by_itself(desk: Desk) -> None:
    """Its own certificates and keys are fresh, so that all there is to see is that nothing is wrong."""
    until(lambda: desk.get("/health")["leading"])

    found = desk.get("/alerts", state=["firing", "pending"])["alerts"]

    assert [each["rule"] for each in found] == []


# -- a look, from end to end -------------------------------------------------------------------------------------------


class World:
    """What an engine stands on: a database, a clock, one receiver."""

    def __init__(self, folder: Path, side: SideDatabase, ledger: SqlLedger, hook: Hook) -> None:
        self.now = NOW
        self.secret = new_secret()
        self.metrics = MetricsStore(side)
        self.alerts = AlertStore(side, self.clock)
        self.objectives = ObjectiveStore(side, self.clock)
        self.receivers = ReceiverStore(side, self.clock)
        self.told: list[str] = []
        create_online_keys(folder)
        releases = Releases(TufRepository(folder), BlobStore(folder / "blobs"))
        content = Content(self.metrics, releases, self.clock)
        self.teller = Teller(self.receivers, {ReceiverKind.WEBHOOK: Webhooks()}, self.clock, random.Random(7))
        looking = Looking(sources(ledger, self.objectives, content), self.clock)
        self.engine = Engine(
            Stores(self.alerts, self.receivers),
            lambda: looking,
            self.teller,
            fleet="lab",
            leads=lambda: True,
            changed=lambda found: self.told.extend(each.id for each in found),
            clock=self.clock,
        )
        self.receivers.add(Receiver("ops", ReceiverKind.WEBHOOK, hook.url, secret=self.secret, created_by="anna"))

    def clock(self) -> float:
        return self.now

    def watch(self, seconds: float) -> None:
        """Look and tell every half minute for so long."""
        until_ = self.now + seconds
        while self.now <= until_:
            self.engine.look()
            self.teller.turn()
            self.now += 30.0


@pytest.fixture
def world(tmp_path: Path, hook: Hook) -> Iterator[World]:
    where = tmp_path / "muster.db"
    with SqlLedger(where, lambda: NOW) as ledger, SideDatabase(find_database(where)) as side:
        yield World(tmp_path, side, ledger, hook)


def test_a_model_that_fails_pages_and_is_over_when_it_answers_again(world: World, hook: Hook) -> None:
    with act_as(Acting("anna")):
        world.objectives.set(Objective("digits-up", "digits", Indicator.AVAILABILITY, 0.999))

    def served(at: float, errors: int) -> Series:
        group = Group("digits", "1.0.0", "nuc")
        return Series(group, at - at % BIN_S, BIN_S, 10, requests=1000, errors=errors)

    world.metrics.add_series(served(NOW - ago, 100) for ago in range(0, 1800, BIN_S))
    world.watch(180)
    world.metrics.add_series(served(NOW + 180 + later, 0) for later in range(BIN_S, 4 * 3600, BIN_S))
    world.watch(3600)

    told = [(post.json["type"], post.json["data"]["alerts"][0]["subject"]) for post in hook.posts]
    assert told == [
        ("alert.firing", "digits-up"),
        ("alert.firing", "digits-up/slowly"),  # A tenth of half an hour is more than three days bear.
        ("alert.resolved", "digits-up"),
    ]
    assert all(post.is_signed_with(world.secret) for post in hook.posts)
    found = {each.subject: each for each in world.alerts.alerts(limit=10)}
    assert (found["digits-up"].state, found["digits-up"].severity) == (State.RESOLVED, Severity.PAGE)
    assert {each.id for each in found.values()} == set(world.told)


def test_a_slice_that_got_worse_while_the_average_got_better_reaches_a_receiver(world: World, hook: Hook) -> None:
    """Perl among the files that magika tells apart: 100 % before, 40 % after, and the average improved."""
    classes, perl, devices, hours = 20, 7, 10_000, 48
    rng = random.Random(11)

    def feedback(version: str, right: float, right_of_perl: float, first: int) -> Iterator[Mixed]:
        cell = Cell(model=ModelName("magika"), version=version, device_class="nuc", classes=classes)
        for hour in range(hours):
            votes = []
            for each in range(classes):
                share = right_of_perl if each == perl else right
                votes += [devices / classes * (1 - share), devices / classes * share]
            yield Mixed(
                batch=f"{version}-{hour}",
                mixer="one",
                cell=cell,
                period_start=int(NOW) - (first - hour) * HOUR_S,
                period_s=HOUR_S,
                devices=devices,
                sums={Kind.FEEDBACK: noised(rng, Kind.FEEDBACK, votes)},
                sigma={Kind.FEEDBACK: sigma(Kind.FEEDBACK)},
                mixed_at=NOW,
            )

    world.metrics.add(list(feedback("1.0.0", 0.90, 1.0, 2 * hours + 2)))
    world.metrics.add(list(feedback("2.0.0", 0.96, 0.4, hours + 2)))

    world.watch(30)

    (post,) = hook.posts
    (alert,) = post.json["data"]["alerts"]
    assert (post.json["data"]["rule"], alert["subject"]) == ("slice-regression", "magika/2.0.0")
    assert (alert["facts"]["slice"], alert["facts"]["hidden"]) == (str(perl), True)
    assert alert["facts"]["overall_after"] > alert["facts"]["overall_before"]
    assert "although the average went from" in post.json["text"]


def test_a_look_that_finds_nothing_writes_nothing(world: World, hook: Hook) -> None:
    world.watch(300)

    assert (hook.posts, world.told, world.alerts.current(0.0)) == ([], [], [])
