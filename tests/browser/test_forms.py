"""What people decide: refused in words where they pressed, sent once, and reached without a mouse."""

import re
import secrets

import pytest
from playwright.sync_api import Page, Request, expect

from harness.console import Demo, eventually
from harness.receivers import running_hook
from harness.visits import Visits

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120, func_only=True)]

TABS_MAX = 120


def test_an_order_that_is_refused_says_why_and_loses_nothing(visit: Visits) -> None:
    page = visit("/settings")
    page.click("#receiver-new")
    page.fill("#receiver-name", "refused")
    page.fill("#receiver-address", "ftp://nowhere.example/notices")
    dialog = page.locator("#receiver-dialog")
    dialog.locator("[data-asks] button[type=submit]").click()

    expect(dialog.get_by_role("alert")).to_contain_text("http or https")
    expect(dialog).to_be_visible()
    assert page.input_value("#receiver-name") == "refused"
    assert page.input_value("#receiver-address") == "ftp://nowhere.example/notices"


def test_a_receiver_is_added_tested_and_removed(visit: Visits, troubles: list[str]) -> None:
    name = f"pager-{secrets.token_hex(3)}"
    page = visit("/settings")
    with running_hook() as hook:
        page.click("#receiver-new")
        page.fill("#receiver-name", name)
        page.fill("#receiver-address", hook.url)
        dialog = page.locator("#receiver-dialog")
        dialog.locator("[data-asks] button[type=submit]").click()
        secret = dialog.locator("[data-field=secret]")
        expect(secret).to_contain_text("whsec_")
        said = secret.inner_text()
        dialog.get_by_role("button", name="I have it").click()

        row = page.get_by_role("row").filter(has_text=name)
        row.get_by_role("button", name="Test").click()
        eventually(lambda: hook.posts, "the receiver is told")

    assert hook.posts[0].is_signed_with(said)
    page.click(f"#receiver-remove-{name}")
    remove = page.locator(f"#receiver-remove-dialog-{name}")
    expect(remove).to_contain_text("It is told nothing any more")
    remove.locator("button[type=submit]").click()
    expect(page.locator(f"#receiver-remove-{name}")).to_have_count(0)
    assert said not in page.content()
    assert troubles == []


def test_a_double_click_makes_one_token_and_it_is_shown_once(visit: Visits, troubles: list[str]) -> None:
    page = visit("/settings/enrolment")
    orders: list[Request] = []
    page.on("request", lambda sent: orders.append(sent) if sent.method == "POST" else None)
    page.click("#token-new")
    page.fill("#token-uses", "2")
    dialog = page.locator("#token-dialog")
    dialog.get_by_role("button", name="Make it").dblclick()
    shown = dialog.locator("[data-field=token]")
    expect(shown).not_to_be_empty()
    token = shown.inner_text()

    assert len(orders) == 1
    assert orders[0].header_value("idempotency-key")
    dialog.get_by_role("button", name="I have it").click()
    page.wait_for_selector("#link[data-state=live]")
    assert token not in page.content()
    row = page.locator("#tokens tbody tr").first
    expect(row).to_contain_text("0 of 2")
    row.get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked")
    assert troubles == []


def test_a_silence_is_made_and_ended_without_a_mouse_and_the_focus_comes_back(visit: Visits, demo: Demo) -> None:
    page = visit("/")
    page.keyboard.press("g")
    page.keyboard.press("a")
    page.wait_for_url("**/alerts")
    page.wait_for_selector("#link[data-state=live]")

    _tab_to(page, "silence-new")
    page.keyboard.press("Enter")
    expect(page.locator("#silence-dialog")).to_be_visible()
    _tab_to(page, "silence-rule")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.type("keyboard-*")
    _tab_to(page, "silence-reason")
    page.keyboard.type("we know")
    page.keyboard.press("Enter")

    expect(page.locator("#silence-dialog")).to_be_hidden()
    row = page.locator("#silences tbody tr").filter(has_text="keyboard-*")
    expect(row).to_contain_text("we know")
    expect(page.locator("#silence-new")).to_be_focused()
    page.keyboard.press("Tab")
    while not page.evaluate("document.activeElement.closest('tr')?.textContent.includes('keyboard-*') ?? false"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(row).to_have_count(0)


def test_escape_leaves_an_order_and_the_focus_comes_back(visit: Visits, demo: Demo) -> None:
    page = visit("/devices/camera-1")
    page.locator("#pin").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#dialog-pin")).to_contain_text("1 device")

    page.keyboard.press("Escape")

    expect(page.locator("#dialog-pin")).to_be_hidden()
    expect(page.locator("#pin")).to_be_focused()
    assert demo.ask("/devices/camera-1")["hold"] is None


def test_an_objective_is_set_and_removed(visit: Visits, troubles: list[str]) -> None:
    page = visit("/alerts")
    page.click("#objective-new")
    page.fill("#objective-name", "quick")
    page.select_option("#objective-model", "digits")
    page.select_option("#objective-indicator", "latency")
    page.fill("#objective-target", "0.95")
    page.locator("#objective-dialog button[type=submit]").click()

    row = page.locator("#objectives tbody tr").filter(has_text="quick")
    expect(row).to_contain_text("95 %")
    row.get_by_role("button", name="Remove").click()
    row.locator("dialog button[type=submit]").click()
    expect(row).to_have_count(0)
    assert troubles == []


def test_the_audit_log_is_filtered_and_checked(visit: Visits, troubles: list[str]) -> None:
    page = visit("/audit")
    page.fill("#audit-filter [name=action]", "rollout.")
    page.locator("#audit-filter button[type=submit]").click()

    page.wait_for_url("**action=rollout.*")
    rows = page.locator("#audit-lines tbody tr")
    expect(rows.filter(has_text="enrol")).to_have_count(0)
    assert all("rollout." in each for each in rows.all_inner_texts())
    page.click("#check-chain")
    expect(page.locator("#report-title")).to_have_text("The log holds")
    assert troubles == []


def test_a_view_of_devices_is_saved_and_forgotten(visit: Visits, troubles: list[str]) -> None:
    page = visit("/devices")
    page.fill("#selector", "hw/class=camera-ort-1t")
    page.locator("#devices-filter button[type=submit]").click()
    expect(page.locator("#found")).to_contain_text(" of ")
    page.get_by_role("button", name="Save this view").click()
    page.fill("#save-view-name", "the cameras")
    page.locator("#save-view button[type=submit]").click()
    expect(page.get_by_role("link", name="the cameras")).to_have_attribute("aria-current", "true")

    page.goto("/devices")
    page.get_by_role("link", name="the cameras").click()
    expect(page.locator("#found")).to_contain_text(" of ")
    assert page.input_value("#selector") == "hw/class=camera-ort-1t"
    page.get_by_role("button", name=re.compile("Forget")).click()
    expect(page.get_by_role("link", name="the cameras")).to_have_count(0)
    assert troubles == []


def test_labels_of_the_devices_that_are_shown_are_edited(visit: Visits, demo: Demo, troubles: list[str]) -> None:
    device = next(each["id"] for each in demo.ask("/devices?limit=100")["devices"] if each["id"] not in ("camera-2",))
    page = visit(f"/devices?q={device}")
    page.get_by_role("button", name="Edit labels").click()
    dialog = page.locator("#label-edit")
    expect(page.locator("#label-edit-title")).to_have_text("Edit the labels of 1 device?")
    expect(dialog.locator("button[type=submit]")).to_have_text("Change 1")
    page.fill("#label-edit-changes", "site=oslo, shelf=3")
    page.fill("#label-edit-reason", "it moved")
    dialog.locator("button[type=submit]").click()
    expect(dialog).to_be_hidden()

    page.goto("/devices?selector=shelf%3D3,site%3Doslo")
    expect(page.locator(f"#row-{device}")).to_be_visible()
    page.click(f"#row-{device}")
    page.wait_for_url(f"**/devices/{device}")
    page.wait_for_selector("#link[data-state=live]")  # Before, nothing hears the button.
    page.click("#labels-edit")
    page.fill("#labels-changes", "shelf-, site-")
    page.locator("#labels-dialog button[type=submit]").click()
    expect(page.locator("#labels-dialog")).to_be_hidden()
    expect(page.locator("#labels")).not_to_contain_text("shelf=3")
    assert troubles == []


def test_a_person_sets_a_password_by_the_link_and_logs_in_with_it(visit: Visits, demo: Demo) -> None:
    name, link = demo.new_operator("operator")
    page = visit.stranger()
    page.goto("/devices")
    expect(page.locator("#login-title")).to_be_visible()
    page.goto(link)
    page.fill("#password", "three fine words")
    page.fill("#again", "three fine words")
    page.keyboard.press("Enter")
    page.wait_for_selector("#link[data-state=live]")

    page.get_by_role("button", name="Log out").click()
    expect(page.locator("#login-title")).to_be_visible()
    page.fill("#name", name)
    page.fill("#password", "not these words")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").first).to_be_visible()
    page.fill("#password", "three fine words")
    page.keyboard.press("Enter")
    page.wait_for_selector("#link[data-state=live]")
    expect(page.locator(".me")).to_contain_text(name)
    page.goto(link)
    expect(page.locator("#password")).to_have_count(0)  # It opens once.


def test_a_viewer_is_shown_no_orders(visit: Visits, demo: Demo) -> None:
    _, link = demo.new_operator("viewer")
    page = visit.stranger()
    page.goto(link)
    page.fill("#password", "three fine words")
    page.fill("#again", "three fine words")
    page.keyboard.press("Enter")
    page.wait_for_selector("#link[data-state=live]")
    rollout = demo.ask("/rollouts")["rollouts"][0]["id"]

    paths = ("/", "/devices", "/devices/camera-1", "/models", "/models/digits", "/rollouts", f"/rollouts/{rollout}")
    for path in (*paths, "/alerts", "/keys", "/settings"):
        page.goto(path)
        page.wait_for_selector("#link[data-state=live]")

        assert page.locator("form[data-order], form[data-upload]").count() == 0, path
        assert page.get_by_role("link", name="New rollout").count() == 0, path
        assert page.get_by_role("link", name="Publish").count() == 0, path
        assert page.get_by_role("link", name="Audit").count() == 0, path
    page.goto("/rollouts/new")
    expect(page.locator("main")).to_contain_text("is viewer here")


def _tab_to(page: Page, element: str) -> None:
    """Press Tab until the element with that id has the focus."""
    for _ in range(TABS_MAX):
        if page.evaluate("document.activeElement.id") == element:
            return
        page.keyboard.press("Tab")
    pytest.fail(f"{TABS_MAX} times Tab never came to {element}")
