"""The fleet over its real ledger: what is said, when, and that it is said again. Time stands still unless told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.fleet_stage import FILE, MODEL, POLICY, Shelf, Stage, presence, release, replace_policy, twin
from muster_controller.core.rollout.events import Order, OrderRefused
from muster_controller.db.errors import LedgerError
from muster_controller.db.ledger import SqlLedger
from muster_controller.errors import Conflict, NotFound
from muster_controller.mending import LATE_WAVE, RETRY_S
from muster_shared.assignment import LIFETIME_S
from muster_shared.ids import DeviceId
from muster_shared.messages import (
    Ack,
    ControllerSession,
    Want,
    decode,
    encode,
    pack_bits,
)
from muster_shared.topics import Channel, ChunkTopic, ControllerTopic, DeviceTopic, TrustTopic, WantTopic


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    path = tmp_path / "muster.db"
    stage = Stage(SqlLedger(path, lambda: 1000.0), path)
    yield stage
    stage.ledger.close()


def test_an_event_is_counted_once_and_acknowledged_every_time(stage: Stage) -> None:
    stage.join("dev-a")
    rollout = stage.roll_out()

    first = stage.outcome("dev-a", rollout)
    stage.outcome("dev-a", rollout)

    acks = [decode(raw, Ack).ids for raw in stage.said.of(Channel.ACK, "dev-a")]
    assert acks == [(first.id,), (first.id,)]
    assert (stage.fleet.counters.events, stage.fleet.counters.repeated_events) == (1, 1)


def test_nothing_is_said_before_it_is_committed(stage: Stage) -> None:
    stage.join("dev-a")
    rollout = stage.roll_out()
    stage.outcome("dev-a", rollout)

    assert stage.said.of(Channel.ACK, "dev-a")
    assert not any(stage.said.in_transaction)


def test_an_event_that_could_not_be_stored_is_not_acknowledged(stage: Stage) -> None:
    stage.join("dev-a")
    rollout = stage.roll_out()
    with stage.ledger._writer.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER f BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )

    with pytest.raises(LedgerError, match="disk full"):
        stage.outcome("dev-a", rollout)

    assert stage.said.of(Channel.ACK, "dev-a") == []
    assert stage.ledger.rollout(rollout.id) == rollout


def test_every_new_assignment_of_a_device_has_a_higher_counter(stage: Stage) -> None:
    stage.join("dev-a")
    stage.finish(1, "dev-a")
    stage.finish(2, "dev-a")
    stage.restart()
    stage.fleet.order(stage.ledger.rollouts(running=False)[0].id, Order.ROLL_BACK, "anna", "")

    counters = [stage.ledger.desired(DeviceId("dev-a")).counter]
    counters += [each.counter for each in stage.said.assignments("dev-a")]
    assert counters == [3, 3]
    assert stage.said.assignments("dev-a")[-1].models[0].release == release(1)


def test_a_late_device_gets_the_baseline_and_is_watched(stage: Stage) -> None:
    stage.join("dev-a")
    rollout = stage.finish(1, "dev-a")

    stage.join("dev-late")
    stage.pass_(1.0)
    stage.pass_(1.0)

    given = stage.said.assignments("dev-late")
    assert [each.counter for each in given] == [1]
    assert given[0].models[0].release == release(1)
    assert given[0].models[0].watch is not None
    assert (given[0].models[0].watch.rollout, given[0].models[0].watch.wave) == (rollout.id, LATE_WAVE)


def test_a_late_device_that_the_selector_leaves_out_gets_nothing(stage: Stage) -> None:
    stage.join("dev-a", labels={"site": "oslo"})
    policy = replace_policy(waves=(100,), selector="site=oslo")
    rollout = stage.roll_out(1, policy)
    stage.outcome("dev-a", rollout)
    stage.pass_(1.0)

    stage.join("dev-late", labels={"site": "bergen"})
    stage.pass_(1.0)

    assert stage.said.assignments("dev-late") == []


def test_everything_retained_is_said_again_at_each_connect(stage: Stage) -> None:
    stage.join("dev-a")
    stage.roll_out()
    before = stage.said.of(Channel.ASSIGNMENT, "dev-a")
    stage.restart()

    stage.fleet.connected()
    stage.fleet.connected()

    assert stage.said.of(Channel.ASSIGNMENT, "dev-a") == before * 2
    sessions = [decode(raw, ControllerSession) for topic, raw, _ in stage.said.messages if topic == ControllerTopic()]
    assert len({session.session for session in sessions}) == 2
    assert all(retain for _, _, retain in stage.said.messages)
    assert [topic for topic, _, _ in stage.said.messages].count(TrustTopic("timestamp")) == 2


def test_a_second_rollout_of_a_model_under_way_is_refused(stage: Stage) -> None:
    stage.join("dev-a")
    stage.roll_out(1)

    with pytest.raises(Conflict, match="abort it, wait"):
        stage.roll_out(2)

    assert len(stage.ledger.rollouts(running=False)) == 1


def test_what_cannot_be_rolled_out_is_refused(stage: Stage) -> None:
    with pytest.raises(Conflict, match="no known device"):
        stage.roll_out(1)
    with pytest.raises(NotFound):
        stage.fleet.create_rollout(MODEL, "9.9.9", POLICY, "anna")
    with pytest.raises(NotFound):
        stage.fleet.order(stage_id("nothing"), Order.PAUSE, "anna", "")

    stage.join("dev-a")
    stage.finish(1, "dev-a")
    with pytest.raises(Conflict, match="already"):
        stage.roll_out(1)


def stage_id(text: str) -> Any:
    return text


def test_an_order_that_does_not_fit_changes_nothing(stage: Stage) -> None:
    stage.join("dev-a")
    rollout = stage.roll_out()
    said = len(stage.said.messages)

    with pytest.raises(OrderRefused):
        stage.fleet.order(rollout.id, Order.RESUME, "anna", "")

    assert stage.ledger.rollout(rollout.id) == rollout
    assert len(stage.said.messages) == said


def test_a_twin_that_arrives_late_does_not_replace_a_newer_one(stage: Stage) -> None:
    stage.join("dev-a", sequence=5, sent_at=50.0)

    stage.hear("dev-a", Channel.TWIN, twin("dev-a", 4, sent_at=60.0))
    stage.hear("dev-a", Channel.TWIN, twin("dev-a", 9, boot="b0", sent_at=40.0))

    device = stage.ledger.device(DeviceId("dev-a"))
    assert device is not None
    assert device.twin is not None
    assert (device.twin.boot, device.twin.sequence) == ("b1", 5)


def test_the_will_of_a_former_life_does_not_put_a_device_offline(stage: Stage) -> None:
    stage.join("dev-a")

    stage.hear("dev-a", Channel.PRESENCE, presence("dev-a", online=False, boot="b0"))
    still = stage.ledger.device(DeviceId("dev-a"))
    stage.hear("dev-a", Channel.PRESENCE, presence("dev-a", online=False))
    gone = stage.ledger.device(DeviceId("dev-a"))

    assert still is not None
    assert still.online
    assert gone is not None
    assert not gone.online


def test_a_device_that_does_not_answer_a_new_session_is_missed_until_it_speaks(stage: Stage) -> None:
    stage.join("dev-a")
    stage.now += 1.0
    stage.fleet.connected()
    stage.pass_(120.0)
    missed = stage.ledger.device(DeviceId("dev-a"))

    stage.hear("dev-a", Channel.TWIN, twin("dev-a", 2))
    back = stage.ledger.device(DeviceId("dev-a"))

    assert missed is not None
    assert not missed.online
    assert back is not None
    assert back.online


def test_a_device_that_another_controller_missed_is_there_when_it_speaks(stage: Stage) -> None:
    stage.join("dev-a")
    stage.now += 1.0
    stage.fleet.connected()
    stage.pass_(120.0)

    stage.restart()
    stage.hear("dev-a", Channel.TWIN, twin("dev-a", 2))

    back = stage.ledger.device(DeviceId("dev-a"))
    assert back is not None
    assert back.online
    assert back.boot == twin("dev-a", 2).boot


def test_a_twin_does_not_bring_back_a_device_whose_will_was_heard(stage: Stage) -> None:
    stage.join("dev-a")
    stage.hear("dev-a", Channel.PRESENCE, presence("dev-a", online=False))

    stage.hear("dev-a", Channel.TWIN, twin("dev-a", 2))

    device = stage.ledger.device(DeviceId("dev-a"))
    assert device is not None
    assert not device.online


def test_an_unwatched_update_that_failed_is_tried_again_by_the_hour_also_after_a_restart(stage: Stage) -> None:
    stage.join("dev-a")
    stage.finish(1, "dev-a")
    rollout = stage.roll_out(2)
    stage.fleet.order(rollout.id, Order.ABORT, "anna", "for a reason")
    counter = stage.ledger.desired(DeviceId("dev-a")).counter
    stage.restart()
    stage.join("dev-a", sequence=50, active=release(2), counter=counter)
    stage.pass_(1.0)

    stage.pass_(RETRY_S - 10.0)
    stage.join("dev-a", sequence=51, active=release(2), counter=counter)
    early = stage.ledger.desired(DeviceId("dev-a")).counter
    stage.pass_(20.0)

    assert early == counter
    assert stage.ledger.desired(DeviceId("dev-a")).counter == counter + 1


def test_what_one_device_says_for_another_is_malformed(stage: Stage) -> None:
    stage.hear("dev-a", Channel.TWIN, twin("dev-b", 1))
    stage.fleet.received(DeviceTopic(DeviceId("dev-a"), Channel.EVENT), b"{")

    assert stage.fleet.counters.malformed == 2
    assert list(stage.ledger.devices()) == []


def test_an_assignment_is_renewed_at_half_its_life(stage: Stage) -> None:
    stage.join("dev-a")
    stage.finish(1, "dev-a")
    before = stage.ledger.desired(DeviceId("dev-a"))

    stage.pass_(LIFETIME_S / 2 + 10)

    after = stage.ledger.desired(DeviceId("dev-a"))
    assert (after.counter, after.models) == (before.counter + 1, before.models)
    assert after.expires_at > before.expires_at


def test_with_another_assignment_key_every_assignment_is_signed_and_said_anew(stage: Stage) -> None:
    stage.join("dev-a")
    stage.join("dev-b")
    stage.roll_out()
    told = [each for each in stage.ledger.all_desired() if each.envelope]
    stage.said.messages.clear()

    stage.fleet.sign_anew()

    assert told
    for before in told:
        after = stage.ledger.desired(before.device)
        assert after.counter == before.counter + 1
        assert after.models == before.models
        assert stage.said.of(Channel.ASSIGNMENT, before.device) == [after.envelope]
    assert not any(stage.said.in_transaction)


def test_chunks_that_several_devices_want_are_sent_once(stage: Stage) -> None:
    digest = Shelf.manifest_.files[0].sha256
    for device in ("dev-a", "dev-b"):
        want = Want(device=DeviceId(device), length=len(FILE), chunk_bytes=1024, missing=pack_bits((0, 4), 5))
        stage.fleet.received(WantTopic(digest), encode(want))

    stage.pass_(1.0)

    chunks = [(topic, payload) for topic, payload, _ in stage.said.messages if isinstance(topic, ChunkTopic)]
    assert chunks == [(ChunkTopic(digest, 0), FILE[:1024]), (ChunkTopic(digest, 4), FILE[4096:])]


def test_a_rollout_goes_on_where_it_was_after_a_restart(stage: Stage) -> None:
    stage.join("dev-a")
    stage.join("dev-b")
    rollout = stage.roll_out(1)
    first = next(member.device for member in rollout.members.values() if member.wave == 0)
    stage.outcome(first, rollout)
    stage.restart()

    stage.pass_(1.0)

    found = stage.ledger.rollout(rollout.id)
    assert found is not None
    assert found.wave == 1
    other = next(device for device in rollout.members if device != first)
    assert [each.counter for each in stage.said.assignments(other)] == [1]
