"""Rollouts through the API of a whole controller: plans, who waits, evidence, orders, rollback, and what changed."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harness.desk import MODEL, QUICK, Desk, Puppets, is_problem, open_desk, until, wait_for
from muster_controller.cli.recompute import recompute

CLASSES = ("sim-cpu", "sim-gpu")
APPROVED: dict[str, Any] = {**QUICK, "waves": [2], "approvals": [{"before": 2, "by": ["ben"]}]}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        desk.publish("1.0.0", 1)
        desk.publish("2.0.0", 2)
        yield desk


@pytest.fixture
def puppets(desk: Desk) -> Iterator[Puppets]:
    names = tuple(f"dev-{index:02}" for index in range(8))
    with closing(Puppets(desk.controller.broker_url, names, classes=CLASSES)) as puppets:
        wait_for(desk, 8)
        yield puppets


def finish(desk: Desk, version: str, policy: dict[str, Any] | None = None) -> str:
    answer = desk.roll_out(version, policy)
    assert answer.status_code == 201, answer.text
    rollout = str(answer.json()["id"])
    until(lambda: desk.state(rollout) == "finished")
    return rollout


def on(desk: Desk, version: str, count: int) -> bool:
    wanted = {"model": MODEL, "version": version, "devices": count}
    return any(wanted.items() <= each.items() for each in desk.get("/status")["versions"])


def test_a_plan_says_who_would_change_and_what_stands_against_it(desk: Desk, puppets: Puppets) -> None:
    finish(desk, "1.0.0")
    puppets.delay_s = lambda: 30.0
    running = desk.roll_out("2.0.0").json()["id"]
    order = {"model": MODEL, "version": "2.0.0", "policy": {**QUICK, "waves": [2]}, "dry_run": True}

    answer = desk.http.post("/rollouts", json=order)

    plan = answer.json()
    assert answer.status_code == 200
    assert plan["previous"] == "1.0.0"
    assert (plan["devices"], plan["online"]) == (8, 8)
    assert plan["waves"] == [2, 6]
    assert plan["first_wave"] == {"sim-cpu": 1, "sim-gpu": 1}
    assert plan["controls"]["sim-cpu"] >= 2
    assert any("controls" in warning for warning in plan["warnings"])
    assert [(each["rollout"], each["then"]) for each in plan["rivals"]] == [(running, "refused")]
    assert running in plan["refusal"]
    higher = {**order, "policy": {**QUICK, "priority": 10}}
    assert desk.http.post("/rollouts", json=higher).json()["rivals"][0]["then"] == "superseded"


def test_a_policy_may_come_as_text_and_is_refused_with_its_line(desk: Desk, puppets: Puppets) -> None:
    text = "waves: [1, 2]\nwindow_s: 0.2\nwindow_max_s: 0.4\nrequests_min: 0\ndeadline_s: 20s\n"
    order = {"model": MODEL, "version": "1.0.0", "policy": text, "dry_run": True}

    assert desk.http.post("/rollouts", json=order).json()["waves"] == [1, 2, 5]
    refused = desk.http.post("/rollouts", json={**order, "policy": text + "alpha: 7\n"})

    assert is_problem(refused, 422, "policy-invalid")
    assert (refused.json()["line"], refused.json()["field"]) == (6, "alpha")
    assert is_problem(desk.http.post("/rollouts", json={**order, "policy": {"alpha": 7}}), 422, "policy-invalid")
    checked = desk.http.post("/policies/check", json={"policy": "waves: [2]\nalpha: 7\n"}).json()
    assert (checked["valid"], checked["line"], checked["field"]) == (False, 2, "alpha")
    valid = desk.http.post("/policies/check", json={"policy": {"selector": "site=oslo"}}).json()
    assert (valid["valid"], valid["devices"], valid["written"]) == (True, 4, {"selector": "site=oslo"})
    assert desk.get("/policies/schema")["title"] == "Muster rollout policy"


def test_everybody_who_waits_is_listed_with_the_reason(desk: Desk, puppets: Puppets) -> None:
    finish(desk, "1.0.0")
    puppets.leave("dev-07")
    until(lambda: desk.get("/status")["online"] == 7)
    rollout = desk.roll_out("2.0.0", APPROVED).json()["id"]
    until(lambda: desk.get(f"/rollouts/{rollout}")["approvals"]["is_reached"])

    found = desk.get(f"/rollouts/{rollout}/waiting")

    assert found["counts"] == {"approval": 5, "offline": 1}
    assert "approval by ben" in found["outlook"]
    (offline,) = desk.get(f"/rollouts/{rollout}/waiting", why="offline")["waiting"]
    assert offline["device"] == "dev-07"
    assert "last seen" in offline["sentence"]
    pages = [desk.get(f"/rollouts/{rollout}/waiting", limit=4)]
    pages.append(desk.get(f"/rollouts/{rollout}/waiting", limit=4, cursor=pages[0]["next"]))
    assert [len(page["waiting"]) for page in pages] == [4, 2]
    assert pages[1]["next"] is None
    page = desk.page(f"/rollouts/{rollout}").text
    assert "dev-07" in page
    assert "wave 2 waits for approval by ben" in page
    for shown in ("Evidence by metric", "latency", "/approve", "/pause", "/skip", "/abort"):
        assert shown in page, shown

    assert is_problem(desk.order(rollout, "approve", by="anna"), 409, "order-refused")
    approved = desk.order(rollout, "approve", by="ben", reason="looks well").json()
    assert approved["approvals"]["given"][0]["by"] == "ben"
    until(lambda: desk.state(rollout) == "finished")
    puppets.come_back("dev-07")
    until(lambda: on(desk, "2.0.0", 8))


def test_e_can_be_computed_again_from_what_the_api_says(desk: Desk, puppets: Puppets) -> None:
    finish(desk, "1.0.0")
    puppets.is_good = lambda device, version: version == "1.0.0" or device > "dev-03"
    rollout = desk.roll_out("2.0.0", {**QUICK, "waves": [3], "success_required": 0.0}).json()["id"]
    until(lambda: desk.state(rollout) in ("finished", "paused", "aborted"))

    found = desk.get(f"/rollouts/{rollout}")

    lines = recompute(found)
    assert [line for line in lines if not line.agrees] == []
    assert len(lines) == len(found["verdicts"]) + 2
    assert set(found["evidence"]["metrics"]) == {"failures", "latency"}
    assert set(found["evidence"]["metrics"]["failures"]["e_classes"]) == set(CLASSES)
    found["evidence"]["strata"][0]["treated_bad"] += 1
    assert [line.name for line in recompute(found) if not line.agrees] == ["now"]


def test_orders_are_obeyed_as_the_detail_says(desk: Desk, puppets: Puppets) -> None:
    finish(desk, "1.0.0")
    puppets.is_good = lambda _device, version: version != "2.0.0"
    policy = {**QUICK, "waves": [1], "failure_objective": 0.3, "controls_per_device": 1}
    rollout = desk.roll_out("2.0.0", policy).json()["id"]
    until(lambda: desk.state(rollout) == "paused")

    found = desk.get(f"/rollouts/{rollout}")
    assert found["pause"] == "undecided"
    assert found["orders"] == ["skip", "retry", "abort"]
    assert is_problem(desk.order(rollout, "resume", by="ben"), 409, "order-refused")
    assert is_problem(desk.order(rollout, "extend", seconds=-1), 422, "request-invalid")
    assert is_problem(desk.order(rollout, "extend", seconds=60), 409, "order-refused")
    bad = desk.get(f"/rollouts/{rollout}/members", outcome="bad", arm="treated")["members"]
    assert [member["cause"] for member in bad] == ["probation"]
    puppets.is_good = lambda _device, _version: True
    assert desk.order(rollout, "retry", by="ben", reason="the disk was full").status_code == 200
    again = lambda: desk.get(f"/rollouts/{rollout}/members", outcome="bad")["members"][0]["second"]  # noqa: E731
    until(lambda: again() == "good")
    assert desk.order(rollout, "skip", by="ben", reason="known").json()["state"] in ("running", "finished")
    until(lambda: desk.state(rollout) == "finished")
    actors = {note["what"]: note["actor"] for note in desk.get("/notes", subject=rollout)["notes"]}
    assert actors["rollout_skip"] == actors["rollout_retry"] == "ben"


def test_a_rollback_at_once_uses_the_standby_slots_and_ends_what_is_under_way(desk: Desk, puppets: Puppets) -> None:
    finish(desk, "1.0.0")
    finish(desk, "2.0.0")
    until(lambda: on(desk, "2.0.0", 8))
    dry = desk.http.post(f"/models/{MODEL}/rollback", json={"to": "1.0.0", "dry_run": True})
    assert dry.status_code == 200
    assert (dry.json()["changing"], dry.json()["in_standby"], dry.json()["at_once"]) == (8, 8, True)

    answer = desk.http.post(f"/models/{MODEL}/rollback", json={"to": "1.0.0", "reason": "sevens"})

    assert answer.status_code == 201
    assert answer.json()["at_once"] is True
    until(lambda: on(desk, "1.0.0", 8))
    until(lambda: desk.state(answer.json()["id"]) == "finished")
    assert desk.get(f"/models/{MODEL}")["baseline"] == "1.0.0"
    assert is_problem(desk.http.post(f"/models/{MODEL}/rollback", json={"to": "7.0.0"}), 404, "not-found")
    both = {"to": "2.0.0", "at_once": True, "policy": QUICK}
    assert is_problem(desk.http.post(f"/models/{MODEL}/rollback", json=both), 422, "policy-invalid")
    by_policy = desk.http.post(f"/models/{MODEL}/rollback", json={"to": "2.0.0", "policy": QUICK})
    assert by_policy.json()["at_once"] is False
    until(lambda: desk.state(by_policy.json()["id"]) == "finished")


def test_a_rollout_of_higher_priority_takes_devices_over_visibly(desk: Desk, puppets: Puppets) -> None:
    finish(desk, "1.0.0")
    first = desk.roll_out("2.0.0", {**QUICK, "waves": [1], "soak_s": 600.0}).json()["id"]
    policy = {**QUICK, "priority": 5, "selector": "site=oslo"}

    assert is_problem(desk.roll_out("1.0.0", {**policy, "priority": 0}), 409, "conflict")
    until(lambda: desk.get(f"/rollouts/{first}")["counts"]["good"] == 1)
    desk.publish("3.0.0", 3)
    second = desk.roll_out("3.0.0", policy)
    assert second.status_code == 201, second.text

    taken = desk.get(f"/rollouts/{first}/waiting", why="taken_over")["waiting"]
    assert {each["device"] for each in taken} <= {"dev-01", "dev-03", "dev-05", "dev-07"}
    assert taken
    assert second.json()["id"] in taken[0]["sentence"]


def test_what_changed_is_told_with_who_did_it(desk: Desk, puppets: Puppets) -> None:
    begin = time.time()
    first = finish(desk, "1.0.0")
    middle = time.time()
    second = finish(desk, "2.0.0", {**QUICK, "alpha": 0.01, "selector": "site=oslo"})
    until(lambda: on(desk, "2.0.0", 4))

    found = desk.get("/diff", **{"from": middle})

    (moved,) = found["assignments"]
    assert (moved["before"], moved["after"], moved["devices"]) == ("1.0.0", "2.0.0", 4)
    assert (moved["rollout"], moved["by"]) == (second, desk.get("/session")["name"])
    assert [each["rollout"] for each in found["rollouts"]] == [second]
    assert {"what": "policy.alpha", "before": 0.05, "after": 0.01} in found["rollouts"][0]["policy_changes"]
    assert found["rollouts"][0]["compared_with"] == first
    assert [(each["selector"], each["after"]) for each in found["baselines"]] == [("site=oslo", "2.0.0")]
    assert [(each["version"], each["switched"]) for each in found["switches"]] == [("2.0.0", 4)]
    everything = desk.get("/diff", **{"from": begin, "device": "dev-01"})
    assert [each["after"] for each in everything["assignments"]] == ["2.0.0"]
    assert desk.get("/diff", **{"from": middle, "device": "dev-00"})["assignments"] == []
    assert is_problem(desk.http.get("/diff", params={"from": 9, "to": 5}), 422, "name-invalid")

    pair = desk.get("/diff/devices", a="dev-00", b="dev-01")

    assert {"what": "labels.site", "before": "bergen", "after": "oslo"} in pair["differences"]
    (model,) = pair["models"]
    assert (model["a"]["active"], model["b"]["active"]) == ("1.0.0", "2.0.0")
    assert (model["a"]["baseline"], model["b"]["baseline"]) == ("1.0.0", "2.0.0")
    assert first in model["a"]["why"]
    assert second in model["b"]["why"]
    assert is_problem(desk.http.get("/diff/devices", params={"a": "dev-00", "b": "no"}), 404, "not-found")


def test_listings_of_rollouts_are_paged_and_filtered(desk: Desk, puppets: Puppets) -> None:
    names = [finish(desk, version) for version in ("1.0.0", "2.0.0", "1.0.0")]

    first = desk.get("/rollouts", limit=2)
    second = desk.get("/rollouts", limit=2, cursor=first["next"])

    assert [each["id"] for each in first["rollouts"] + second["rollouts"]] == list(reversed(names))
    assert second["next"] is None
    assert desk.get("/rollouts", state="running")["rollouts"] == []
    assert len(desk.get("/rollouts", model=MODEL)["rollouts"]) == 3
    assert is_problem(desk.http.get("/rollouts", params={"cursor": "nothing"}), 404, "not-found")
