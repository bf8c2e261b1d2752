"""Visits to the pages of a controller: a browser context for each, as somebody who comes anew."""

from dataclasses import dataclass, field

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Response

from harness.console import Demo

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
WAIT_MS = 20_000.0  # For what takes a tenth of a second: two processors carry a fleet, a browser, and these tests.


@dataclass
class Visits:
    """Opens pages, each in a context of its own, as somebody who comes anew."""

    demo: Demo
    chromium: Browser
    troubles: list[str] = field(default_factory=list)
    """What the browser's console said is wrong, and answers that were errors."""
    _contexts: list[BrowserContext] = field(default_factory=list)

    def __call__(
        self, path: str, *, phone: bool = False, theme: str = "light", token: str | None = None, url: str = ""
    ) -> Page:
        """Open a page, logged in by `token` (that of the controller's machine if None), and wait until it is live.

        Args:
            url: Where the controller is reached; empty: where it is.
        """
        page = self.stranger(phone=phone, theme=theme, url=url, token=token or self.demo.token)
        page.goto(path)
        page.wait_for_selector("#link[data-state=live]")
        return page

    def stranger(self, *, phone: bool = False, theme: str = "light", url: str = "", token: str = "") -> Page:
        """Return an empty page of somebody who has not logged in, if there is no `token`."""
        context = self.chromium.new_context(
            base_url=url or self.demo.url,
            viewport=PHONE if phone else DESKTOP,  # type: ignore[arg-type]  # Its keys are those of ViewportSize.
            color_scheme=theme,  # type: ignore[arg-type]  # "light" or "dark".
            extra_http_headers={"Authorization": f"Bearer {token}"} if token else {},
            timezone_id="Europe/Oslo",
        )
        context.set_default_timeout(WAIT_MS)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("response", self._answered)
        return page

    def end(self) -> None:
        for each in self._contexts:
            each.close()

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.troubles.append(message.text)

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.troubles.append(f"{response.status} {response.url}")
