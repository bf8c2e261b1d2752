"""Login by OpenID Connect, end to end: the controller, a provider on the loopback, and a browser between them."""

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from harness.browser import Browser
from harness.desk import Desk, is_problem, open_desk
from harness.oidc_provider import CLIENT_ID, CLIENT_SECRET, Claims, Provider, running_provider
from muster_controller.operators.oidc_config import OidcConfig
from muster_controller.operators.roles import Role

ROLES = {
    "fleet-admins": (Role.ADMIN, ""),
    "fleet-ops": (Role.OPERATOR, ""),
    "oslo-ops": (Role.OPERATOR, "site=oslo"),
    "watchers": (Role.VIEWER, ""),
}


@dataclass
class House:
    desk: Desk
    provider: Provider

    def log_in(self, browser: Browser, sub: str, name: str, *groups: str) -> httpx.Response:
        """Go through the whole login as this person; return where it ends."""
        self.provider.claims = {"sub": sub, "preferred_username": name, "groups": list(groups)}
        return self.come_back(browser, self.go_out(browser))

    def go_out(self, browser: Browser, target: str = "/") -> str:
        """Return the address by which the provider sends the browser back."""
        out = browser.http.get("/login/oidc", params={"next": target})
        assert out.status_code == 303, out.text
        return httpx.get(out.headers["location"], trust_env=False).headers["location"]

    def come_back(self, browser: Browser, location: str) -> httpx.Response:
        parts = urlsplit(location)
        assert f"{parts.scheme}://{parts.netloc}" == self.desk.controller.url
        return browser.http.get(f"{parts.path}?{parts.query}")

    def who(self, browser: Browser) -> dict[str, object]:
        found: dict[str, object] = browser.http.get("/api/v1/session").json()
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running_provider() as provider:
        config = OidcConfig(provider.issuer, CLIENT_ID, CLIENT_SECRET, roles=ROLES)
        with open_desk(tmp_path_factory.mktemp("fleet"), oidc=config) as desk:
            yield House(desk, provider)


@pytest.fixture
def browser(house: House) -> Iterator[Browser]:
    house.provider.spoil = lambda claims: claims
    house.provider.signed_with = "own"
    with Browser(house.desk.controller.url) as browser:
        yield browser


def test_who_the_provider_vouches_for_is_an_operator_with_the_role_of_the_claims(
    house: House, browser: Browser
) -> None:
    assert "/login/oidc?next=/" in browser.get("/login").text

    answer = house.log_in(browser, "1001", "Grete@Example.org", "watchers", "fleet-ops", "others")

    assert answer.status_code == 200
    assert 'http-equiv="refresh" content="0;url=/"' in answer.text
    who = house.who(browser)
    assert (who["name"], who["role"], who["kind"]) == ("grete@example.org", "operator", "session")
    made = house.desk.get("/operators/grete@example.org")
    assert made["subject"] == f"{house.provider.issuer} 1001"
    assert (made["has_password"], made["created_by"]) == (False, "oidc")
    query = house.provider.asked[-1]
    assert query["redirect_uri"] == f"{house.desk.controller.url}/login/oidc/callback"
    assert len(query["code_challenge"]) == 43
    assert len(query["nonce"]) >= 32
    cookies = [each for each in answer.headers.get_list("set-cookie") if each.startswith("muster-")]
    assert any("SameSite=strict" in each and "HttpOnly" in each for each in cookies)


def test_the_claims_count_at_each_login(house: House, browser: Browser) -> None:
    house.log_in(browser, "1002", "hans", "fleet-admins")
    assert house.who(browser)["role"] == "admin"

    house.log_in(browser, "1002", "hans", "oslo-ops")

    assert (house.who(browser)["role"], house.who(browser)["selector"]) == ("operator", "site=oslo")


def test_an_account_is_bound_to_the_subject_and_not_to_the_name(house: House, browser: Browser) -> None:
    house.desk.hire("inge", "admin")

    taken = house.log_in(browser, "1003", "inge", "watchers")

    assert taken.status_code == 409
    assert browser.session is None
    body = {"name": "inge2", "role": "publisher", "subject": f"{house.provider.issuer} 1003"}
    house.desk.http.post("/operators", json=body).raise_for_status()
    assert house.log_in(browser, "1003", "inge").status_code == 200
    assert (house.who(browser)["name"], house.who(browser)["role"]) == ("inge2", "publisher")
    assert is_problem(house.desk.http.post("/operators", json={**body, "name": "x"}), 409, "operator-exists")


def test_who_has_no_role_or_is_disabled_stays_out(house: House, browser: Browser) -> None:
    stranger = house.log_in(browser, "1004", "stranger", "others")
    house.log_in(browser, "1005", "jens", "watchers")
    house.desk.http.post("/operators/jens/disable", json={}).raise_for_status()
    with Browser(house.desk.controller.url) as other:
        disabled = house.log_in(other, "1005", "jens", "fleet-admins")

        assert (stranger.status_code, disabled.status_code) == (403, 403)
        assert other.session is None
    assert is_problem(house.desk.http.get("/operators/stranger"), 404, "not-found")


@pytest.mark.parametrize(
    "lie",
    [
        {"nonce": "another"},
        {"aud": "another-client"},
        {"iss": "http://127.0.0.1:1"},
        {"exp": 1_000_000_000},
        {"azp": "another-client"},
        {"sub": None},
    ],
    ids=lambda lie: next(iter(lie)),
)
def test_an_id_token_that_is_not_for_this_login_is_refused(house: House, browser: Browser, lie: Claims) -> None:
    def spoil(claims: Claims) -> Claims:
        return {name: value for name, value in {**claims, **lie}.items() if value is not None}

    house.provider.spoil = spoil

    answer = house.log_in(browser, "1001", "grete", "fleet-admins")

    assert answer.status_code == 502
    assert browser.session is None


@pytest.mark.parametrize("key", ["other", "shared"])
def test_an_id_token_by_another_key_is_refused(house: House, browser: Browser, key: str) -> None:
    house.provider.signed_with = key

    answer = house.log_in(browser, "1001", "grete", "fleet-admins")

    assert answer.status_code == 502
    assert browser.session is None


def test_the_keys_of_the_provider_may_rotate(house: House, browser: Browser) -> None:
    assert house.log_in(browser, "1006", "kari", "watchers").status_code == 200
    house.provider.rotate()

    assert house.log_in(browser, "1006", "kari", "watchers").status_code == 200


def test_an_answer_counts_in_the_browser_that_asked_and_once(house: House, browser: Browser) -> None:
    house.provider.claims = {"sub": "1007", "preferred_username": "liv", "groups": ["watchers"]}
    location = house.go_out(browser)

    with Browser(house.desk.controller.url) as victim:
        without_cookie = house.come_back(victim, location)
        house.go_out(victim)
        other_state = house.come_back(victim, location)
        assert (without_cookie.status_code, other_state.status_code) == (502, 502)
        assert victim.session is None
    assert house.come_back(browser, location).status_code == 200
    with Browser(house.desk.controller.url) as again:
        again.http.cookies.update(browser.http.cookies)
        assert house.come_back(again, location).status_code == 502


def test_a_code_needs_the_verifier_of_its_own_login(house: House, browser: Browser) -> None:
    house.provider.claims = {"sub": "1008", "preferred_username": "mia", "groups": ["watchers"]}
    stolen = parse_qs(urlsplit(house.go_out(browser)).query)["code"][0]

    with Browser(house.desk.controller.url) as thief:
        own = urlsplit(house.go_out(thief))
        state = parse_qs(own.query)["state"][0]
        answer = thief.http.get(own.path, params={"state": state, "code": stolen})

        assert answer.status_code == 502
        assert thief.session is None


def test_a_login_goes_on_within_this_page(house: House, browser: Browser) -> None:
    house.provider.claims = {"sub": "1009", "preferred_username": "nils", "groups": ["watchers"]}

    inside = house.come_back(browser, house.go_out(browser, "/rollouts?x=1"))
    outside = house.come_back(browser, house.go_out(browser, "//evil.example"))

    assert 'content="0;url=/rollouts?x=1"' in inside.text
    assert 'content="0;url=/"' in outside.text
    assert "evil.example" not in outside.text


def test_what_the_provider_refuses_is_told(house: House, browser: Browser) -> None:
    answer = browser.http.get("/login/oidc/callback", params={"error": "access_denied", "state": "x"})

    assert answer.status_code == 502
    assert "access_denied" in answer.text
