"""A demo whose fleet goes on, and a Chromium that is logged in to its controller."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from harness.console import Demo, find_chromium, running_demo
from harness.visits import WAIT_MS, Visits

expect.set_options(timeout=WAIT_MS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep whether a test passed, for stories whose steps need those before them."""
    report = yield
    if report.when == "call":
        item.user_properties.append(("passed", report.passed))
    return report


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("console") / "demo") as found:
        yield found


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        pytest.fail("no Chromium was found: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(demo: Demo, chromium: Browser) -> Iterator[Visits]:
    """Return what opens pages: `visit("/devices", phone=True, theme="dark")`."""
    visits = Visits(demo, chromium)
    yield visits
    visits.end()


@pytest.fixture
def troubles(visit: Visits) -> list[str]:
    """What went wrong in the browser: nothing, after a test that passes."""
    return visit.troubles


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go, for people to look at."""
    folder = tmp_path_factory.getbasetemp() / "shots"
    folder.mkdir(exist_ok=True)
    return folder
