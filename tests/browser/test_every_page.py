"""Every page, in both widths and both themes: axe finds nothing serious, nothing errs, nothing sticks out."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Response

from harness.console import violations

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]

PAGES = {
    "overview": "/",
    "devices": "/devices",
    "devices-filtered": "/devices?selector=class%3Dcamera-ort-1t&sort=seen",
    "devices-none": "/devices?q=nothing-is-called-so",
    "device-labels": "/devices/labels",
    "device": "/devices/camera-1",
    "models": "/models",
    "model": "/models/digits",
    "version": "/models/digits/versions/2.0.0",
    "compare": "/models/digits/compare?before=1.0.0&after=2.0.0",
    "upload": "/models/upload",
    "metrics": "/models/digits/metrics",
    "rollouts": "/rollouts",
    "new-rollout": "/rollouts/new?model=digits&version=2.0.0",
    "alerts": "/alerts",
    "reviews": "/reviews",
    "audit": "/audit",
    "keys": "/keys",
    "settings": "/settings",
    "help": "/help",
    "runbook": "/runbooks/alert-drift",
    "privacy": "/privacy",
    "account": "/account",
    "no-such-device": "/devices/nobody",
}
FIRST_VIEW_BYTES = 100_000  # Gzipped, without the drawing library.
LOOKS = [(False, "light"), (True, "dark"), (False, "dark"), (True, "light")]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_accessible_quiet_and_as_wide_as_the_window(
    name: str, visit: Callable[..., Page], troubles: list[str], shots: Path
) -> None:
    for phone, theme in LOOKS:
        page = visit(PAGES[name], phone=phone, theme=theme)
        page.screenshot(path=shots / f"{name}-{'phone' if phone else 'desktop'}-{theme}.png", full_page=True)

        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        assert page.locator("h1").count() == 1
        page.context.close()
    expected = [f"404 {PAGES[name]}"] if name.startswith("no-such") else []
    assert [each for each in troubles if not any(each.endswith(e[4:]) or "404" in each for e in expected)] == []


def test_the_first_view_is_light(visit: Callable[..., Page]) -> None:
    bodies: list[bytes] = []
    page = visit("/help")

    def weigh(response: Response) -> None:
        if "/api/v1/stream" not in response.url and "echarts" not in response.url:
            bodies.append(response.body())

    page.on("response", weigh)
    page.goto("/")
    page.wait_for_selector("#link[data-state=live]")
    page.wait_for_timeout(500)

    assert len(bodies) > 5
    assert sum(len(gzip.compress(each)) for each in bodies) < FIRST_VIEW_BYTES
