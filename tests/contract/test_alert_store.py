"""Alerts, objectives and receivers over a real database: what a look, an order and another controller leave."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from harness.clock import Clock
from harness.postgres import Where
from muster_controller.acting import Acting, act_as
from muster_controller.core.alerts.burn import Indicator, Objective, Requests
from muster_controller.core.alerts.finding import Severity
from muster_controller.core.alerts.grouping import body
from muster_controller.core.alerts.machine import Alert, Silence, State, Step
from muster_controller.core.metrics.series import BIN_S, Group, Series
from muster_controller.db.alert_store import KEEP_S, AlertStore
from muster_controller.db.audit import AuditReader
from muster_controller.db.engine import find_database
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.metrics_store import MetricsStore
from muster_controller.db.objective_store import ObjectiveStore
from muster_controller.db.receiver_store import WAITING_MAX, Kind, Receiver, ReceiverStore
from muster_controller.db.side import SideDatabase
from muster_controller.errors import Conflict, NotFound

ANNA = Acting("anna", "request-1", "because")
HOUR_S, DAY_S = 3600.0, 86_400.0


class World:
    """One database, and as many controllers as a test wants."""

    def __init__(self, where: Where, stack: ExitStack) -> None:
        self.clock = Clock()
        self._where = where
        with SqlLedger(where, self.clock):
            pass  # It migrates.
        self.side = stack.enter_context(SideDatabase(find_database(where)))
        self.alerts = AlertStore(self.side, self.clock)
        self.objectives = ObjectiveStore(self.side, self.clock)
        self.receivers = ReceiverStore(self.side, self.clock)

    def audited(self) -> list[tuple[str, str, str, str]]:
        """Who did what to what and why, the oldest first."""
        reader = AuditReader(find_database(self._where))
        try:
            return [(each.actor, each.action, each.subject, each.reason) for each in reversed(reader.lines(limit=100))]
        finally:
            reader.close()

    def alert(self, name: str, subject: str = "fleet", *, state: State = State.FIRING, ago_s: float = 0.0) -> Alert:
        at = self.clock() - ago_s
        return Alert(
            name, "offline-surge", subject, Severity.PAGE, state, "Many went.", at, at, at, {"gone": 3, "share": 0.5}
        )


@pytest.fixture
def world(where: Where) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(where, stack)


# -- alerts ------------------------------------------------------------------------------------------------------------


def test_an_alert_comes_back_as_it_was_kept(world: World) -> None:
    alert = replace(world.alert("a"), told_at=world.clock(), times=2)

    world.alerts.take(Step(saved=(alert,)))

    assert world.alerts.alert("a") == alert
    assert world.alerts.current(world.clock()) == [alert]
    assert world.alerts.counts() == {"page": 1}


def test_a_look_writes_over_its_own_columns_and_leaves_what_people_wrote(world: World) -> None:
    alert = world.alert("a")
    world.alerts.take(Step(saved=(alert,)))
    with act_as(ANNA):
        world.alerts.acknowledge("a", "on my way")

    world.alerts.take(Step(saved=(replace(alert, summary="More went.", seen_at=world.clock() + 60),)))

    found = world.alerts.alert("a")
    assert (found.summary, found.acknowledged_by, found.comment) == ("More went.", "anna", "on my way")
    assert world.audited() == [("anna", "alert.acknowledge", "a", "because")]


def test_what_another_controller_began_a_moment_before_is_not_begun_again(world: World) -> None:
    world.alerts.take(Step(saved=(world.alert("a"),)))

    kept = world.alerts.take(Step(saved=(world.alert("b"), world.alert("c", "nuc"))))

    assert [each.id for each in kept] == ["c"]
    assert sorted(each.id for each in world.alerts.current(world.clock())) == ["a", "c"]


def test_only_what_is_pending_can_be_dropped(world: World) -> None:
    world.alerts.take(Step(saved=(world.alert("a", state=State.PENDING), world.alert("b", "nuc"))))

    world.alerts.take(Step(dropped=("a", "b")))

    assert [each.id for each in world.alerts.current(0.0)] == ["b"]


def test_notices_are_queued_with_the_alerts_or_not_at_all(world: World) -> None:
    def fail(_connection: object) -> None:
        raise Conflict("no")

    with pytest.raises(Conflict):
        world.alerts.take(Step(saved=(world.alert("a"),)), fail)

    assert world.alerts.current(0.0) == []


def test_pages_of_alerts_go_on_where_the_one_before_ended(world: World) -> None:
    world.alerts.take(Step(saved=tuple(world.alert(f"a{index}", f"s{index}", ago_s=index // 2) for index in range(7))))

    first = world.alerts.alerts(limit=3)
    second = world.alerts.alerts(after=first[-1].id, limit=10)

    assert [each.id for each in (*first, *second)] == ["a1", "a0", "a3", "a2", "a5", "a4", "a6"]
    assert world.alerts.alerts(after="no-such", limit=10) == []
    assert [each.id for each in world.alerts.alerts(subject="s4", limit=10)] == ["a4"]


def test_an_alert_that_is_over_cannot_be_acknowledged_and_is_forgotten_in_time(world: World) -> None:
    over = replace(world.alert("a", state=State.RESOLVED), resolved_at=world.clock())
    world.alerts.take(Step(saved=(over,)))

    with pytest.raises(Conflict):
        world.alerts.acknowledge("a", "")
    with pytest.raises(NotFound):
        world.alerts.acknowledge("b", "")
    world.clock.now += KEEP_S + 1
    world.alerts.sweep()

    assert world.alerts.alerts(limit=10) == []


def test_silences_end_by_themselves_and_by_hand(world: World) -> None:
    def silence(name: str, length_s: float) -> Silence:
        return Silence(name, "drift", "magika/*", world.clock(), world.clock() + length_s, "anna", "known")

    with act_as(ANNA):
        world.alerts.silence(silence("long", 7200))
        world.alerts.silence(silence("short", 60))
        assert [each.id for each in world.alerts.silences()] == ["short", "long"]
        world.clock.now += 61

        world.alerts.end_silence("long")

    assert world.alerts.silences() == []
    with pytest.raises(NotFound):
        world.alerts.end_silence("short")
    assert [each[1] for each in world.audited()] == ["silence.create", "silence.create", "silence.end"]


# -- objectives --------------------------------------------------------------------------------------------------------


def test_an_objective_is_set_changed_and_removed_and_all_of_it_is_written_down(world: World) -> None:
    with act_as(ANNA):
        world.objectives.set(Objective("up", "digits", Indicator.AVAILABILITY, 0.99))
        world.objectives.set(Objective("up", "digits", Indicator.LATENCY, 0.95, "nuc"))
    (kept,) = world.objectives.objectives()
    assert kept.objective == Objective("up", "digits", Indicator.LATENCY, 0.95, "nuc")
    assert kept.created_by == "anna"

    with act_as(ANNA):
        world.objectives.remove("up")

    with pytest.raises(NotFound):
        world.objectives.objective("up")
    assert [each[:3] for each in world.audited()] == [
        ("anna", "objective.set", "up"),
        ("anna", "objective.set", "up"),
        ("anna", "objective.remove", "up"),
    ]


def test_requests_are_counted_in_the_window_by_model_and_class(world: World) -> None:
    def minutes(ago_s: float, requests: int, model: str = "digits", device_class: str = "nuc") -> Series:
        at = (world.clock() - ago_s) // BIN_S * BIN_S
        return Series(Group(model, "1.0.0", device_class), at, BIN_S, 1, requests, errors=requests // 10, slow=1)

    store = MetricsStore(world.side)
    store.add_series([minutes(60, 100), minutes(1800, 200), minutes(5 * HOUR_S, 400), minutes(60, 50, "other")])
    store.add_series([minutes(60, 1000, device_class="pi"), minutes(2 * DAY_S, 800), minutes(20 * DAY_S, 1600)])
    every = Objective("up", "digits", Indicator.AVAILABILITY, 0.99)
    nuc = replace(every, device_class="nuc")

    assert world.objectives.requests(nuc, 300) == Requests(100, 10, 1)
    assert world.objectives.requests(every, 3600) == Requests(1300, 130, 3)
    assert world.objectives.requests(nuc, 6 * 3600) == Requests(700, 70, 3)
    assert world.objectives.requests(nuc, 3 * 86_400) == Requests(1500, 150, 4)
    assert world.objectives.requests(nuc, 28 * 86_400) == Requests(3100, 310, 5)
    assert world.objectives.requests(replace(every, model="none"), 3600) == Requests()


# -- receivers ---------------------------------------------------------------------------------------------------------


def webhook(name: str = "ops", *severities: Severity) -> Receiver:
    return Receiver(name, Kind.WEBHOOK, "https://ops.example/x", severities, secret="whsec_c2VjcmV0", created_by="anna")


def test_a_receiver_is_kept_whole_and_its_secret_stands_in_no_log(world: World) -> None:
    receiver = webhook("ops", Severity.TICKET, Severity.PAGE)
    with act_as(ANNA):
        world.receivers.add(receiver)
        with pytest.raises(Conflict):
            world.receivers.add(receiver)

    assert world.receivers.receivers() == [receiver]
    assert [each[1] for each in world.audited()] == ["receiver.create"]
    assert "whsec" not in repr(receiver)
    assert "whsec" not in repr(world.audited())


def test_a_notice_waits_until_it_was_told_or_given_up(world: World) -> None:
    world.receivers.add(webhook())
    said = body("alert.firing", "s", "t", {"n": 1}, world.clock())
    world.receivers.tell([("n1", "ops", said), ("n2", "ops", said)])
    assert [(each.id, each.body) for each in world.receivers.due(10)] == [("n1", said), ("n2", said)]

    world.receivers.told("n1")
    world.receivers.failed("n2", 1, world.clock() + 60, "it answered 500")

    assert world.receivers.due(10) == []
    world.clock.now += 61
    assert [(each.id, each.attempts) for each in world.receivers.due(10)] == [("n2", 1)]
    world.receivers.failed("n2", 2, None, "it answered 500")
    queue = world.receivers.queues()["ops"]
    assert (queue.waiting, queue.told, queue.given_up, queue.error) == (0, 1, 1, "it answered 500")


def test_a_queue_has_an_end_and_goes_with_its_receiver(world: World) -> None:
    world.receivers.add(webhook())
    said = body("alert.firing", "s", "t", {}, world.clock())

    full = world.receivers.tell((f"n{index}", "ops", said) for index in range(WAITING_MAX + 2))

    assert full == ["ops", "ops"]
    assert world.receivers.queues()["ops"].waiting == WAITING_MAX
    world.receivers.remove("ops")
    assert world.receivers.queues() == {}


def test_a_receiver_that_is_gone_for_good_is_disabled(world: World) -> None:
    world.receivers.add(webhook())

    world.receivers.disable("ops", "410 Gone")

    (found,) = world.receivers.receivers()
    assert found.disabled_at == world.clock()
    assert not found.wants(Severity.PAGE)
