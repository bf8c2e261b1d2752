"""The story of `make demo`, told by somebody who has only the page: each step by clicks, none without the one before.

publish ─▶ create ─▶ watch ─▶ pause ─▶ resume ─▶ abort ─▶ roll back ─▶ look into one device
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from harness.console import Demo
from harness.visits import Visits

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300, func_only=True)]

MODEL = "digits"
GOOD = "2.1.0"  # What ours is a copy of.
BEFORE = "2.0.0"  # Where the fleet goes back to.
DEVICE = "camera-1"
CLASS = "camera-ort-1t"
REASON = "a look at the first wave"
WAVE_MS = 90_000.0  # Fetch, proof, the window and its longest stretch, on a machine that is busy.


@dataclass
class Tale:
    """What the steps hand on."""

    demo: Demo
    page: Page
    troubles: list[str]
    folder: Path
    version: str = ""
    rollout: str = ""
    told: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        self.page.goto(path)
        self.page.wait_for_selector("#link[data-state=live]")
        return self.page

    def order(self, name: str, reason: str) -> None:
        """Press the order's button on the page of the rollout, say why, and confirm."""
        dialog = self.page.locator(f"#dialog-{self.rollout}-{name}")
        self.page.click(f"#button-{self.rollout}-{name}")
        expect(dialog).to_contain_text("device")  # What it will do to whom.
        dialog.get_by_label("Reason").fill(reason)
        dialog.locator("button[type=submit]").click()
        expect(dialog).to_be_hidden()


@pytest.fixture(scope="module")
def begun(demo: Demo, chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tale]:
    visits = Visits(demo, chromium)
    demo.end_rollouts(MODEL)
    yield Tale(demo, visits("/"), visits.troubles, tmp_path_factory.mktemp("story"))
    visits.end()
    demo.end_rollouts(MODEL)


@pytest.fixture
def tale(begun: Tale, request: pytest.FixtureRequest) -> Iterator[Tale]:
    """The story so far; a step whose forerunners did not hold fails at once."""
    steps = [each.name for each in request.session.items if each.path == request.node.path]
    missing = [each for each in steps[: steps.index(request.node.name)] if each not in begun.told]
    if missing:
        pytest.fail(f"the story broke off at {missing[0]}")
    yield begun
    if ("passed", True) in request.node.user_properties:
        begun.told.append(request.node.name)


def test_a_release_is_published_by_its_folder_and_its_signatures(tale: Tale) -> None:
    tale.version, bundle, signed = tale.demo.new_release(MODEL, GOOD, tale.folder)
    page = tale.open("/")
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Models").click()
    page.get_by_role("link", name="Publish").first.click()

    page.set_input_files("#bundle-files", bundle)
    expect(page.locator("#upload-said")).to_contain_text("Choose its signed metadata too")
    page.set_input_files("#signed-file", signed)
    expect(page.locator("#upload-said")).to_contain_text("signed as it must be")
    page.click("#upload-go")

    page.wait_for_url(f"**/models/{MODEL}/versions/{tale.version}")
    expect(page.locator("h1")).to_contain_text(tale.version)
    expect(page.locator("#signatures")).to_contain_text("signed")


def test_a_rollout_is_filled_in_seen_as_a_document_previewed_and_started(tale: Tale) -> None:
    page = tale.open("/rollouts")
    page.get_by_role("link", name="New rollout").first.click()
    page.wait_for_selector("#link[data-state=live]")
    page.select_option("#model", MODEL)
    page.select_option("#version", tale.version)
    page.fill("[name=waves]", "5, 25%")
    page.fill("[name=success_required]", "50%")
    page.fill("[name=window_s]", "8s")
    page.fill("[name=deadline_s]", "60s")
    page.fill("[name=soak_s]", "60s")
    expect(page.locator("#problem")).to_contain_text("deadline_s")  # It is shorter than a window may be.
    page.locator("#group-window summary").click()
    page.fill("[name=window_max_s]", "14s")
    page.fill("[name=requests_min]", "20")

    document = page.locator("#policy-document")
    expect(document).to_have_value(re.compile(r"waves:.*5.*25%.*soak_s: 60s", re.DOTALL))
    preview = page.locator("#preview")
    expect(preview).to_contain_text(f"{MODEL} {tale.version}")
    expect(preview).to_contain_text("would change")
    expect(page.locator("#rehearsal[data-rehearsed]")).to_contain_text("Stopped", timeout=WAVE_MS)
    page.click("#start")
    expect(page.locator("#start-dialog")).to_contain_text("devices")
    page.click("#start-now")

    page.wait_for_url(re.compile(r"/rollouts/(?!new)[^/]+$"))
    tale.rollout = page.url.rsplit("/", 1)[-1]
    expect(page.locator("h1")).to_contain_text(tale.version)
    expect(page.locator("#history")).to_contain_text("rollout created")


def test_the_first_wave_is_watched_without_a_reload(tale: Tale) -> None:
    page = tale.page
    page.evaluate("window.isTheSamePage = true")

    expect(page.locator("#waves .waves > li").first.locator(".squares svg").first).to_be_visible(timeout=WAVE_MS)
    expect(page.locator("#member-table tbody tr").first).to_be_visible(timeout=WAVE_MS)
    expect(page.locator("#rollout .facts b").first).not_to_have_text("0", timeout=WAVE_MS)  # Devices that reported.

    expect(page.locator("#evidence .canvas[data-drawn=yes]").first).to_be_visible()
    assert page.evaluate("window.isTheSamePage")


def test_it_is_paused_with_a_reason(tale: Tale) -> None:
    tale.order("pause", REASON)

    expect(tale.page.locator("#rollout .badge").first).to_have_text("paused")
    expect(tale.page.locator("#history")).to_contain_text(REASON)
    expect(tale.page.locator(f"#button-{tale.rollout}-pause")).to_have_count(0)
    assert tale.page.evaluate("window.isTheSamePage")


def test_it_is_resumed(tale: Tale) -> None:
    tale.order("resume", "it looks well")

    expect(tale.page.locator("#rollout .badge").first).to_have_text("running")


def test_it_is_aborted_and_its_devices_come_back(tale: Tale) -> None:
    tale.order("abort", "we want the one before")

    expect(tale.page.locator("#rollout .badge").first).to_have_text("aborted")
    expect(tale.page.locator("#waves .waves > li").first).to_contain_text("back", timeout=WAVE_MS)
    assert tale.page.evaluate("window.isTheSamePage")
    assert tale.troubles == []


def test_what_happened_is_a_report(tale: Tale) -> None:
    tale.page.get_by_role("link", name="Report").click()

    expect(tale.page.locator("h1")).to_contain_text(tale.version)
    expect(tale.page.locator("main")).to_contain_text(REASON)


def test_the_model_is_rolled_back_at_once(tale: Tale) -> None:
    page = tale.open("/rollouts")
    page.click("#back")
    page.select_option("#back-model", MODEL)
    page.select_option("#back-to", BEFORE)
    expect(page.locator("#back-now")).to_contain_text(f"to {BEFORE}")
    page.fill("#back-reason", "we know it better")
    page.click("#back-now")

    page.wait_for_url(re.compile(r"/rollouts/(?!back)[^/]+$"))
    page.wait_for_selector("#link[data-state=live]")
    # Whoever is away is told as well; the one that the demo revoked is no member.
    devices = len(tale.demo.ask("/devices?limit=200")["devices"]) - 1
    expect(page.locator("#rollout .facts")).to_contain_text(f"{devices} of {devices} devices reported", timeout=WAVE_MS)
    expect(page.locator("#rollout .badge").first).to_have_text("finished", timeout=WAVE_MS)


def test_a_device_is_found_by_its_class(tale: Tale) -> None:
    page = tale.open("/devices")
    page.fill("#selector", f"hw/class={CLASS}")
    page.locator("#devices-filter button[type=submit]").click()

    expect(page.locator("#found")).to_contain_text(" of ")
    page.click(f"#row-{DEVICE}")

    page.wait_for_url(f"**/devices/{DEVICE}")
    expect(page.locator("#slots")).to_contain_text(BEFORE, timeout=WAVE_MS)
    expect(page.locator("#updates")).to_contain_text(f"{MODEL} {BEFORE}")


def test_it_is_asked_to_test_itself_and_its_answer_appears(tale: Tale) -> None:
    tale.page.click("#call-self-test")

    newest = tale.page.locator("#calls details").first
    expect(newest).to_contain_text("self test")
    expect(newest.locator(".badge")).to_have_text("well", timeout=WAVE_MS)
    newest.locator("summary").click()
    expect(newest.get_by_role("table")).to_contain_text(MODEL)


def test_it_is_pinned_and_let_go(tale: Tale) -> None:
    for name, reason, shows in (("pin", "it is in a demonstration", 1), ("unpin", "it is over", 0)):
        tale.page.click(f"#{name}")
        dialog = tale.page.locator(f"#dialog-{name}")
        dialog.get_by_label("Reason").fill(reason)
        dialog.locator("button[type=submit]").click()

        expect(dialog).to_be_hidden()
        expect(tale.page.locator("#hold")).to_have_count(shows)
    assert tale.troubles == []
