"""Pins, quarantine, decommission and calls at a whole controller: over the API, with puppets for devices."""

import json
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.dsse import Envelope

from harness.desk import MODEL, QUICK, Desk, Puppets, is_problem, open_desk, until, wait_for
from muster_shared import topics
from muster_shared.call import PAYLOAD_TYPE
from muster_shared.ids import DeviceId
from muster_shared.link import Link, LinkConfig, LinkItem, Received, Subscribed, parse_broker_url
from muster_shared.messages import Answer, encode
from muster_shared.topics import Channel, DeviceTopic

pytestmark = pytest.mark.broker
NAMES = ("dev-a", "dev-b", "dev-c")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk, closing(Puppets(desk.controller.broker_url, NAMES)):
        wait_for(desk, len(NAMES))
        desk.publish("1.0.0", 1).raise_for_status()
        desk.publish("1.1.0", 2).raise_for_status()
        yield desk


def _roll_out(desk: Desk, version: str) -> str:
    made = desk.roll_out(version, {**QUICK, "waves": ["100%"], "controls_per_device": 0}).raise_for_status().json()
    until(lambda: desk.state(made["id"]) == "finished")
    return str(made["id"])


def _serves(desk: Desk, device: str) -> str | None:
    found = desk.get(f"/devices/{device}")["active"].get(MODEL)
    return None if found is None else str(found)


def test_a_pinned_device_stays_while_the_others_move_and_follows_when_it_is_unpinned(desk: Desk) -> None:
    _roll_out(desk, "1.0.0")
    until(lambda: [_serves(desk, name) for name in NAMES] == ["1.0.0"] * 3)

    pinned = desk.http.post("/devices/dev-b/pin", json={"reason": "a fair is on"}).raise_for_status().json()
    assert (pinned["hold"]["kind"], pinned["hold"]["reason"]) == ("pinned", "a fair is on")
    assert desk.get("/devices/dev-b")["hold"]["kind"] == "pinned"
    assert [each["device"] for each in desk.get("/holds")["holds"]] == ["dev-b"]
    rollout = _roll_out(desk, "1.1.0")

    assert [_serves(desk, name) for name in NAMES] == ["1.1.0", "1.0.0", "1.1.0"]
    waiting = desk.get(f"/rollouts/{rollout}/waiting")["waiting"]
    assert [(each["device"], each["why"]) for each in waiting] == [("dev-b", "pinned")]
    assert "a fair is on" in waiting[0]["sentence"]

    desk.http.post("/devices/dev-b/unpin", json={}).raise_for_status()
    until(lambda: _serves(desk, "dev-b") == "1.1.0")
    actions = [line["action"] for line in desk.get("/audit")["lines"]]
    assert actions.count("device.pin") == 1
    assert actions.count("device.unpin") == 1


def test_holds_are_refused_where_they_change_nothing_and_for_who_may_not(desk: Desk) -> None:
    viewer = desk.hire("vera", "viewer")

    assert is_problem(viewer.post("/devices/dev-a/pin", json={}), 403, "forbidden")
    assert is_problem(desk.http.post("/devices/dev-a/unpin", json={}), 409, "conflict")
    desk.http.post("/devices/dev-a/quarantine", json={}).raise_for_status()
    assert is_problem(desk.http.post("/devices/dev-a/quarantine", json={}), 409, "conflict")
    assert is_problem(desk.http.post("/devices/dev-a/unpin", json={}), 409, "conflict")
    desk.http.post("/devices/dev-a/release", json={}).raise_for_status()
    assert desk.http.post("/devices/dev-z/pin", json={}).status_code == 404


def test_a_plan_counts_no_quarantined_device_and_names_the_pinned(desk: Desk) -> None:
    desk.http.post("/devices/dev-a/quarantine", json={}).raise_for_status()
    desk.http.post("/devices/dev-b/pin", json={}).raise_for_status()

    order = {"model": MODEL, "version": "1.0.0", "policy": {**QUICK, "waves": ["100%"]}, "dry_run": True}
    plan = desk.http.post("/rollouts", json=order).raise_for_status().json()

    assert plan["devices"] == 2
    assert any("pinned" in each for each in plan["warnings"])
    assert any("quarantined" in each for each in plan["warnings"])


def test_a_decommissioned_device_is_gone_and_its_history_stays(desk: Desk) -> None:
    found = desk.http.post("/devices/dev-c/decommission", json={"reason": "sold"}).raise_for_status().json()

    assert found["identity"] == "none"
    assert desk.http.get("/devices/dev-c").status_code == 404
    notes = desk.get("/notes", subject="dev-c")["notes"]
    assert ("device_decommissioned", "sold") in [(each["what"], each["detail"]) for each in notes]
    assert "device.decommission" in [line["action"] for line in desk.get("/audit")["lines"]]


class Ear:
    """Answers calls as a device does that verifies nothing."""

    def __init__(self, desk: Desk) -> None:
        self.heard: list[dict[str, Any]] = []
        self.listens = threading.Event()
        config = LinkConfig(parse_broker_url(desk.controller.broker_url), client_id="ear")
        self.link = Link(config, self._on_item, rng=random.Random(1))
        self.link.subscribe([f"{topics.ROOT}/test/device/dev-a/call"])
        self.link.start()
        assert self.listens.wait(60.0)

    def close(self) -> None:
        self.link.stop(1.0)

    def _on_item(self, item: LinkItem) -> None:
        if isinstance(item, Subscribed):
            self.listens.set()
        if isinstance(item, Received):
            envelope = Envelope.from_dict(json.loads(item.payload))
            assert envelope.payload_type == PAYLOAD_TYPE
            self.heard.append(json.loads(envelope.payload))
            self.link.ack(item.token)

    def say(self, device: str, call: str, *, ok: bool = True, on: str | None = None) -> None:
        answer = Answer(id=call, device=DeviceId(device), at=1.0, ok=ok, lines=("one", "two"))
        topic = topics.build(topics.FleetId("test"), DeviceTopic(DeviceId(on or device), Channel.ANSWER))
        self.link.publish(topic, encode(answer), qos=1)


def test_a_call_is_signed_published_and_its_answer_kept_once_and_only_from_that_device(desk: Desk) -> None:
    with closing(Ear(desk)) as ear:
        asked = desk.http.post("/devices/dev-a/calls", json={"what": "logs", "lines": 7})
        assert asked.status_code == 202
        call = asked.json()["id"]
        heard = until(lambda: next((each for each in ear.heard if each["id"] == call), None))
        assert (heard["device"], heard["what"], heard["lines"]) == ("dev-a", "logs", 7)

        ear.say("dev-b", call)
        ear.say("dev-a", "c0ffee")
        ear.say("dev-a", call, ok=True)
        until(lambda: desk.get(f"/devices/dev-a/calls/{call}")["state"] == "answered")
        ear.say("dev-a", call, ok=False)
        other = desk.http.post("/devices/dev-a/calls", json={"what": "self_test"}).json()["id"]
        ear.say("dev-a", other)
        until(lambda: desk.get(f"/devices/dev-a/calls/{other}")["state"] == "answered")

    found = desk.get(f"/devices/dev-a/calls/{call}")
    assert (found["ok"], found["answer"]["lines"]) == (True, ["one", "two"])
    assert [each["id"] for each in desk.get("/devices/dev-a/calls")["calls"]] == [other, call]
    assert desk.get("/devices/dev-b/calls")["calls"] == []


def test_calls_are_bounded_and_refused_for_who_is_not_there(desk: Desk) -> None:
    for _ in range(4):
        assert desk.http.post("/devices/dev-b/calls", json={"what": "self_test"}).status_code == 202

    assert is_problem(desk.http.post("/devices/dev-b/calls", json={"what": "self_test"}), 409, "conflict")
    assert desk.http.post("/devices/dev-z/calls", json={"what": "self_test"}).status_code == 404
    assert desk.http.post("/devices/dev-a/calls", json={"what": "reboot"}).status_code == 422
