"""What is ordered of one device, and of a rollout that is under way: each by clicks, each seen to have happened."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from harness.console import Demo
from harness.visits import Visits

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120, func_only=True)]

DEVICE = "camera-1"
MODEL, VERSION = "magika", "1.0.0"  # Not what the story turns.
LONG_MS = 60_000.0


@pytest.fixture
def waiting_rollout(demo: Demo) -> Iterator[str]:
    """A rollout whose first device is watched for an hour: its deadline can be moved as long as a test takes."""
    demo.end_rollouts(MODEL)
    policy = {"waves": [1], "window_s": "1h", "window_max_s": "1h", "deadline_s": "2h", "requests_min": 0}
    policy["priority"] = 9  # One that another test has aborted may still be calling devices back.
    made = demo.ask("/rollouts", {"model": MODEL, "version": VERSION, "policy": policy})
    yield str(made["id"])
    demo.end_rollouts(MODEL)


def _order(page: Page, name: str, reason: str) -> None:
    page.click(f"#{name}")
    dialog = page.locator(f"#dialog-{name}")
    expect(dialog).to_contain_text("1 device")
    dialog.get_by_label("Reason").fill(reason)
    dialog.locator("button[type=submit]").click()


def test_the_deadline_of_a_rollout_is_moved(
    visit: Visits, demo: Demo, waiting_rollout: str, troubles: list[str]
) -> None:
    page = visit(f"/rollouts/{waiting_rollout}")
    page.click(f"#button-{waiting_rollout}-extend")
    dialog = page.locator(f"#dialog-{waiting_rollout}-extend")
    expect(dialog).to_contain_text(re.compile(r"The deadline of \d+ devices? under way.* now, and moves by as much"))
    before = _deadlines(demo, waiting_rollout)
    dialog.get_by_label("Longer by, in minutes").fill("45")
    dialog.get_by_label("Reason").fill("the line is slow today")
    dialog.locator("button[type=submit]").click()

    expect(dialog).to_be_hidden()
    expect(page.locator("#history")).to_contain_text("by 2700 s: the line is slow today")
    after = _deadlines(demo, waiting_rollout)
    assert before
    assert after == {device: at + 45 * 60.0 for device, at in before.items()}
    assert troubles == []


def _deadlines(demo: Demo, rollout: str) -> dict[str, float]:
    found = demo.ask(f"/rollouts/{rollout}/members?limit=200")["members"]
    return {each["device"]: each["deadline_at"] for each in found if each["deadline_at"] is not None}


def test_a_device_is_quarantined_and_released(visit: Visits, demo: Demo, troubles: list[str]) -> None:
    page = visit(f"/devices/{DEVICE}")

    _order(page, "quarantine", "it is odd")
    expect(page.locator("#hold")).to_contain_text("Quarantined")
    expect(page.locator("#hold")).to_contain_text("it is odd")
    assert demo.ask(f"/devices/{DEVICE}")["hold"]["kind"] == "quarantined"

    _order(page, "release", "it was the lamp")
    expect(page.locator("#hold")).to_have_count(0)
    assert demo.ask(f"/devices/{DEVICE}")["hold"] is None
    assert troubles == []


def test_the_end_of_a_log_is_asked_for_and_shown(visit: Visits, demo: Demo, troubles: list[str]) -> None:
    page = visit(f"/devices/{DEVICE}")
    page.select_option("#log-lines", "50")
    with page.expect_response(f"**/devices/{DEVICE}/calls") as asked:
        page.click("#call-logs")
    call = asked.value.json()["id"]

    answer = page.locator(f"#answer-{call}")
    summary = answer.locator("summary").first
    expect(summary).to_contain_text("logs")
    expect(summary.locator(".badge")).to_have_text("well", timeout=LONG_MS)
    summary.click()
    expect(answer.get_by_role("region", name="The end of its log", exact=True)).not_to_be_empty()
    lines = demo.ask(f"/devices/{DEVICE}/calls/{call}")["answer"]["lines"]
    assert 0 < len(lines) <= 50  # Of the hundred that the form proposes.
    assert troubles == []


def test_a_device_is_taken_out_for_good(visit: Visits, demo: Demo, troubles: list[str]) -> None:
    found = [each["id"] for each in demo.ask("/devices?limit=200")["devices"] if each["online"]]
    device = max(each for each in found if not each.startswith("camera-"))
    page = visit(f"/devices/{device}")

    page.click("#decommission")
    dialog = page.locator("#dialog-decommission")
    expect(dialog).to_contain_text("1 device")
    dialog.get_by_label("Reason").fill("it is sold")
    dialog.locator("button[type=submit]").click()

    page.wait_for_url("**/devices")
    expect(page.locator(f"#row-{device}")).to_have_count(0)
    left = [each["id"] for each in demo.ask("/devices?limit=200")["devices"]]
    assert device not in left
    assert demo.ask(f"/identities/{device}")["state"] == "revoked"
    assert troubles == []
