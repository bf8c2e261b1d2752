"""A browser without a screen: it keeps cookies, follows redirects, and sends forms as a page's own would be sent."""

import re
import ssl
from dataclasses import dataclass, field
from html import unescape
from types import TracebackType
from typing import Self

import httpx

_FIELD = re.compile(r'<input type="hidden" name="(?P<name>[a-z]+)" value="(?P<value>[^"]*)"')


@dataclass
class Browser:
    """On the page of one controller. `http` is open for what no browser would do."""

    url: str
    verify: ssl.SSLContext | bool = True
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, trust_env=False, verify=self.verify, timeout=30.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path, follow_redirects=True)

    def fill(self, page: str, action: str, **said: str) -> httpx.Response:
        """Open `page`, and send its form that goes to `action` with its hidden fields and `said`."""
        shown = self.get(page).text
        _, found, rest = shown.partition(f'action="{action}"')
        assert found, f"{page} has no form that goes to {action}: {shown[:2000]}"
        hidden = {each["name"]: unescape(each["value"]) for each in _FIELD.finditer(rest.partition("</form>")[0])}
        return self.send(action, **{**hidden, **said})

    def send(self, action: str, **said: str) -> httpx.Response:
        """Send a form, and do not follow where it goes."""
        headers = {"Origin": self.url, "Sec-Fetch-Site": "same-origin"}
        return self.http.post(action, data=said, headers=headers)

    def log_in(self, name: str, password: str) -> httpx.Response:
        return self.fill("/login", "/login", name=name, password=password)

    @property
    def session(self) -> str | None:
        """The name and the value of the session's cookie, if there is one."""
        found = [each for each in self.http.cookies.jar if re.fullmatch(r"muster-\d+|__Host-muster", each.name)]
        return f"{found[0].name}={found[0].value}" if found else None
