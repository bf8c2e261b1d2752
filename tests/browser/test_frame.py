"""The frame: the keyboard, the viewer's own time, and a connection that is lost and comes back."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]


def test_every_page_is_reached_by_the_keyboard(visit: Callable[..., Page], troubles: list[str]) -> None:
    page = visit("/help")
    keys = page.locator("nav a").evaluate_all("all => all.map(a => [a.dataset.key, a.getAttribute('href')])")

    for key, href in keys:
        page.keyboard.press("g")
        page.keyboard.press(key)
        page.wait_for_url(lambda url, href=href: url.split("?")[0].endswith(href))
        page.wait_for_selector("#link[data-state=live]")

    assert len(keys) >= 10
    assert troubles == []


def test_a_question_mark_lists_the_keys_and_escape_closes_it(visit: Callable[..., Page]) -> None:
    page = visit("/")

    page.keyboard.press("?")

    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()


def test_a_slash_goes_to_the_search_and_typing_there_is_no_order(visit: Callable[..., Page]) -> None:
    page = visit("/devices")

    page.keyboard.press("/")
    page.keyboard.type("g?j")

    focused = page.evaluate("document.activeElement.value")
    assert focused == "g?j"
    expect(page.locator("#keys")).to_be_hidden()


def test_times_are_the_viewers_own_on_hover(visit: Callable[..., Page]) -> None:
    page = visit("/rollouts")

    titles = page.locator("time[datetime]").evaluate_all("all => all.map(each => each.title)")

    assert titles
    assert all("GMT+1" in title or "GMT+2" in title or "CET" in title or "CEST" in title for title in titles), titles[
        :3
    ]


def test_a_theme_that_was_chosen_stays(visit: Callable[..., Page]) -> None:
    page = visit("/", theme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.click("#theme")
    page.click("#theme")
    page.goto("/help")

    expect(page.locator("#theme-words")).to_have_text("dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_a_lost_connection_is_said_and_caught_up_with(visit: Callable[..., Page]) -> None:
    page = visit("/")

    page.context.set_offline(True)
    page.evaluate("window.stop()")  # A browser that is offline keeps a stream that stands; this ends it.
    expect(page.locator("#lost")).to_be_visible(timeout=40_000)
    said = page.locator("#lost").inner_text()
    page.context.set_offline(False)

    assert "Connection lost" in said
    expect(page.locator("#link")).to_have_attribute("data-state", "live", timeout=40_000)
    expect(page.locator("#lost")).to_be_hidden()
