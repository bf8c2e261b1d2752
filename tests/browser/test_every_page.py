"""Every page, in both widths and both themes: axe finds nothing serious, nothing errs, nothing sticks out.

The screenshots are for people to look at: pytest's `shots` folder, which `pytest --basetemp` can move.
"""

import gzip
from pathlib import Path

import pytest
from playwright.sync_api import Page, Response, expect

from harness.console import Demo, violations
from harness.visits import Visits

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120, func_only=True)]

PAGES = {
    "overview": "/",
    "devices": "/devices",
    "devices-filtered": "/devices?selector=hw%2Fclass%3Dcamera-ort-1t&sort=seen",
    "devices-none": "/devices?q=nothing-is-called-so",
    "device-labels": "/labels",
    "device": "/devices/camera-1",
    "models": "/models",
    "model": "/models/digits",
    "version": "/models/digits/versions/2.0.0",
    "compare": "/models/digits/compare?before=1.0.0&after=2.0.0",
    "upload": "/publish",
    "metrics": "/models/digits/metrics",
    "rollouts": "/rollouts",
    "rollout": "/rollouts/{finished}",
    "rollout-aborted": "/rollouts/{aborted}",
    "rollout-report": "/rollouts/{aborted}/report",
    "new-rollout": "/rollouts/new?model=digits&version=3.0.0",
    "new-rollout-refused": "/rollouts/new?model=digits&version=3.0.0&document=waves%3A%20yes",
    "back": "/rollouts/back?model=digits",
    "alerts": "/alerts",
    "reviews": "/reviews",
    "audit": "/audit",
    "audit-checked": "/audit?check=true&action=rollout.",
    "keys": "/keys",
    "settings": "/settings",
    "enrolment": "/settings/enrolment",
    "users": "/users",
    "help": "/help",
    "runbook": "/runbooks/alert-drift",
    "privacy": "/privacy",
    "account": "/account",
    "no-such-device": "/devices/nobody",
}
FIRST_VIEW_BYTES = 100_000  # Gzipped, without the drawing library.
OTHER = {"light": "dark", "dark": "light"}


@pytest.fixture(scope="module")
def rollouts(demo: Demo) -> dict[str, str]:
    """A rollout that the demo brought to each end."""
    found = demo.ask("/rollouts?model=digits&limit=200")["rollouts"]
    return {each["state"]: each["id"] for each in found if not each["at_once"]}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_accessible_quiet_and_as_wide_as_the_window(
    name: str, visit: Visits, troubles: list[str], rollouts: dict[str, str], shots: Path
) -> None:
    for width, theme in (("desktop", "light"), ("phone", "dark")):
        page = visit(PAGES[name].format(**rollouts), phone=width == "phone", theme=theme)
        _drawn(page)
        page.screenshot(path=shots / f"{name}-{width}-{theme}.png", full_page=True)

        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        assert page.locator("h1").count() == 1
        page.emulate_media(color_scheme=OTHER[theme])  # type: ignore[arg-type]  # "light" or "dark".
        page.screenshot(path=shots / f"{name}-{width}-{OTHER[theme]}.png", full_page=True)
        page.context.close()
    expected = "404" if name.startswith("no-such") else "nothing is expected"
    assert [each for each in troubles if expected not in each] == []


def test_the_first_view_is_light(visit: Visits) -> None:
    came: list[Response] = []
    page = visit.stranger(token=visit.demo.token)
    page.on("response", lambda answer: came.append(answer))

    page.goto("/")
    page.wait_for_selector("#link[data-state=live]")
    _drawn(page)

    counted = [each for each in came if "/api/v1/stream" not in each.url and "echarts" not in each.url]
    assert len(counted) > 5
    assert sum(len(gzip.compress(each.body())) for each in counted) < FIRST_VIEW_BYTES


def _drawn(page: Page) -> None:
    """Wait until every plot of the page is drawn."""
    expect(page.locator("[data-plot] .canvas:not([data-drawn=yes])")).to_have_count(0)
