"""The frame: the keyboard, the viewer's own time, and a connection that is lost and comes back."""

import pytest
from playwright.sync_api import expect

from harness.console import Demo
from harness.visits import WAIT_MS, Visits
from muster_simulator.demo.wire_cut import WireCut

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600, func_only=True)]


def test_every_page_is_reached_by_the_keyboard(demo: Demo, visit: Visits, troubles: list[str]) -> None:
    page = visit("/help")
    keys = page.locator("nav a").evaluate_all("all => all.map(a => [a.dataset.key, a.getAttribute('href')])")

    for key, href in keys:
        page.keyboard.press("g")
        page.keyboard.press(key)
        page.wait_for_url(f"{demo.url}{href}")
        page.wait_for_selector("#link[data-state=live]")

    assert len(keys) >= 10
    assert troubles == []


def test_a_question_mark_lists_the_keys_and_escape_closes_it(visit: Visits) -> None:
    page = visit("/")

    page.keyboard.press("?")

    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()


def test_a_slash_goes_to_the_search_and_typing_there_is_no_order(visit: Visits) -> None:
    page = visit("/devices")

    page.keyboard.press("/")
    page.keyboard.type("g?j")

    focused = page.evaluate("document.activeElement.value")
    assert focused == "g?j"
    expect(page.locator("#keys")).to_be_hidden()


def test_times_are_the_viewers_own_on_hover(visit: Visits) -> None:
    page = visit("/rollouts")

    titles = page.locator("time[datetime]").evaluate_all("all => all.map(each => each.title)")

    assert titles
    assert all("GMT+1" in title or "GMT+2" in title or "CET" in title or "CEST" in title for title in titles), titles[
        :3
    ]


def test_a_theme_that_was_chosen_stays(visit: Visits) -> None:
    page = visit("/", theme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.click("#theme")
    page.click("#theme")
    page.goto("/help")

    expect(page.locator("#theme-words")).to_have_text("dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_a_lost_connection_is_said_and_comes_back(demo: Demo, visit: Visits) -> None:
    with WireCut("127.0.0.1", demo.port) as line:
        page = visit("/", url=f"http://127.0.0.1:{line.port}")

        line.cut()
        expect(page.locator("#lost")).to_be_visible()
        said = page.locator("#lost").inner_text()
        line.mend()

        assert "Connection lost" in said
        expect(page.locator("#link")).to_have_attribute("data-state", "live", timeout=2 * WAIT_MS)
        expect(page.locator("#lost")).to_be_hidden()
