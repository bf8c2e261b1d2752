"""A demo whose fleet goes on, and a Chromium that is logged in to its controller."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Response, sync_playwright

from harness.console import Demo, find_chromium, running_demo

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


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
def troubles() -> list[str]:
    """What the browser's console said is wrong, and answers that were errors: nothing, after a test that passes."""
    return []


@pytest.fixture
def visit(demo: Demo, chromium: Browser, troubles: list[str]) -> Iterator[Callable[..., Page]]:
    """Return what opens a page of its own context: `visit(path, phone=False, theme="light", token=None)`."""
    contexts: list[BrowserContext] = []

    def said(message: ConsoleMessage) -> None:
        if message.type == "error":
            troubles.append(message.text)

    def answered(response: Response) -> None:
        if response.status >= 400:
            troubles.append(f"{response.status} {response.url}")

    def visit(path: str, *, phone: bool = False, theme: str = "light", token: str | None = None) -> Page:
        context = chromium.new_context(
            base_url=demo.url,
            viewport=PHONE if phone else DESKTOP,  # type: ignore[arg-type]  # Its keys are those of ViewportSize.
            color_scheme=theme,  # type: ignore[arg-type]  # "light" or "dark".
            extra_http_headers={"Authorization": f"Bearer {token or demo.token}"},
            timezone_id="Europe/Oslo",
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", said)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("response", answered)
        page.goto(path)
        page.wait_for_selector("#link[data-state=live]")
        return page

    yield visit
    for each in contexts:
        each.close()


@pytest.fixture
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go, for people to look at."""
    folder = tmp_path_factory.getbasetemp() / "shots"
    folder.mkdir(exist_ok=True)
    return folder
